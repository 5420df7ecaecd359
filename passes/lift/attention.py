"""Attention, whatever the exporter spelled -> one standard `Attention` (opset 23), [batch, heads, length, head size].

From each Softmax the dataflow is walked both ways:

    softmax(scale * Q Kt + mask) V   ->   Attention(Q, K, V, mask; scale)

Legal cases: 1. softmax over the last axis of rank-4 scores; 2. scores = Q Kt, scaled by constants of one element at Q,
at K, at the scores or at several of these; 3. then masks, added or by Where(allowed, scores, low); 4. between softmax
and the product with V only a NaN guard, Identity, Dropout at inference, or a cast to the same type; 5. no value inside
is read outside of it. A ready-made `Attention` is normalised: its scale explicit, its mask's last two dims the query
and key length. An additive mask that is Where(allowed, 0, low) becomes the boolean mask `allowed`: for every row with
an allowed key both are the same (rows without one are undefined, see docs/design.md).

Source of the semantics: ONNX operator specification, Attention-23.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...errors import GraphwrightError
from ..base import GraphPass
from ..sites import inherit
from .masks import LOW, expand, simplify
from .values import (
    consumers,
    dim,
    insert,
    only_consumer,
    producer,
    rank,
    scalar,
    split_scalar,
)


class MisfitError(GraphwrightError):
    """The first edge that did not fit."""


@dataclass
class Pattern:
    """What was read off the dataflow around one Softmax."""

    softmax: ir.Node
    query: ir.Value
    key: ir.Value  # [batch, heads, length, size], or transposed if `transposed`
    transposed: bool
    value: ir.Value
    scale: float
    end: ir.Node  # the product with V
    masks: list[ir.Value] = field(default_factory=list)
    spelling: list[str] = field(default_factory=list)


class LiftAttention(GraphPass):
    """softmax(scale * Q Kt + mask) V -> `Attention`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type == "Attention":
                modified |= self._normalise(node)
            elif node.domain == "" and node.op_type == "Softmax":
                modified |= self._lift(model.graph, node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, graph: ir.Graph, softmax: ir.Node) -> bool:
        try:
            pattern = _read(softmax)
        except MisfitError as misfit:
            if _is_site(softmax):
                self.log.missed("attention", softmax, "softmax", str(misfit))
            return False
        key = insert(pattern.end, "Transpose", [pattern.key], perm=[0, 1, 3, 2]) if pattern.transposed else pattern.key
        mask = _mask(pattern, key)
        attention = inherit(ir.node("Attention", [pattern.query, key, pattern.value, mask]), softmax)
        attention.attributes["scale"] = ir.AttrFloat32("scale", pattern.scale)
        old = pattern.end.outputs[0]
        attention.outputs[0].shape, attention.outputs[0].type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(
            graph, pattern.end, [pattern.end], [attention], [old], attention.outputs
        )
        self.log.lifted("attention", attention, ", ".join(pattern.spelling))
        return True

    def _normalise(self, node: ir.Node) -> bool:
        """The exporter's own Attention: explicit scale, full mask."""
        query, key = node.inputs[0], node.inputs[1]
        modified = False
        if "scale" not in node.attributes and rank(query) == 4 and isinstance(dim(query, -1), int):
            size = dim(query, -1)
            assert isinstance(size, int)
            node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(size))
            modified = True
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None and rank(query) == 4:
            assert query is not None
            assert key is not None
            full = expand(simplify(mask), node, query, key)
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
    spelling = read.spelling
    key, transposed = _untranspose(key)
    if query_scale != 1 or key_scale != 1:
        spelling.append("scaled Q, K")
    return Pattern(
        softmax=softmax,
        query=query,
        key=key,
        transposed=transposed,
        value=value,
        scale=read.scale * query_scale * key_scale,
        end=end,
        masks=read.masks,
        spelling=["softmax(QK)V", *spelling, *guard],
    )


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
        if node.op_type not in ("Identity", "Dropout", "Cast") or node.outputs[0].dtype != weights.dtype:
            raise MisfitError(f"{node.op_type} stands between softmax and the product with V")
        weights = node.outputs[0]


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
    masks: list[ir.Value] = field(default_factory=list)
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
    if node.op_type in ("Identity", "Cast") and node.inputs[0] is not None and node.inputs[0].dtype == scores.dtype:
        return _read_scores(node.inputs[0])
    if node.op_type == "Where" and (low := scalar(node.inputs[2])) is not None and low <= LOW:
        inner = _read_scores(node.inputs[1])
        assert node.inputs[0] is not None
        return Scores(inner.product, inner.scale, [*inner.masks, node.inputs[0]], [*inner.spelling, "Where mask"])
    raise MisfitError(f"{node.op_type} stands between the product of Q and K and softmax")


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
    return Scores(inner.product, inner.scale, [*inner.masks, mask], [*inner.spelling, "added mask"])


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
        value, factor = step
        scale *= factor
    return value, scale


