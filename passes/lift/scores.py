"""Attention scores, read backwards: from softmax to the product of Q and K, whatever stands between.

What may stand there, in any order that the standard's own order (product, scale, soft-cap, mask, softmax) can be made
of: factors of one element; factors that are the same for all keys; c * tanh(x / c); masks, added or chosen by Where;
what is the same for all keys and taken off (softmax does not see it); a lower bound; casts between float types;
Transposes, and Reshapes within batch, heads, queries or keys. Where two sides of a sum lead to products, both are
candidates: the other one is then a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import onnx_ir as ir

from ..base import MisfitError, UnsayableError
from .frames import Dim, Frame
from .masks import LOW, VIEWS, uniform
from .values import constant, dim, dims, is_constant, producer, rank, scalar, split_scalar

DEPTH = 32  # ops between softmax and the product; spellings of today have up to a dozen
CUSTOM = "CustomAttention"  # the function for what has no other name
SIDES = 4  # candidates that are followed where sides of sums both lead to products


@dataclass(frozen=True)
class Mask:
    """What is added to the scores, or says which keys are allowed or forbidden; in the `frame` of the scores there."""

    value: ir.Value
    kind: Literal["added", "allowed", "forbidden"]
    frame: Frame
    factor: float = 1.0  # by which an added mask is multiplied together with the scores


@dataclass(frozen=True)
class Factor:
    """A tensor that scores or weights are multiplied by, or divided by."""

    value: ir.Value
    frame: Frame
    divides: bool = False


@dataclass(frozen=True)
class Scores:
    """What stands behind a tensor of scores: cap * tanh(scale * product / cap), then the masks."""

    product: ir.Node
    frame: Frame
    scale: float = 1.0
    cap: float = 0.0
    factors: tuple[Factor, ...] = ()
    masks: tuple[Mask, ...] = ()
    flags: tuple[ir.Value, ...] = ()  # masks of zeros and ones that were multiplied by
    shifts: tuple[Factor, ...] = ()  # what was taken off
    spelling: tuple[str, ...] = ()
    nodes: tuple[ir.Node, ...] = ()  # from the product on
    leads: tuple[tuple[Dim, ...], ...] = ()  # how batch and heads lay on the way

    def behind(self, node: ir.Node, *spelling: str, **changes: object) -> Scores:
        """These scores behind one more node."""
        grown = {"nodes": (*self.nodes, node), "spelling": (*self.spelling, *spelling)}
        return replace(self, **grown, **changes)  # type: ignore[arg-type]

    def scaled(self, node: ir.Node, factor: float) -> Scores:
        """These scores times a number."""
        masks = tuple(replace(mask, factor=mask.factor * factor) for mask in self.masks)
        if any(mask.kind != "added" for mask in masks) and not factor > 0:
            raise UnsayableError("the scores are multiplied by a number that is not positive behind a mask", CUSTOM)
        cap = self.cap * abs(factor)
        return self.behind(node, "scaled scores", scale=self.scale * factor, cap=cap, masks=masks)

    def moved(self, node: ir.Node, frame: Frame) -> Scores:
        """These scores in another frame."""
        return self.behind(node, frame=frame, leads=(*self.leads, frame.sizes("lead")))


Found = list[Scores]
T = TypeVar("T")


class ScoreReader:
    """Reads scores of one site; what a value leads to is found once."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Found | MisfitError] = {}

    def read(self, scores: ir.Value | None, depth: int = DEPTH) -> Found:
        """The products that `scores` may come from, the likeliest first. Raises MisfitError where there is none."""
        node = producer(scores)
        if scores is None or node is None:
            made = scores.producer() if scores is not None else None
            raise MisfitError("the scores are no result of an op") if made is None else _between(made)
        if depth == 0:
            raise MisfitError(f"more than {DEPTH} ops stand between the product of Q and K and softmax")
        known = self._known.get(scores)
        if known is None:
            try:
                known = self._step(node, depth - 1)[:SIDES]
            except MisfitError as misfit:
                known = misfit
            self._known[scores] = known
        if isinstance(known, MisfitError):
            raise known
        return known

    def _step(self, node: ir.Node, depth: int) -> Found:
        if node.op_type == "MatMul":
            return [_product(node)]
        if node.op_type in ("Add", "Sub"):
            return _each(self._sides(node, depth), lambda side: _sum(*side, node))
        if node.op_type in ("Mul", "Div"):
            if (step := scaled(node)) is not None:
                return _each(self.read(step[0], depth), lambda inner: inner.scaled(node, step[1]))
            return _each(self._sides(node, depth), lambda side: _multiplied(*side, node))
        if node.op_type == "Where":
            return self._where(node, depth)
        if (unary := _UNARY.get(node.op_type)) is not None:
            # a lower bound may stand in front
            index = 1 if node.op_type == "Max" and len(node.inputs) > 1 and uniform(node.inputs[0]) is not None else 0
            return _each(self.read(node.inputs[index], depth), lambda inner: unary(inner, node))
        raise _between(node)

    def _sides(self, node: ir.Node, depth: int) -> list[tuple[Scores, ir.Value]]:
        """For each side of `node` that leads to a product: the scores there, and the other operand."""
        misfits, found = list[MisfitError](), []
        sides = (0,) if node.op_type in ("Sub", "Div") else (0, 1)
        for side in sides:
            other = node.inputs[1 - side]
            assert other is not None
            try:
                found += [(inner, other) for inner in self.read(node.inputs[side], depth)]
            except MisfitError as misfit:
                misfits.append(misfit)
        if not found and len(sides) == 1:
            raise _between(node)
        if not found:
            reasons = "; ".join(dict.fromkeys(map(str, misfits)))
            text = f"neither side of the {node.op_type} leads to the product of Q and K: {reasons}"
            unsaid = next((misfit for misfit in misfits if isinstance(misfit, UnsayableError)), None)
            raise MisfitError(text) if unsaid is None else UnsayableError(text, unsaid.name)
        # scores that lie as their product made them, before those that were transposed to fit
        return sorted(found, key=lambda each: sum(n.op_type == "Transpose" for n in each[0].nodes))

    def _where(self, node: ir.Node, depth: int) -> Found:
        condition, then, other = node.inputs
        assert condition is not None
        sides: tuple[tuple[ir.Value | None, ir.Value | None, Literal["allowed", "forbidden"]], ...]
        sides = ((then, other, "allowed"), (other, then, "forbidden"))
        for scores, value, kind in sides:
            if uniform(condition) == (kind == "allowed"):
                return [inner.behind(node) for inner in self.read(scores, depth)]
            low = uniform(value)
            if low is not None and low <= LOW:
                return [
                    inner.behind(node, "Where mask", masks=(*inner.masks, Mask(condition, kind, inner.frame)))
                    for inner in self.read(scores, depth)
                ]
        raise _between(node)


