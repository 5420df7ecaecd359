"""Columns: what the elements of a value's last axis are, as signed symbols, whatever ops have moved them about.

A rotary embedding is a statement about columns: y_j = x_j cos_j - x_k sin_j. Exporters take the columns apart and put
them together in many ways (Slice, Split, Gather, Concat, stacks, Neg); here each value gets an array of symbols, one
for each column, and these ops do to the array what they do to the value. A symbol is a number; minus it is its
negation. Three readings of a value, each made once:

    taken(v)   v's columns as those of the value that they were taken from
    summed(v)  the same, where sums and products of taken columns are symbols too: x_0 * c_0 - x_4 * s_0
    deep(v)    v's columns through elementwise ops and lookups of rows as well: Cos(Concat(f, f)) has each column twice

`make` is the way back: from symbols of deep columns to a value that has just these, as early in the graph as it can be.
An axis that is not a column (batch, heads, sequence) is not followed: what is found here has yet to be proved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ..base import MisfitError
from .moves import WIDEST, Ids, moved
from .values import add_constant, broadcast, constant, dim, insert, producer, rank

_TAKES = frozenset({"Slice", "Split", "Gather"})
_ELEMENTWISE = frozenset({"Cos", "Sin", "Cast", "Mul", "Div", "Add", "Sub", "Sqrt", "Reciprocal", "Pow"})


class Columns:
    """The columns of one graph's values; what belongs to another graph is a leaf."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.factors: dict[int, tuple[ir.Value, ir.Node]] = {}  # taken column -> operand that has it, product
        self.found: dict[bytes, list[ir.Value]] = {}  # taken columns -> values that have them, first one first
        self._meanings: list[tuple[Hashable, ...]] = [()]
        self._numbers: dict[tuple[Hashable, ...], int] = {}
        self._constants: dict[int, tuple[ir.Value, int]] = {}
        self._templates: dict[Hashable, ir.Node] = {}
        self._memo: dict[str, dict[ir.Value, Ids | None]] = {"taken": {}, "summed": {}, "deep": {}}
        self._deep_found: dict[bytes, tuple[ir.Value, list[ir.Value]]] = {}  # with what it is made of
        self._parts: dict[bytes, tuple[ir.Value, list[ir.Value]]] = {}  # cut from what is better not computed whole

    def meaning(self, symbol: int) -> tuple[Hashable, ...]:
        """("leaf", value, column), ("constant", digest), ("*", a, b), ("+", ...) or ("apply", signature, operands)."""
        return self._meanings[abs(symbol)]

    def taken(self, value: ir.Value | None) -> Ids | None:
        """Columns of `value` as taken from elsewhere; None if their number is not known."""
        ids = self._read("taken", value, lambda node: moved(value, node, self.taken), lambda _: None)
        if value is not None and ids is not None and value not in (known := self.found.setdefault(ids.tobytes(), [])):
            known.append(value)
        return ids

    def summed(self, value: ir.Value | None) -> Ids | None:
        """Columns of `value` where Add, Sub and Mul of columns have symbols of their own."""

        def move(node: ir.Node) -> Ids | None:
            return self.taken(value) if node.op_type in _TAKES else moved(value, node, self.summed)

        return self._read("summed", value, move, self._sum)

    def deep(self, value: ir.Value | None) -> Ids | None:
        """Columns of `value` down to what no op here explains."""
        ids = self._read("deep", value, lambda node: moved(value, node, self.deep, casts=False), self._apply)
        if value is not None and ids is not None and ids.ndim == 1:
            moves = self.meaning(int(ids[0]))[0] == "apply" and not _is_applied(value)
            (self._parts if moves else self._deep_found).setdefault(ids.tobytes(), (value, [value]))
        return ids

    def deepen(self, symbol: int) -> int | None:
        """The deep column of a taken one that is a factor of a product."""
        self.deep(self.factors[abs(symbol)][0])  # what stands on the way is then known to `make`
        kind, value, column = self.meaning(symbol)
        assert kind == "leaf"
        assert isinstance(value, ir.Value)
        assert isinstance(column, int)
        ids = self.deep(value)
        return None if ids is None else int(np.sign(symbol) * ids.reshape(-1)[column])

    def _read(
        self,
        reading: str,
        value: ir.Value | None,
        move: Callable[[ir.Node], Ids | None],
        combine: Callable[[ir.Node], Ids | None],
    ) -> Ids | None:
        if value is None:
            return None
        memo = self._memo[reading]
        if value not in memo:
            memo[value] = None  # a graph has no circles; this is for one that is broken
            node = producer(value)
            ids = None
            if reading == "deep" and (array := constant(value)) is not None:
                ids = self._of_constant(value, array)
            elif node is not None and node.graph is self.graph and constant(value) is None:
                ids = move(node)
                ids = combine(node) if ids is None else ids
            memo[value] = self._leaf(value) if ids is None else ids
        return memo[value]

    def _number(self, *meaning: Hashable) -> int:
        number = self._numbers.setdefault(meaning, len(self._meanings))
        if number == len(self._meanings):
            self._meanings.append(meaning)
        return number

    def _leaf(self, value: ir.Value) -> Ids | None:
        """The last axis is followed; the last two of a view of pairs."""
        shape = [dim(value, axis) for axis in (-2, -1)][-1 if (rank(value) or 0) < 5 else -2 :]
        shape = shape if 2 in shape else shape[-1:]
        sizes = [size for size in shape if isinstance(size, int)]
        count = int(np.prod(sizes))
        if len(sizes) != len(shape) or not 0 < count <= WIDEST:
            return None
        return np.array([self._number("leaf", value, column) for column in range(count)]).reshape(sizes)

    def _of_constant(self, value: ir.Value, array: np.ndarray) -> Ids | None:
        """Columns of equal numbers have one symbol."""
        rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
        if not 0 < rows.shape[1] <= WIDEST:
            return None
        lead = str(array.shape[:-1] if array.size > 1 else ())
        ids = [
            self._number("constant", str(array.dtype), lead, hashlib.sha256(column.tobytes()).digest())
            for column in np.ascontiguousarray(rows.T)
        ]
        for k, symbol in enumerate(ids):
            self._constants.setdefault(symbol, (value, k))
        return np.array(ids)

    def _sum(self, node: ir.Node) -> Ids | None:
        if node.op_type == "Mul":
            factors = [self.taken(value) for value in node.inputs]
            for ids, value in zip(factors, node.inputs, strict=True):
                if ids is not None and value is not None:
                    for symbol in ids.reshape(-1).tolist():
                        self.factors.setdefault(abs(symbol), (value, node))
            return self._each(factors, node.inputs, self._product)
        if node.op_type in ("Add", "Sub"):
            parts = [self.summed(value) for value in node.inputs]
            if node.op_type == "Sub" and parts[1] is not None:
                parts[1] = -parts[1]
            return self._each(parts, node.inputs, self._total)
        return None

    def _product(self, *ids: int) -> int:
        sign = -1 if sum(symbol < 0 for symbol in ids) % 2 else 1
        return sign * self._number("*", *sorted(map(abs, ids)))

    def _total(self, *ids: int) -> int:
        return self._number("+", *sorted(ids))

    def _apply(self, node: ir.Node) -> Ids | None:
        """An op that does the same to every column."""
        columns = list(node.inputs) if node.op_type in _ELEMENTWISE else _columns_of_rows(node)
        if not columns or any(value is None for value in columns):
            return None
        attributes = sorted(str(attribute) for attribute in node.attributes.values())
        rest = [value for value in node.inputs if value not in columns]
        signature = (node.op_type, *attributes, *rest)
        self._templates.setdefault(signature, node)
        return self._each(
            [self.deep(value) for value in columns], columns, lambda *ids: self._number("apply", signature, *ids)
        )

    def _each(
        self, operands: list[Ids | None], values: Sequence[ir.Value | None], make: Callable[..., int]
    ) -> Ids | None:
        """`make` of the operands' columns, column by column, as they broadcast."""
        known = [_stripped(ids) for ids in operands if ids is not None]
        deepest = max((ids.ndim for ids in known), default=0)
        if len(known) < len(operands) or any(_stretches(*pair, deepest) for pair in zip(known, values, strict=True)):
            return None
        try:
            wide = np.broadcast_arrays(*known)
        except ValueError:
            return None
        made = [make(*ids) for ids in zip(*(array.reshape(-1).tolist() for array in wide), strict=True)]
        return np.array(made).reshape(wide[0].shape)

    def make(self, ids: Ids, before: ir.Node, roots: list[ir.Value]) -> ir.Value:
        """A value whose columns are `ids`, new ops in front of `before`; what it is made of is added to `roots`.

        Raises MisfitError where there is no op to make it by.
        """
        ids = ids.reshape(-1)
        key = ids[:1].tobytes() if (ids == ids[0]).all() and ids[:1].tobytes() in self._deep_found else ids.tobytes()
        if key not in self._deep_found:
            below: list[ir.Value] = []
            try:
                self._deep_found[key] = self._made(ids, before, below), below
            except MisfitError:
                if key not in self._parts:
                    raise
                self._deep_found[key] = self._parts[key]
        made, below = self._deep_found[key]
        roots.extend(below)
        return made

    def _made(self, ids: Ids, before: ir.Node, roots: list[ir.Value]) -> ir.Value:
        if (ids < 0).all():
            positive = self.make(-ids, before, roots)
            return typed(insert(before, "Neg", [positive]), positive.dtype, positive.shape)
        meanings = [self.meaning(int(symbol)) for symbol in ids]
        kinds = {meaning[:2] for meaning in meanings}
        if (ids > 0).all() and len(kinds) == 1 and meanings[0][0] == "apply":
            template = self._templates[meanings[0][1]]
            parts = [np.array([meaning[k] for meaning in meanings]) for k in range(2, len(meanings[0]))]
            return _like(template, [self.make(part, before, roots) for part in parts], before)
        if (ids > 0).all() and len(kinds) == 1 and meanings[0][0] == "leaf":
            leaf = meanings[0][1]
            assert isinstance(leaf, ir.Value)
            roots.append(leaf)
            return select(leaf, [int(str(meaning[2])) for meaning in meanings], before)
        sources = [self._constants.get(int(symbol)) for symbol in ids]
        values = {source[0] for source in sources if source is not None}
        if None not in sources and len(values) == 1 and (array := constant(value := values.pop())) is not None:
            assert before.graph is not None
            chosen = np.ascontiguousarray(array[..., [source[1] for source in sources if source is not None]])
            made = add_constant(before.graph, f"{value.name}.columns", chosen)
            roots.extend((value, made))
            return made
        raise MisfitError("the columns of cos or sin come from several values")