def _untranspose(key: ir.Value) -> tuple[ir.Value, bool]:
    """K from Kt, and whether it is still transposed."""
    node = producer(key, "Transpose", "Reshape")
    if node is None or node.inputs[0] is None:
        return key, True
    if node.op_type == "Transpose":
        if node.attributes.get_ints("perm") == (0, 1, 3, 2):
            return node.inputs[0], False
        return _swapped(node), False
    flat = producer(node.inputs[0], "Transpose")
    if flat is None or flat.attributes.get_ints("perm") != (0, 2, 1):
        return key, True
    merged = producer(flat.inputs[0], "Reshape")
    inner = merged.inputs[0] if merged is not None else None
    return (inner, False) if inner is not None and _only_swaps(inner, flat.inputs[0], key) else (key, True)


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


def _swapped(node: ir.Node) -> ir.Value:
    """The transpose that gives K where `node` gives Kt: the same one with its last two axes swapped."""
    perm = list(node.attributes.get_ints("perm") or [3, 2, 1, 0])
    perm[-1], perm[-2] = perm[-2], perm[-1]
    new = inherit(ir.node("Transpose", [node.inputs[0]], {"perm": perm}), node)
    old = node.outputs[0]
    if old.shape is not None:
        new.outputs[0].shape = ir.Shape([old.shape[i] for i in (0, 1, 3, 2)])
    new.outputs[0].type = old.type
    assert node.graph is not None
    node.graph.insert_after(node, new)
    return new.outputs[0]


def _mask(pattern: Pattern, key: ir.Value) -> ir.Value | None:
    """One mask of all that were found; its last two dims are query and key length."""
    masks = [simplify(mask) for mask in pattern.masks]
    if not masks:
        return None
    booleans = [mask for mask in masks if mask.dtype == ir.DataType.BOOL]
    floats = [mask for mask in masks if mask.dtype != ir.DataType.BOOL]
    total = _fold(pattern.end, "And", booleans)
    added = _fold(pattern.end, "Add", floats)
    if total is None or added is None:
        return expand(total or added or masks[0], pattern.end, pattern.query, key)
    dtype = added.dtype or ir.DataType.FLOAT
    low = insert(pattern.end, "Constant", [], value=ir.tensor(np.array(np.finfo(np.float32).min, dtype=dtype.numpy())))
    both = insert(pattern.end, "Where", [total, added, low])
    both.dtype = dtype
    return expand(both, pattern.end, pattern.query, key)


def _fold(site: ir.Node, op_type: str, masks: list[ir.Value]) -> ir.Value | None:
    """All masks joined by And (boolean) or Add (additive)."""
    total = masks[0] if masks else None
    for mask in masks[1:]:
        dtype = mask.dtype
        total = insert(site, op_type, [total, mask])
        total.type = None if dtype is None else ir.TensorType(dtype)
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
