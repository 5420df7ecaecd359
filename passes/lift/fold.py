"""Constants folded and shapes inferred before the lift rules look at a graph: onnxscript's optimizer, made exact.

Its own list is taken over, but for what changes the answer: its rules `x + 0` and `x * 1` also take 1e-12 for 0 (the
epsilon of BERT's norms) and 1.000001 for 1, `Relu(Clip(x, -1, -0.5))` becomes the Clip alone, and an initializer that
a rule makes can push out another of the same name that is still read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)
from onnxscript import rewriter
from onnxscript.optimizer import _constant_folding as folding
from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules import common as rules

from .values import add_constant, constant, is_constant

ROUNDS = 2  # folding makes room for rules, and these for folding


class Fold(ir.passes.InPlacePass):
    """Inline functions, infer shapes, fold constants; every constant an initializer or a Constant node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for graph in model.graphs():
            for value in graph.initializers.values():  # a graph made by hand need not say what its tensors say
                if value.const_value is not None:
                    value.type = value.type or ir.TensorType(value.const_value.dtype)
                    value.shape = value.shape or ir.Shape(value.const_value.shape.numpy())
        InlinePass()(model)
        _split_weights(model)
        for _ in range(ROUNDS):
            FoldConstants()(model)
            rewriter.RewritePass(RULES)(model)
            _keep_initializers(model)
            RemoveUnusedNodesPass()(model)
        for step in (
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            LiftSubgraphInitializersToMainGraphPass(),
            DeduplicateInitializersPass(),
            CommonSubexpressionEliminationPass(),
            NameFixPass(),
        ):
            step(model)
        if _bodies_lack_types(model):
            ShapeInferencePass()(model)  # onnxscript's own does not look into bodies
        return ir.passes.PassResult(model, True)


def _bodies_lack_types(model: ir.Model) -> bool:
    """Whether there is something to infer in the body of an If, Loop or Scan, all of it tensors.

    Of sequences and optionals onnx_ir's pass makes tensors.
    """
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    if any(isinstance(value.type, ir.SequenceType | ir.OptionalType) for value in values):
        return False
    bodies = (node for node in model.graph.all_nodes() if node.graph is not model.graph)
    return any(value.type is None and "Sequence" not in node.op_type for node in bodies for value in node.outputs)


def _split_weights(model: ir.Model) -> None:
    """Constants for the parts of a constant: onnxscript folds no node of several outputs, and packed projections of
    attention would be products with something that is computed."""
    for node in list(model.graph.all_nodes()):
        if node.domain != "" or node.op_type != "Split" or (array := constant(node.inputs[0])) is None:
            continue
        if array.dtype.kind in "OSU":  # of strings
            continue
        axis = node.attributes.get_int("axis", 0) % array.ndim
        count = len(node.outputs)
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if (len(node.inputs) > 1 and node.inputs[1] is not None and given is None) or node.graph is None:
            continue
        part = -(-array.shape[axis] // count)
        sizes = [part] * (count - 1) if given is None else [int(size) for size in given[:-1]]
        for value, piece in zip(node.outputs, np.split(array, np.cumsum(sizes), axis=axis), strict=True):
            if value.is_graph_output():
                continue
            made = add_constant(node.graph, str(value.name), np.ascontiguousarray(piece))
            ir.convenience.replace_all_uses_with(value, made)
    RemoveUnusedNodesPass()(model)


class FoldConstants(folding.FoldConstantsPass):
    """onnxscript's, but for the nodes that it fails on."""

    def __init__(self) -> None:
        super().__init__(
            shape_inference=True,
            input_size_limit=folding.DEFAULT_CONSTANT_FOLD_INPUT_SIZE_LIMIT,
            output_size_limit=folding.DEFAULT_CONSTANT_FOLD_OUTPUT_SIZE_LIMIT,
        )

    def process_node(self, node: ir.Node, is_function: bool) -> folding.Replacement | None:
        # it asks for the rank of a `split` whose value is not known, and makes of CastLike a Cast that saturates
        unknown = node.op_type == "SplitToSequence" and len(node.inputs) > 1 and not is_constant(node.inputs[1])
        if unknown or (node.op_type == "CastLike" and node.attributes):
            return None
        return super().process_node(node, is_function)


def _exactly(op_type: str, number: float, swapped: bool = False) -> pattern.RewriteRule:
    """x <op> number -> x, for just that number."""
    other = pattern.Constant(number, rel_tol=0.0, abs_tol=0.0)

    def before(op: Any, x: Any) -> Any:
        return getattr(op, op_type)(*((other, x) if swapped else (x, other)))

    return pattern.RewriteRule(before, lambda op, x: op.Identity(x), name=f"{op_type} of {number:g}")


class OfOp(pattern.RewriteRule):
    """A rule that only looks at nodes of its own op: of forty rules at each node, most would look in vain."""

    def __init__(self, rule: pattern.RewriteRule) -> None:
        self.__dict__.update(rule.__dict__)
        (node,) = rule._target_pattern.output_nodes  # one of two would be looked for in the whole graph, at each node
        self.op_type = node.op_type

    def try_rewrite(
        self, model: ir.Model, graph_or_function: ir.Graph | ir.Function, node: ir.Node, **options: Any
    ) -> Any:
        if node.op_type != self.op_type:
            return None
        return super().try_rewrite(model, graph_or_function, node, **options)


NO_OPS = [("Mul", 1.0, False), ("Mul", 1.0, True), ("Add", 0.0, False), ("Add", 0.0, True), ("Sub", 0.0, False)]
FROM_ONNXSCRIPT = [
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_conv_transpose_rule,
    rules.remove_optional_bias_from_gemm_rule,
    # not slice_split_rule: its pattern has two ends, so that its cost grows with the square of the graph
]
RULES = pattern.RewriteRuleSet(
    [OfOp(rule) for rule in (*(_exactly(*each) for each in [*NO_OPS, ("Div", 1.0, False)]), *FROM_ONNXSCRIPT)]
)


def _keep_initializers(model: ir.Model) -> None:
    """Give back to the graph the constants that nodes read but that others of their name have pushed out."""
    graph = model.graph
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is None or value.const_value is None or value.producer() is not None or value.graph is not None:
                continue
            name, number = value.name, 1
            while value.name in graph.initializers:
                value.name, number = f"{name}.{number}", number + 1
            graph.register_initializer(value)
