"""Attention, whatever the exporter spelled -> one standard `Attention` (opset 23), [batch, heads, length, head size].

From each Softmax the dataflow is walked both ways:

    softmax(scale * Q Kt + mask) V   ->   Attention(Q, K, V, mask; scale)

Legal cases: 1. softmax over the last axis of rank-4 scores of rank-4 Q, K, V, none of which the product broadcasts
(K and V may have one head for all of Q's); 2. scores = Q Kt, scaled by constants of one element at Q, at K, at the
scores or at several of these; 3. then masks that do not broadcast the scores, added, or by Where(allowed, scores, low)
or Where(forbidden, low, scores); 4. between softmax and the product with V only a NaN guard, Identity, Dropout at
inference, or a cast to the same type; 5. no value inside is read outside of it. A ready-made `Attention` is normalised:
its scale explicit, its mask's last two dims the query and key length. An additive mask that is Where(allowed, 0, low)
becomes the boolean mask `allowed`: for every row with an allowed key both are the same (rows without one are undefined,
see docs/design.md).

Source of the semantics: ONNX operator specification, Attention-23.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..base import MisfitError
from ..prover import ProvedPass
from ..sites import inherit
from .masks import LOW, expand, negate, simplify
from .values import (
    add_constant,
    consumers,
    dim,
    insert,
    once,
    only_consumer,
    producer,
    rank,
    scalar,
    split_scalar,
)


@dataclass(frozen=True)
class Mask:
    """An added mask, or the condition of a Where: the keys that are allowed, or those that it `forbids`."""

    value: ir.Value
    forbids: bool = False


@dataclass
class Pattern:
    """What was read off the dataflow around one Softmax."""

    softmax: ir.Node
    query: ir.Value
    key: ir.Value  # Kt: [batch, heads, size, length]
    value: ir.Value
    scale: float
    end: ir.Node  # the product with V
    masks: list[Mask] = field(default_factory=list)
    spelling: list[str] = field(default_factory=list)


class LiftAttention(ProvedPass):
    """softmax(scale * Q Kt + mask) V -> `Attention`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Attention":
                modified |= self._normalise(node)
            elif node.domain == "" and node.op_type == "Softmax":
                modified |= self._lift(node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, softmax: ir.Node) -> bool:
        try:
            pattern = _read(softmax)
        except MisfitError as misfit:
            if _is_site(softmax):
                self.log.missed("attention", softmax, "softmax", str(misfit))
            return False
        key, scale = _untranspose(pattern.key, pattern.end)
        masks = _masks(pattern)
        mask = _join(pattern, masks, key)
        attention = inherit(ir.node("Attention", [pattern.query, key, pattern.value, mask]), softmax)
        attention.attributes["scale"] = ir.AttrFloat32("scale", pattern.scale * scale)
        leaves = [pattern.query, key, pattern.value, *masks]
        return self.replace("attention", pattern.end, attention, ", ".join(pattern.spelling), leaves, mask)

    def _normalise(self, node: ir.Node) -> bool:
        """The exporter's own Attention: explicit scale, full mask."""
        query, key, _, mask, past, *_ = [*node.inputs, None, None]
        modified = False
        # of inputs [batch, length, heads * size] the attribute tells the heads
        heads = 1 if rank(query) == 4 else node.attributes.get_int("q_num_heads", 0)
        width = dim(query, -1)
        if "scale" not in node.attributes and heads and isinstance(width, int):
            node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(width // heads))
            modified = True
        if mask is not None and query is not None and key is not None and None not in (rank(query), rank(key)):
            read = len(node.outputs) > 3  # the fourth output may be the scores as they are behind the mask
            full = expand(mask if read else simplify(mask), node, query, key, past is not None)
            modified |= full is not mask
            node.replace_input_with(3, full)
        self.log.lifted("attention", node, "Attention")
        return modified


def _read(softmax: ir.Node) -> Pattern:
    scores = softmax.inputs[0]
    if rank(scores) != 4:
        raise MisfitError(f"the scores have rank {rank(scores)}, not 4")
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        raise MisfitError(f"softmax is over axis {softmax.attributes.get_int('axis', -1)}, not the last")
    end, value, guard = _weights_to_output(softmax)
    read = _read_scores(scores)
    query, query_scale = _unscale(read.product.inputs[0])
    key, key_scale = _unscale(read.product.inputs[1])
    _check_dims(query, key, value, [mask.value for mask in read.masks])
    return Pattern(
        softmax=softmax,
        query=query,
        key=key,
        value=value,
        scale=read.scale * query_scale * key_scale,
        end=end,
        masks=read.masks,
        spelling=[
            "softmax(QK)V",
            *read.spelling,
            *["scaled Q, K"] * (query_scale != 1 or key_scale != 1),
            *guard,
        ],
    )


def _check_dims(query: ir.Value, key: ir.Value, value: ir.Value, masks: list[ir.Value]) -> None:
    """MatMul, Add and Where broadcast; `Attention` does not, but for one K and V head for all heads of Q."""
    ranks = [rank(operand) for operand in (query, key, value)]
    if ranks != [4, 4, 4]:
        raise MisfitError(f"Q, K and V have ranks {ranks}, not 4")
    for axis, name in ((0, "batch"), (1, "head")):
        q, k, v = (dim(operand, axis) for operand in (query, key, value))
        if _broadcasts(k, v) or _broadcasts(v, k) or _broadcasts(q, k) or (axis == 0 and _broadcasts(k, q)):
            raise MisfitError(f"the {name} dims of Q, K and V are {q}, {k} and {v}: one is broadcast")
    sizes = [dim(query, 0), dim(query, 1), dim(query, 2), dim(key, 3)]
    for mask in masks:
        wide = [axis for axis in range(-4, 0) if _broadcasts(sizes[axis], dim(mask, axis))]
        if wide or (rank(mask) or 0) > 4:
            raise MisfitError(f"a mask of shape {mask.shape} broadcasts the scores {sizes}")


def _broadcasts(size: int | str | None, other: int | str | None) -> bool:
    """Whether an axis of `size` is known to be repeated to meet `other`."""
    return size == 1 and other is not None and other != 1


def _weights_to_output(softmax: ir.Node) -> tuple[ir.Node, ir.Value, list[str]]:
    """The product with V, V, and what stood between."""
    weights, passed = softmax.outputs[0], []
    while True:
        guarded = _past_nan_guard(weights)
        if guarded is not None:
            weights = guarded
            passed.append("NaN guard")
            continue
        node = only_consumer(weights)
        if node is None:
            raise MisfitError("the attention weights are read more than once, or are an output of the graph")
        if node.op_type == "MatMul" and node.inputs[0] is weights and node.inputs[1] is not None:
            return node, node.inputs[1], passed
        if not _passes_on(node, weights):
            raise MisfitError(f"{node.op_type} stands between softmax and the product with V")
        weights = node.outputs[0]


def _passes_on(node: ir.Node, weights: ir.Value) -> bool:
    """Whether `node` gives `weights` as they are."""
    if node.op_type == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        return training is None or scalar(training) == 0
    return node.op_type in ("Identity", "Cast") and _same_type(node.outputs[0], weights)


def _same_type(one: ir.Value | None, other: ir.Value) -> bool:
    return one is not None and one.dtype is not None and one.dtype == other.dtype


def _past_nan_guard(weights: ir.Value) -> ir.Value | None:
    """Where(IsNaN(w), 0, w), which the exporter writes for rows with no allowed key -> its output."""
    readers = consumers(weights)
    checks = [node for node in readers if node.op_type == "IsNaN"]
    choices = [node for node in readers if node.op_type == "Where"]
    if len(readers) != 2 or len(checks) != 1 or len(choices) != 1 or weights.is_graph_output():
        return None
    condition, zero, kept = choices[0].inputs
    if condition is checks[0].outputs[0] and scalar(zero) == 0 and kept is weights:
        return choices[0].outputs[0]
    return None


@dataclass
class Scores:
    """What lies between softmax's input and the product of Q and K."""

    product: ir.Node
    scale: float = 1.0
    masks: list[Mask] = field(default_factory=list)
    spelling: list[str] = field(default_factory=list)


def _read_scores(scores: ir.Value | None) -> Scores:
    """From softmax's input back to Q Kt."""
    node = producer(scores)
    if scores is None or node is None:
        raise MisfitError("the scores are no result of a standard op")
    if scores.is_graph_output() or len(consumers(scores)) != 1:
        raise MisfitError(f"the scores behind {node.op_type} are read more than once")
    if node.op_type == "MatMul":
        return Scores(node)
    if node.op_type == "Add":
        return _read_sum(node)
    if node.op_type in ("Mul", "Div") and (step := _scaled(node)) is not None:
        inner = _read_scores(step[0])
        if inner.masks:
            raise MisfitError("the scores are scaled after the mask was applied")
        return Scores(inner.product, inner.scale * step[1], [], [*inner.spelling, "scaled scores"])
    if node.op_type in ("Identity", "Cast") and _same_type(node.inputs[0], scores):
        return _read_scores(node.inputs[0])
    if node.op_type == "Where" and (chosen := _masked(node)) is not None:
        inner = _read_scores(chosen[0])
        return Scores(inner.product, inner.scale, [*inner.masks, chosen[1]], [*inner.spelling, "Where mask"])
    raise MisfitError(f"{node.op_type} stands between the product of Q and K and softmax")


def _masked(node: ir.Node) -> tuple[ir.Value | None, Mask] | None:
    """The scores and the mask of Where(allowed, scores, low) or Where(forbidden, low, scores)."""
    condition, then, other = node.inputs
    assert condition is not None
    for scores, low, forbids in ((then, scalar(other), False), (other, scalar(then), True)):
        if low is not None and low <= LOW:
            return scores, Mask(condition, forbids)
    return None


def _read_sum(node: ir.Node) -> Scores:
    """scores + mask, in either order: the scores are the side that leads to a product."""
    found: list[tuple[Scores, ir.Value]] = []
    reasons = []
    for side, other in (node.inputs, node.inputs[::-1]):
        assert other is not None
        try:
            found.append((_read_scores(side), other))
        except MisfitError as misfit:
            reasons.append(str(misfit))
    if not found:
        raise MisfitError("neither side of the Add leads to the product of Q and K: " + "; ".join(reasons))
    if len(found) == 2:
        raise MisfitError("both sides of the Add are products: it is not clear which is the mask")
    inner, mask = found[0]
    return Scores(inner.product, inner.scale, [*inner.masks, Mask(mask)], [*inner.spelling, "added mask"])


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, factor) of x * constant or x / constant."""
    parts = split_scalar(node)
    if parts is None:
        return None
    value, number = parts
    if node.op_type == "Mul":
        return value, number
    return (value, 1 / number) if value is node.inputs[0] and number != 0 else None


def _unscale(value: ir.Value | None) -> tuple[ir.Value, float]:
    """`value` without the constants of one element that it was multiplied by, and their product."""
    assert value is not None
    scale = 1.0
    while (node := producer(value, "Mul", "Div")) is not None and (step := _scaled(node)) is not None:
        if rank(step[0]) != rank(value):
            break
        value, factor = step
        scale *= factor
    return value, scale


def _untranspose(key: ir.Value, end: ir.Node) -> tuple[ir.Value, float]:
    """K from Kt, without the constants that it was multiplied by before it was transposed, and their product."""
    node = producer(key, "Transpose", "Reshape")
    if node is not None and node.op_type == "Transpose":
        source, scale = _unscale(node.inputs[0])
        perm = list(node.attributes.get_ints("perm") or [3, 2, 1, 0])
        perm[-1], perm[-2] = perm[-2], perm[-1]
        return source if perm == [0, 1, 2, 3] else _transpose(node, source, perm, key), scale
    flat = producer(node.inputs[0], "Transpose") if node is not None else None
    if flat is not None and flat.attributes.get_ints("perm") == (0, 2, 1):
        merged = producer(flat.inputs[0], "Reshape")
        inner = merged.inputs[0] if merged is not None else None
        if inner is not None and _only_swaps(inner, flat.inputs[0], key):
            return _unscale(inner)
    return _transpose(end, key, [0, 1, 3, 2], key), 1.0


def _transpose(before: ir.Node, source: ir.Value, perm: list[int], key: ir.Value) -> ir.Value:
    """K, of the shape of Kt with its last two axes swapped."""
    made = insert(before, "Transpose", [source], perm=perm)
    made.type = key.type
    made.shape = None if key.shape is None else ir.Shape([key.shape[axis] for axis in (0, 1, 3, 2)])
    return made


def _only_swaps(inner: ir.Value, flat: ir.Value | None, key: ir.Value) -> bool:
    """Whether [B, H, S, D] -> [B*H, S, D] -> [B*H, D, S] -> [B, H, D, S] keeps batch and heads apart as they were."""
    if rank(inner) != 4 or rank(key) != 4 or rank(flat) != 3:
        return False
    batch, heads, length, size = (dim(inner, axis) for axis in range(4))
    known = None not in (heads, length, size)
    return (
        known
        and [dim(flat, axis) for axis in (1, 2)] == [length, size]
        and [dim(key, axis) for axis in (1, 2, 3)] == [heads, size, length]
        and dim(key, 0) in (batch, None)
    )


def _masks(pattern: Pattern) -> list[ir.Value]:
    """The masks that were found, each in its simplest form: boolean, True where a key is allowed, or added."""
    return [negate(pattern.end, mask.value) if mask.forbids else simplify(mask.value) for mask in pattern.masks]


def _join(pattern: Pattern, masks: list[ir.Value], key: ir.Value) -> ir.Value | None:
    """One mask of all; its last two dims are query and key length."""
    end = pattern.end
    if not masks:
        return None
    allowed = _fold(end, "And", [mask for mask in masks if mask.dtype == ir.DataType.BOOL])
    added = _fold(end, "Add", [mask for mask in masks if mask.dtype != ir.DataType.BOOL])
    total = added if allowed is None else allowed
    if allowed is not None and added is not None:
        dtype = (added.dtype or ir.DataType.FLOAT).numpy()
        assert end.graph is not None
        lowest = ml_dtypes.finfo(dtype).min  # type: ignore[no-untyped-call]
        low = add_constant(end.graph, f"lowest.{dtype}", np.array(lowest, dtype))
        total = once(end, "Where", [allowed, added, low])
        total.type = added.type
    assert total is not None
    return expand(total, end, pattern.query, key)


def _fold(site: ir.Node, op_type: str, masks: list[ir.Value]) -> ir.Value | None:
    """All masks joined by And (boolean) or Add (additive)."""
    total = masks[0] if masks else None
    for mask in masks[1:]:
        assert total is not None
        total = once(site, op_type, [total, mask])
    return total


def _is_site(softmax: ir.Node) -> bool:
    """Whether a Softmax that did not fit is an attention at all: its weights meet a product with a computed tensor."""
    ahead, seen = [softmax.outputs[0]], 0
    while ahead and seen < 16:
        seen += 1
        for node in consumers(ahead.pop()):
            if node.op_type in ("MatMul", "Einsum"):
                return all(value is not None and value.const_value is None for value in node.inputs)
            if node.op_type in ("Where", "IsNaN", "Cast", "Identity", "Dropout", "Reshape", "Transpose", "Mul", "Add"):
                ahead.extend(node.outputs)
    return False
