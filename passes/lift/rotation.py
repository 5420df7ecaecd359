"""What the columns of a value say of a rotation: reading a rotary embedding off sums of products (see rotary.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..base import MisfitError
from .columns import Columns
from .moves import Ids
from .sizes import Size
from .values import dim, producer, rank

PLAIN = (0, 1, 2, 3)
TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FACTORS = ("Mul", "Neg", "Cast")  # what stands in front of a rotation's sum
JOINS = ("Concat", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Identity")  # and behind it

Term = tuple[int, int, int]  # sign, x, coefficient


@dataclass(frozen=True)
class Rotation:
    """What was read off the columns of a value."""

    x: Ids
    cos: Ids
    sin: Ids
    interleaved: bool
    lead: tuple[Size, Size]  # batch and length of cos and sin
    perm: tuple[int, ...]  # the axes of batch, heads, length and columns

    @property
    def spelling(self) -> str:
        partial = ["partial"] * (2 * self.cos.size < self.x.size)
        return ", ".join(["interleaved" if self.interleaved else "half-split", *partial])


def may_rotate(node: ir.Node) -> bool:
    """Whether a node is the sum of two products."""
    is_sum = node.domain == "" and node.op_type in ("Add", "Sub")
    return is_sum and all(producer(value, *FACTORS) is not None for value in node.inputs)


def sums_of(value: ir.Value) -> set[ir.Node]:
    """The sums that `value` is put together from: none of them is another site."""
    found, ahead = set[ir.Node](), [value]
    while ahead:
        node = producer(ahead.pop(), *JOINS, "Add", "Sub")
        if node is not None and node not in found:
            found.add(node)
            ahead.extend(part for part in node.inputs if part is not None)
    return found


def products(columns: Columns, symbol: int) -> list[Term] | None:
    """The terms of a sum of two products."""
    kind, *terms = columns.meaning(symbol)
    if kind != "+" or len(terms) != 2:
        return None
    parts = []
    for term in terms:
        assert isinstance(term, int)
        kind, *factors = columns.meaning(term)
        if kind != "*":
            return None
        first, second = factors
        assert isinstance(first, int)
        assert isinstance(second, int)
        parts.append((int(np.sign(term) * np.sign(symbol)), first, second))
    return parts


def leaf_of(columns: Columns, symbol: int) -> object:
    kind, *rest = columns.meaning(symbol)
    return rest[0] if kind == "leaf" else None


def is_site(columns: Columns, ids: Ids) -> bool:
    """Whether the first or last column is the difference of two columns of one value, each times something."""
    for symbol in ids.reshape(-1)[[0, -1]].tolist():
        terms = products(columns, symbol)
        if terms is not None and terms[0][0] != terms[1][0]:
            return any(_oriented(columns, terms, leaf) for leaf in _leaves(columns, terms))
    return False


def _leaves(columns: Columns, terms: list[Term]) -> list[object]:
    """What both terms have columns of."""
    of_first, of_second = ([leaf_of(columns, symbol) for symbol in term[1:]] for term in terms)
    return [leaf for leaf in dict.fromkeys(of_first) if leaf is not None and leaf in of_second]


def _oriented(columns: Columns, terms: list[Term], leaf: object) -> list[Term] | None:
    """Each term as (sign, column of `leaf`, coefficient); None if the columns are not two."""
    turned = [(s, a, b) if leaf_of(columns, a) is leaf else (s, b, a) for s, a, b in terms]
    same = all(leaf_of(columns, a) is leaf for _, a, _ in turned) and turned[0][1] != turned[1][1]
    return turned if same else None


def read_rotation(columns: Columns, value: ir.Value, ids: Ids) -> Rotation:
    """The rotation that the columns `ids` of `value` are. Raises MisfitError, with the first thing that did not fit."""
    if rank(value) != 4 or ids.ndim != 1:
        raise MisfitError(
            f"the rotated columns are of rank {rank(value)}, not put together to [batch, heads, length, size]"
        )
    if value.dtype not in TYPES:
        raise MisfitError(f"it computes in {value.dtype.name if value.dtype is not None else 'an unknown type'}")
    sums = [products(columns, symbol) for symbol in ids.tolist()]
    rotated = [terms for terms in sums if terms is not None]
    if len(rotated) % 2 or any(terms is None for terms in sums[: len(rotated)]):
        raise MisfitError("the rotated columns are not the first ones, or are of odd number")
    reasons = []
    for leaf in _leaves(columns, rotated[0]):
        turned = [_oriented(columns, terms, leaf) for terms in rotated]
        if any(terms is None for terms in turned):
            reasons.append("a column is not the sum of two columns of the same value")
            continue
        for interleaved in (False, True):
            try:
                paired = _pair(columns, [terms for terms in turned if terms is not None], interleaved)
                if paired is None:
                    continue
                x, cos, sin = paired
                lead, perm = _lead(columns, [*cos, *sin], dim(value, 2))
                deep = [[columns.deepen(symbol) for symbol in part] for part in (cos, sin)]
                return Rotation(
                    np.array([*x, *ids[len(x) :]]), np.array(deep[0]), np.array(deep[1]), interleaved, lead, perm
                )
            except MisfitError as misfit:
                reasons.append(str(misfit))
    raise MisfitError(reasons[0] if reasons else "the columns are paired neither by halves nor as neighbours")


def _pair(
    columns: Columns, rotated: list[list[Term]], interleaved: bool
) -> tuple[list[int], list[int], list[int]] | None:
    """Columns of x, in order, and of cos and sin, one for each pair; None if they are paired in another way."""
    size = len(rotated)
    firsts, seconds = (
        (range(0, size, 2), range(1, size, 2)) if interleaved else (range(size // 2), range(size // 2, size))
    )
    x, cosines, sines = [0] * size, [], []
    for j, k in zip(firsts, seconds, strict=True):
        upper = {a: sign * c for sign, a, c in rotated[j]}
        lower = {a: sign * c for sign, a, c in rotated[k]}
        if upper.keys() != lower.keys():
            return None
        for a, b in (tuple(upper), tuple(upper)[::-1]):
            # y_j = a cos - b sin, y_k = b cos + a sin
            if _equal(columns, upper[a], lower[b]) and _equal(columns, upper[b], -lower[a]):
                x[j], x[k] = a, b
                cosines.append(upper[a])
                sines.append(lower[a])
                break
        else:
            raise MisfitError(f"cos or sin of the columns {j} and {k}, which are a pair, are not shown to be equal")
    return x, cosines, sines


def _equal(columns: Columns, one: int, other: int) -> bool:
    return one == other or (columns.deepen(one) or 0) == (columns.deepen(other) or 1)


def _lead(columns: Columns, symbols: list[int], third: Size) -> tuple[tuple[Size, Size], tuple[int, ...]]:
    """Batch and length of cos and sin, and where x has batch, heads and length; `third` is its third dim."""
    leads = set()
    for value, product in {columns.factors[abs(symbol)] for symbol in symbols}:
        missing = (rank(product.outputs[0]) or 0) - (rank(value) or 0)
        leads.add(tuple(([1] * missing + [dim(value, axis) for axis in range(rank(value) or 0)])[:3]))
    if len(leads) != 1:
        raise MisfitError(f"cos and sin differ in shape: {sorted(map(str, leads))}")
    batch, one, other = leads.pop()
    if one == other == 1 and batch != 1 and third != 1:
        return (1, batch), (1, 2, 0, 3)
    if one == 1:
        return (batch, other), PLAIN
    if other == 1:
        return (batch, one), (0, 2, 1, 3)
    raise MisfitError(f"cos and sin of [{batch}, {one}, {other}] differ between the heads, or their shape is not known")
