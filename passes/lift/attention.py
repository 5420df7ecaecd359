"""Attention, whatever the exporter spelled -> one standard `Attention` (opset 23), [batch, heads, length, head size].

From each Softmax the dataflow is walked both ways, to the product of Q and K (scores.py) and to that with V
(weights.py):

    softmax(cap * tanh(scale * Q Kt / cap) + mask) V * gate   ->   Attention(Q, K, V, mask; scale, softcap) * gate

Legal cases: 1. products of any rank, Q and K in either order, softmax over the axis of the keys; 2. scores scaled by
constants of one element at Q, at K, at the scores or at several of these, or by tensors that are the same for all keys,
which go to Q; 3. then a soft-cap; 4. then masks (masks.py), added or by Where, also scaled together with the scores;
5. between softmax and the product with V gates that are the same for all keys, and what changes nothing; 6. Transposes
and Reshapes that keep batch and heads, queries, and keys apart; 7. no value inside is read outside of it. K and V whose
heads were repeated for Q's become those with fewer heads. A mask that is only causal becomes `is_causal`.

A ready-made `Attention` is normalised: its scale explicit, its mask as small as can be, with the query and key length
as last two dims, repeated heads of K and V not repeated.

Source of the semantics: ONNX operator specification, Attention-23.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..base import MisfitError, UnsayableError
from ..prover import ProvedPass
from ..region import Rows
from ..sites import inherit
from .custom_attention import enclose_attention, products_around
from .frames import Group
from .masks import conjuncts, expand, join, narrow, negate, simplify
from .operands import Heads, Sizes, bring, bring_mask, cast, is_one_group, restore, squeeze, swapped, unrepeated
from .scores import CUSTOM, Factor, Mask, ScoreReader, Scores, unscaled
from .sized_masks import Says, says
from .values import add_constant, consumers, dim, dims, follows_from, insert, rank, shape_only
from .weights import WeightReader, Weights, same_for

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Pattern:
    """What was read off the dataflow around one Softmax."""

    softmax: ir.Node
    scores: Scores
    weights: Weights
    keys: Group

    @property
    def spelling(self) -> str:
        """In words, from the product of Q and K on."""
        lead = {len(lead) for lead in self.scores.leads}
        regrouped = ["regrouped axes"] * (lead != {2})
        operands = [unscaled(value)[1] for value in self.scores.product.inputs]
        ready = ["scaled Q, K"] * any(scale != 1 for scale in operands)
        return ", ".join(["softmax(QK)V", *self.scores.spelling, *ready, *regrouped, *self.weights.spelling])


class LiftAttention(ProvedPass):
    """softmax(scale * Q Kt + mask) V -> `Attention`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        self._sized: dict[ir.Value, Says] = {}
        self.functions = model.functions
        RemoveUnusedNodesPass()(model)  # what the rules before left without a reader would count as one
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Attention":
                modified |= self._normalise(node)
            elif node.domain == "" and node.op_type == "Softmax":
                # again for each product with a V of its own
                while node.outputs[0].consumers() and self._lift(model, node):
                    modified = True
            elif node.domain == "" and node.op_type == "Exp":
                made = enclose_attention(model, node, CUSTOM)
                modified |= made is not None and self._enclose(made, "exponentials that are no softmax of the scores")
        RemoveUnusedNodesPass()(model)  # what was made for a rewrite that was not made after all
        return ir.passes.PassResult(model, modified)

    def _lift(self, model: ir.Model, softmax: ir.Node) -> bool:
        try:
            return self._replace(_read(softmax))
        except UnsayableError as misfit:
            if (made := enclose_attention(model, softmax, misfit.name)) is not None:
                return self._enclose(made, str(misfit))
            reason = str(misfit)
        except MisfitError as misfit:
            reason = str(misfit)
        if products_around(softmax) is not None:
            self.log.missed("attention", softmax, "softmax", reason)
        return False

    def _enclose(self, made: list[ir.Node], reason: str) -> bool:
        """Put a function in the place of what computes its outputs."""
        call, end, *others = made
        graph = end.graph
        modified = self.replace("attention", end, call, "softmax(QK)V", others=others, reason=reason)
        if others and isinstance(graph, ir.Graph):
            graph.sort()  # what reads the further outputs may stand before the product with V
        return modified

    def _replace(self, pattern: Pattern) -> bool:
        end, inputs = pattern.weights.end, _operands(pattern)
        mask = join(end, inputs.masks)
        full = None if mask is None else expand(mask, end, inputs.query, inputs.key)
        said = self._says(mask) if mask is not None and all(map(shape_only, inputs.masks)) else ""
        core = _attention(pattern, inputs, None if said else full, said == "causal")
        made = _finish(pattern, core, inputs)
        rows = None if full is None else Rows(full, core.outputs[0], pattern.weights.flipped)
        return self.swap("attention", end, made, core, pattern.spelling, inputs.leaves, rows)

    def _says(self, mask: ir.Value) -> Says:
        """What a mask that follows from sizes says; asked once for all sites that share it."""
        if mask not in self._sized:
            self._sized[mask] = says(mask, self.functions)
        return self._sized[mask]

    def _normalise(self, node: ir.Node) -> bool:
        """The exporter's own Attention."""
        query, key, value, mask, past, *_ = [*node.inputs, None, None]
        modified = _make_scale_explicit(node)
        if query is None or key is None or value is None or None in (rank(query), rank(key)):
            self.log.lifted("attention", node, "Attention")
            return modified
        if mask is not None:
            full = expand(mask, node, query, key, past is not None)
            modified |= full is not mask
            node.replace_input_with(3, full)
        if len(node.outputs) == 1 and past is None and self._shrink(node, query, key, value, mask):
            return True
        self.log.lifted("attention", node, "Attention")
        return modified

    def _shrink(self, node: ir.Node, query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value | None) -> bool:
        """The same with the smallest mask, and with K and V as they were before their heads were repeated."""
        small = None if mask is None else simplify(narrow(mask))
        few_keys, few_values = _fewer_heads(query, key, value)
        said = self._says(small) if small is not None and shape_only(small) else ""
        if small is mask and few_keys is key and not said:
            return False
        full = None if small is None else expand(small, node, query, few_keys)
        inputs = [query, few_keys, few_values, None if said else full]
        new = inherit(ir.node("Attention", inputs, dict(node.attributes)), node)
        if said == "causal":
            new.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
        new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        assert node.graph is not None
        node.graph.insert_before(node, new)
        leaves = [query, few_keys, few_values, *([] if small is None or said else [small])]
        rows = None if full is None else Rows(full, new.outputs[0])
        if not self.swap("attention", node, new.outputs[0], new, "Attention", leaves, rows, quiet=True):
            return False
        self.log.lifted("attention", new, "Attention")
        return True