def _each(found: Iterable[T], step: Callable[[T], Scores]) -> Found:
    """`step` of all that fit it. Raises the first MisfitError where none does."""
    made, misfits = list[Scores](), list[MisfitError]()
    for inner in found:
        try:
            made.append(step(inner))
        except MisfitError as misfit:
            misfits.append(misfit)
    if misfits and not made:
        raise misfits[0]
    return made


def _sum(inner: Scores, other: ir.Value, node: ir.Node) -> Scores:
    """Scores plus or minus another tensor."""
    if node.op_type == "Sub" and (makers := _row_maximum(other)):
        shifts, nodes = (*inner.shifts, Factor(other, inner.frame)), (*inner.nodes, *makers)
        return replace(inner, shifts=shifts, nodes=nodes).behind(node, "shifted")
    mask = Mask(other, "added", inner.frame, -1.0 if node.op_type == "Sub" else 1.0)
    return inner.behind(node, "added mask", masks=(*inner.masks, mask))


def _multiplied(inner: Scores, other: ir.Value, node: ir.Node) -> Scores:
    """Scores times or over another tensor."""
    if node.op_type == "Mul" and is_binary(other):
        # masked scores become 0 here; the mask that is added behind makes them low
        return inner.behind(node, "multiplied mask", flags=(*inner.flags, other))
    if inner.masks or inner.cap:
        raise UnsayableError(f"{node.op_type} by a tensor stands behind the mask or the soft-cap", CUSTOM)
    factor = Factor(other, inner.frame, node.op_type == "Div")
    return inner.behind(node, "scaled by a tensor", factors=(*inner.factors, factor))


def _row_maximum(value: ir.Value) -> list[ir.Node]:
    """ReduceMax and what gives its axis back, or nothing: softmax does not see what is taken off a row."""
    makers: list[ir.Node] = []
    node = producer(value)
    while node is not None and node.op_type in ("Unsqueeze", "Reshape", "Identity"):
        makers.append(node)
        node = producer(node.inputs[0])
    return [node, *makers[::-1]] if node is not None and node.op_type == "ReduceMax" else []


def _between(node: ir.Node) -> MisfitError:
    name = "SinkAttention" if node.op_type == "Concat" else CUSTOM
    if node.op_type in ("Einsum", "ReduceSum"):
        return UnsayableError(f"the product of Q and K is spelled as {node.op_type}", name)
    return UnsayableError(f"{node.op_type} stands between the product of Q and K and softmax", name)