def _stripped(ids: Ids) -> Ids:
    """Without leading axes of size 1."""
    while ids.ndim > 1 and ids.shape[0] == 1:
        ids = ids[0]
    return ids


def _stretches(ids: Ids, value: ir.Value | None, deepest: int) -> bool:
    """Whether `value` has a dim other than 1 on one of the last `deepest` axes that its `ids` do not follow."""
    own = rank(value)
    return own is None or any(axis <= own and dim(value, -axis) != 1 for axis in range(ids.ndim + 1, deepest + 1))


def typed(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None) -> ir.Value:
    value.type, value.shape = None if dtype is None else ir.TensorType(dtype), shape
    return value


def _like(template: ir.Node, columns: list[ir.Value], before: ir.Node) -> ir.Value:
    """The op of `template` on other columns."""
    named = dict(template.attributes)
    if template.op_type in _ELEMENTWISE:
        made = insert(before, template.op_type, columns, **named)
        return typed(made, template.outputs[0].dtype, broadcast(columns))
    old = _columns_of_rows(template) or []
    if len(old) != len(columns) or [rank(value) for value in old] != [rank(value) for value in columns]:
        raise MisfitError(f"{template.op_type} cannot be made on the half of its columns")
    fresh = iter(columns)
    made = insert(before, template.op_type, [next(fresh) if v in old else v for v in template.inputs], **named)
    shape = template.outputs[0].shape
    lead = None if shape is None else ir.Shape([*shape[:-1], columns[0].shape[-1] if columns[0].shape else None])
    return typed(made, template.outputs[0].dtype, lead)