def _make_scale_explicit(node: ir.Node) -> bool:
    query = node.inputs[0]
    # of inputs [batch, length, heads * size] the attribute tells the heads
    heads = 1 if rank(query) == 4 else node.attributes.get_int("q_num_heads", 0)
    width = dim(query, -1)
    if "scale" in node.attributes or not heads or not isinstance(width, int):
        return False
    node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(width // heads))
    return True


def _read(softmax: ir.Node) -> Pattern:
    """The likeliest reading that fits. Raises MisfitError with the reason of the first that does not."""
    count = rank(softmax.inputs[0])
    if count is None:
        raise MisfitError("the rank of the scores is not known")
    axis = softmax.attributes.get_int("axis", -1) % count
    reasons: list[MisfitError] = []
    for scores in ScoreReader().read(softmax.inputs[0]):
        try:
            return _fit(softmax, scores, axis)
        except MisfitError as misfit:
            reasons.append(misfit)
    raise reasons[0]


def _fit(softmax: ir.Node, scores: Scores, axis: int) -> Pattern:
    keys = scores.frame.axes[axis].group
    if keys == "lead" or scores.frame.where(keys) != (axis,):
        raise MisfitError(f"softmax is over axis {axis} of the scores, which is not that of the keys")
    weights = _weights(softmax, scores, keys)
    inside = {*scores.nodes, *weights.nodes}
    side = {value.producer() for value in (*(m.value for m in scores.masks), *(f.value for f in scores.factors))}
    for node in scores.nodes:
        readers = [reader for reader in consumers(node.outputs[0]) if reader.op_type != "Shape"]
        if not inside.issuperset(readers) or node in side or node.outputs[0].is_graph_output():
            raise UnsayableError(f"the scores behind {node.op_type} are read more than once", CUSTOM)
    for factor in (*scores.shifts, *scores.factors):
        if not same_for(keys, factor.value, factor.frame):
            raise UnsayableError(f"the scores meet {factor.value.shape}, which is not the same for all keys", CUSTOM)
    return Pattern(softmax, scores, weights, keys)


def _weights(softmax: ir.Node, scores: Scores, keys: Group) -> Weights:
    """From softmax to V. Raises UnsayableError where softmax turns out to be over the queries."""
    try:
        return WeightReader(softmax, scores.frame, keys).read()
    except UnsayableError:
        raise
    except MisfitError as misfit:
        queries: Group = "rows" if keys == "columns" else "columns"
        try:
            WeightReader(softmax, scores.frame, queries).read()
        except MisfitError:
            raise misfit from None
        raise UnsayableError("softmax is over the queries, not the keys", "QueryAttention") from None


@dataclass(frozen=True)
class Operands:
    """Inputs of the Attention to be made, and the tensors of the graph as it was that they are computed from."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    masks: list[ir.Value]
    scale: float
    heads: Heads
    sizes: Sizes
    leaves: list[ir.Value]


def _operands(pattern: Pattern) -> Operands:
    scores, weights, end = pattern.scores, pattern.weights, pattern.weights.end
    left, left_scale = unscaled(scores.product.inputs[0])
    right, right_scale = swapped(unscaled(scores.product.inputs[1])[0], end)
    scale = scores.scale * left_scale * right_scale * unscaled(scores.product.inputs[1])[1]
    if not scale > 0:  # as runtimes demand
        raise UnsayableError(f"the scale is {scale:g}", CUSTOM)
    query, key = (left, right) if pattern.keys == "columns" else (right, left)
    value = swapped(weights.value, end)[0] if weights.flipped else weights.value
    if weights.flipped:
        scale_of_value = swapped(weights.value, end)[1]
        if scale_of_value != 1:
            raise MisfitError("V is scaled before it is transposed")
    lead, behind = scores.leads[0], weights.frame.sizes("lead")
    grouped = lead == behind and lead[2:] not in ((), (1,)) and is_one_group(key) and is_one_group(value)
    heads = Heads(lead[:1], lead[1:]) if grouped else Heads.of([*scores.leads, behind], query)
    found = [mask.value for mask in scores.masks]
    sizes = Sizes(end, [query, key, value, *found])
    fewer = len(lead) == 2 == len(behind)
    one = fewer and dim(key, -3) == 1 == dim(value, -3) and lead[1] != 1
    query = bring(query, lead, heads, sizes)
    leaves = [query, *(factor.value for factor in scores.factors)]
    read = [key, value]
    if grouped:  # the heads of Q in groups, a head of K and V for each
        key, value = squeeze(key, [2], sizes), squeeze(value, [2], sizes)
    else:
        key = bring(key, lead, heads, sizes, one_head=one)
        value = bring(value, behind, heads, sizes, one_head=one)
    for factor in scores.factors:
        query = _times(query, factor, pattern.keys, heads, sizes)
    few = _fewer_heads(query, key, value)
    leaves += read if few == (key, value) else few  # what was repeated, perhaps not by views alone
    key, value = few
    simple = [_simple(mask, sizes.before) for mask in scores.masks]
    masks = [
        _mask(mask, value, pattern, heads, sizes, query.dtype) for mask, value in zip(scores.masks, simple, strict=True)
    ]
    judged = scores.product.outputs[:1]  # what is told by the scores themselves is no mask of its own
    flags = [flag for flag in (*scores.flags, *weights.flags) if not follows_from(flag, judged)]
    leaves += _sources(simple, flags)
    key, value = cast(key, query.dtype, end), cast(value, query.dtype, end)
    return Operands(query, key, value, masks, scale, heads, sizes, leaves)


def _sources(masks: list[ir.Value], flags: list[ir.Value]) -> list[ir.Value]:
    """What masks are computed from: `masks` themselves, or `flags` that they are made of, and what is added."""
    told = dict.fromkeys(part for flag in flags for part in conjuncts(flag))
    found, ahead = list(told), list(masks)
    while ahead:
        for part in conjuncts(ahead.pop()):
            node = part.producer() if part not in told and follows_from(part, told) else None
            found += [part] * (node is None)
            ahead += [value for value in node.inputs if value is not None] if node is not None else []
    return [part for part in dict.fromkeys(found) if not shape_only(part)]


def _simple(mask: Mask, before: ir.Node) -> ir.Value:
    """A mask in its simplest form: boolean, True where a key is allowed, or added."""
    if mask.kind == "forbidden":
        return narrow(negate(before, mask.value))
    small = narrow(mask.value)
    return simplify(small) if mask.kind == "added" and mask.factor > 0 else small


def _mask(
    mask: Mask, value: ir.Value, pattern: Pattern, heads: Heads, sizes: Sizes, dtype: ir.DataType | None
) -> ir.Value:
    """`value`, the mask in its simplest form, scaled and brought to the axes of the standard."""
    if mask.kind == "added" and value.dtype != ir.DataType.BOOL:
        value = _by(value, mask.factor, sizes.before)
    value = bring_mask(mask, value, heads, pattern.keys, sizes)
    return value if value.dtype == ir.DataType.BOOL else cast(value, dtype, sizes.before)


def _times(value: ir.Value, factor: Factor, keys: Group, heads: Heads, sizes: Sizes) -> ir.Value:
    """`value` [batch, heads, length, size] times (or by) a factor that is the same for all keys."""
    brought = bring_mask(Mask(factor.value, "added", factor.frame), factor.value, heads, keys, sizes)
    made = insert(sizes.before, "Div" if factor.divides else "Mul", [value, cast(brought, value.dtype, sizes.before)])
    made.type, made.shape = value.type, value.shape
    return made


def _by(value: ir.Value, number: float, before: ir.Node) -> ir.Value:
    """`value` times a number."""
    if number == 1:
        return value
    assert before.graph is not None
    assert value.dtype is not None
    array = np.array(number, value.dtype.numpy())
    factor = add_constant(before.graph, f"factor.{number:g}.{value.dtype.name.lower()}", array)
    made = insert(before, "Mul", [value, factor])
    made.type, made.shape = value.type, value.shape
    return made


def _fewer_heads(query: ir.Value, key: ir.Value, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """K and V without the repetition of their heads, where both were repeated alike."""
    (few_keys, keys), (few_values, values) = unrepeated(key), unrepeated(value)
    same = keys == values != 1 and dim(few_keys, 1) == dim(few_values, 1) and rank(query) == 4
    return (few_keys, few_values) if same else (key, value)


def _attention(pattern: Pattern, inputs: Operands, mask: ir.Value | None, causal: bool) -> ir.Node:
    """The op, which stands nowhere yet."""
    node = inherit(ir.node("Attention", [inputs.query, inputs.key, inputs.value, mask]), pattern.softmax)
    node.attributes["scale"] = ir.AttrFloat32("scale", inputs.scale)
    if pattern.scores.cap:
        node.attributes["softcap"] = ir.AttrFloat32("softcap", pattern.scores.cap)
    if causal:
        node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    wide = pattern.softmax.outputs[0].dtype
    if inputs.query.dtype in HALVES and wide is not None and wide not in HALVES:
        node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", int(wide))
    return node


def _finish(pattern: Pattern, node: ir.Node, inputs: Operands) -> ir.Value:
    """Put `node` in front of the product with V, and behind it what brings its result to where that product had it."""
    weights, sizes = pattern.weights, inputs.sizes
    end, made = weights.end, node.outputs[0]
    assert end.graph is not None
    end.graph.insert_before(end, node)
    made.type = inputs.query.type
    made.shape = ir.Shape([*(dims(inputs.query) or [])[:3], dim(inputs.value, -1)])
    for gate in weights.gates:
        made = _times(made, gate, pattern.keys, inputs.heads, sizes)
    made = _by(made, weights.scale, end)
    made = restore(made, weights.frame.sizes("lead"), inputs.heads, sizes)
    if weights.flipped:
        own = dims(made) or []
        flipped = insert(end, "Transpose", [made], perm=[*range(len(own) - 2), len(own) - 1, len(own) - 2])
        flipped.type, flipped.shape = made.type, ir.Shape([*own[:-2], own[-1], own[-2]])
        made = flipped
    made = cast(made, end.outputs[0].dtype, end)
    made.shape = end.outputs[0].shape or made.shape
    return made
