"""RMSNorm spelled in primitives -> one `RMSNormalization` (opset 23).

    x / sqrt(mean(x * x) + epsilon) * scale   ->   RMSNormalization(x, scale; epsilon)

From each mean of squares the dataflow is walked forward. Legal cases: 1. the mean over the last axes, of known sizes,
of a float tensor of at most 32 bits, by ReduceMean, or by ReduceSum or ReduceSumSquare and the number of elements, kept
as dims, or given back by Unsqueeze or Reshape; or ReduceL2 by the root of that number; 2. the square by Mul or Pow, the
root by Sqrt or Pow, the quotient by Div, or by Mul with the inverse; 3. epsilon of one element, inside the root, or
none: outside of it, added or as a bound, it is another function for small x; 4. a scale of the shape of the normalised
axes, optional, applied to x, to the root or to the quotient; where it is computed (1 + weight) that stays in front,
unless it is folded; 5. casts from a half type to float32 and back around any of it; 6. nothing else reads a value
between the mean and the norm's end.

Sources: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); ONNX operator specification,
RMSNormalization-23.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ..base import MisfitError
from ..prover import ProvedPass
from ..sites import inherit
from .means import Mean, axes_of, centred, mean_of_squares, sizes, uncast
from .norms import TYPES, Norm, Root, check_axes, divide, filled, invert, leaves_of, read_affine, read_root
from .values import consumers, producer, scalar, split_scalar

KIND, SPELLING = "rms_norm", "primitives"
STEPS = 16  # nodes between a mean of squares and the quotient, at most
_BETWEEN = frozenset(
    {"Add", "Sub", "Mul", "Div", "Max", "Clip", "Sqrt", "Pow", "Reciprocal", "Cast", "Unsqueeze", "Reshape", "Expand"}
)


class LiftRmsNorm(ProvedPass):
    """Mean of squares, root, quotient and scale over the last axes -> `RMSNormalization`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "RMSNormalization":
                self.log.lifted(KIND, node, "RMSNormalization")
            elif node.domain == "" and node.op_type in ("ReduceMean", "Div", "Mul"):
                modified |= self._lift(node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, node: ir.Node) -> bool:
        value = node.outputs[0]
        mean = mean_of_squares(value)
        is_root = mean is None and (mean := _root_mean_square(value)) is not None
        if mean is None or centred(mean.of) is not None:  # of deviations: a LayerNorm
            return False
        try:
            new, end = _read(mean, node, is_root)
        except MisfitError as misfit:
            if _divides(value, mean.of):
                self.log.missed(KIND, node, SPELLING, str(misfit))
            return False
        return self.replace(KIND, end, new, SPELLING, leaves_of(new))


def _root_mean_square(value: ir.Value) -> Mean | None:
    """ReduceL2(x) by the root of the number of its elements: the root already."""
    node = producer(value, "Div", "Mul")
    parts = split_scalar(node) if node is not None else None
    if node is None or parts is None or parts[1] == 0 or (node.op_type == "Div" and parts[0] is not node.inputs[0]):
        return None
    length = producer(parts[0], "ReduceL2")
    axes = axes_of(length) if length is not None else None
    if length is None or length.inputs[0] is None or axes is None:
        return None
    counted = sizes(length.inputs[0], axes)
    number = parts[1] if node.op_type == "Div" else 1 / parts[1]
    # float32 holds the inverse of such a root to 6e-8, but it may be written with fewer digits
    if counted is None or not math.isclose(number, math.sqrt(math.prod(counted)), rel_tol=1e-6):
        return None
    return Mean(value, length.inputs[0], axes, bool(length.attributes.get_int("keepdims", 1)))


def _read(mean: Mean, node: ir.Node, is_root: bool) -> tuple[ir.Node, ir.Node]:
    """The new node and the one that it stands for. Raises MisfitError."""
    x = mean.of
    shape = check_axes(mean)
    if x.dtype not in TYPES:
        raise MisfitError(f"it computes in {x.dtype.name if x.dtype is not None else 'an unknown type'}")
    if is_root and not mean.kept:
        raise MisfitError("the root mean square drops its axis")
    root = invert(Root(mean.value, 0.0, inverse=False)) if is_root else read_root(mean, x)
    end, scale = divide(root, shape, lambda value: uncast(value) is uncast(x), "x")
    norm = read_affine(Norm(x, root.epsilon, end, scale), shape, biased=False)
    assert node.graph is not None
    scale = norm.scale or filled(node.graph, 1, shape, norm.x.dtype)
    new = inherit(ir.node("RMSNormalization", [norm.x, scale], {"axis": -len(shape)}), node)
    new.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.epsilon)
    return new, norm.end


def _divides(value: ir.Value, x: ir.Value) -> bool:
    """Whether x is divided by, or multiplied with, a function of the mean of squares `value`: then it is a site."""
    ahead, seen = [value], 0
    while ahead and seen < STEPS:
        value, seen = ahead.pop(0), seen + 1
        for node in consumers(value):
            others = [operand for operand in node.inputs if operand is not None and operand is not value]
            if node.op_type in ("Mul", "Div") and any(uncast(operand) is uncast(x) for operand in others):
                return True
            any_operand = node.op_type in ("Add", "Unsqueeze", "Reshape", "Expand")  # epsilon may be anything, here
            if node.op_type in _BETWEEN and (any_operand or all(scalar(operand) is not None for operand in others)):
                ahead.append(node.outputs[0])
    return False