def _product(node: ir.Node) -> Scores:
    left, right = unscaled(node.inputs[0])[0], unscaled(node.inputs[1])[0]
    ranks = rank(left), rank(right)
    if None in ranks or min(r or 0 for r in ranks) < 2:
        raise UnsayableError(f"the ranks of Q and K are {ranks[0]} and {ranks[1]}", CUSTOM)
    for operand in (left, right):
        if is_constant(operand) and rank(operand) == 2:
            reason = "the product is that of a linear layer: one side is a constant matrix"
            raise UnsayableError(reason, CUSTOM)
    made = dims(node.outputs[0])
    lead = _broadcast(dims(left) or [], dims(right) or [])
    if made is not None and len(made) == len(lead) + 2:
        lead = [own if own is not None else other for own, other in zip(made, lead, strict=False)]
    frame = Frame.of(lead, [dim(left, -2)], [dim(right, -1)])
    return Scores(node, frame, nodes=(node,), leads=(tuple(lead),))


def _broadcast(left: list[Dim], right: list[Dim]) -> list[Dim]:
    """The lead dims of a product of these."""
    count = max(len(left), len(right)) - 2
    pairs = zip(([1] * count + left[:-2])[-count:], ([1] * count + right[:-2])[-count:], strict=True) if count else ()
    return [b if a in (1, None) else a for a, b in pairs]


def scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, factor) of x * constant or x / constant."""
    parts = split_scalar(node)
    if parts is None or (rank(parts[0]) is not None and rank(parts[0]) != rank(node.outputs[0])):
        return None
    value, number = parts
    if node.op_type == "Mul":
        return value, number
    return (value, 1 / number) if value is node.inputs[0] and number != 0 else None


def unscaled(value: ir.Value | None) -> tuple[ir.Value, float]:
    """`value` without the constants of one element that it was multiplied by, and their product."""
    assert value is not None
    scale = 1.0
    while (node := producer(value, "Mul", "Div")) is not None and (step := scaled(node)) is not None:
        if rank(step[0]) != rank(value):
            break
        value, factor = step
        scale *= factor
    return value, scale


def is_binary(value: ir.Value) -> bool:
    """Whether `value` is a mask of zeros and ones: a constant, a Cast from bool or integers, or a view of these."""
    array, node = constant(value), producer(value)
    while array is None and node is not None and node.op_type in ("Cast", "Expand", *VIEWS):
        source = node.inputs[0]
        array = constant(source)
        if node.op_type == "Cast" and source is not None and source.dtype is not None and not is_float(source.dtype):
            return True
        node = producer(source)
    return array is not None and bool(((array == 0) | (array == 1)).all())


def is_float(dtype: ir.DataType | None) -> bool:
    """Whether it is one of the float types that attention computes in."""
    return dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _capped(inner: Scores, node: ir.Node) -> Scores:
    if inner.masks or inner.cap or inner.shifts:  # which softmax would not see
        raise UnsayableError("Tanh stands behind a mask, a shift or another Tanh", CUSTOM)
    return inner.behind(node, "soft-cap", cap=1.0)


def _same(inner: Scores, node: ir.Node) -> Scores:
    return inner.behind(node)


def _cast(inner: Scores, node: ir.Node) -> Scores:
    if not is_float(node.outputs[0].dtype):
        raise _between(node)
    return inner.behind(node)


def _bounded(inner: Scores, node: ir.Node) -> Scores:
    """Max(scores, lowest) and Clip(scores, lowest): only scores without any weight feel it."""
    bounds = [bound for bound in map(uniform, node.inputs[:2]) if bound is not None]
    low = bounds[0] if len(bounds) == 1 else None
    open_above = len(node.inputs) < 3 or node.inputs[2] is None
    if low is None or low > LOW or not open_above:
        raise _between(node)
    return inner.behind(node, "lower bound")


def _dropout(inner: Scores, node: ir.Node) -> Scores:
    if not is_idle_dropout(node):
        raise _between(node)
    return inner.behind(node)


def is_idle_dropout(node: ir.Node) -> bool:
    """Whether a Dropout gives its input as it is."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return training is None or scalar(training) == 0


def _transposed(inner: Scores, node: ir.Node) -> Scores:
    return inner.moved(node, transposed(inner.frame, node))


def _reshaped(inner: Scores, node: ir.Node) -> Scores:
    return inner.moved(node, reshaped(inner.frame, node))


def transposed(frame: Frame, node: ir.Node) -> Frame:
    """The frame behind a Transpose."""
    return frame.transposed(node.attributes.get_ints("perm") or range(len(frame.axes))[::-1])


def reshaped(frame: Frame, node: ir.Node) -> Frame:
    """The frame behind a Reshape, Unsqueeze or Squeeze. Raises MisfitError where it mixes groups."""
    made = dims(node.outputs[0])
    if made is None:
        raise MisfitError(f"the rank of a {node.op_type} of the scores is not known")
    return frame.reshaped(made)


_UNARY: dict[str, Callable[[Scores, ir.Node], Scores]] = {
    "Tanh": _capped,
    "Identity": _same,
    "Cast": _cast,
    "Max": _bounded,
    "Clip": _bounded,
    "Dropout": _dropout,
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "Unsqueeze": _reshaped,
    "Squeeze": _reshaped,
}