def select(leaf: ir.Value, columns: list[int], before: ir.Node) -> ir.Value:
    """The `columns` of `leaf`, by Slice where their step is even."""
    graph, dims = before.graph, [dim(leaf, axis) for axis in range(rank(leaf) or 0)]
    assert graph is not None
    if (rank(leaf) or 0) >= 5:
        target = add_constant(graph, "pairs.flat", np.array([0] * (len(dims) - 2) + [-1]))
        flat = typed(insert(before, "Reshape", [leaf, target]), leaf.dtype, None)
        dims = [*dims[:-2], int(np.prod([int(str(size)) for size in dims[-2:]]))]
        flat.shape, leaf = ir.Shape(dims), flat
    if columns == list(range(int(str(dims[-1])))):
        return leaf
    steps = {later - earlier for earlier, later in pairwise(columns)}
    if len(steps) == 1 and (step := steps.pop()) > 0:
        bounds = {"start": columns[0], "end": columns[-1] + 1, "axis": -1, "step": step}
        operands = [add_constant(graph, f"columns.{name}.{at}", np.array([at])) for name, at in bounds.items()]
        made = insert(before, "Slice", [leaf, *operands])
    else:
        made = insert(before, "Gather", [leaf, add_constant(graph, "columns", np.array(columns))], axis=-1)
    return typed(made, leaf.dtype, ir.Shape([*dims[:-1], len(columns)]))


def _is_applied(value: ir.Value) -> bool:
    """Whether `value` is made by an op that does the same to every column, not put together from parts of others."""
    node = producer(value)
    return node is not None and (node.op_type in _ELEMENTWISE or _columns_of_rows(node) is not None)


def _columns_of_rows(node: ir.Node) -> list[ir.Value] | None:
    """The operand whose rows an op picks or repeats, leaving its columns as they are; None if it is not such an op."""
    data = node.inputs[0] if node.inputs else None
    if data is None or not rank(data):
        return None
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) not in (-1, (rank(data) or 0) - 1):
        return [data]
    if node.op_type == "Slice" and len(node.inputs) > 3:
        axes = constant(node.inputs[3])
        return [data] if axes is not None and not {-1, (rank(data) or 0) - 1} & set(axes.tolist()) else None
    return None
