"""LayerNorm spelled in primitives -> one `LayerNormalization` (opset 17).

    d = x - mean(x);  d / sqrt(mean(d * d) + epsilon) * scale + bias   ->   LayerNormalization(x, scale, bias; epsilon)

From each variance the dataflow is walked forward. Legal cases: 1. both means over the last axes, of known sizes, of a
float tensor of at most 32 bits (the op's own statistics are float32), by ReduceMean or by ReduceSum and the number of
elements, kept as dims, or given back by Unsqueeze or Reshape; 2. the square by Mul or Pow, the root by Sqrt or Pow, the
quotient by Div, or by Mul with the inverse; 3. the variance mean(d * d), or mean(x * x) - mean(x) ** 2, clamped at 0 or
not: in exact numbers the same, and where they differ, by cancellation, it is the standard op that is right; 4. epsilon
of one element, inside the root, or none; 5. scale and bias of the shape of the normalised axes, both optional, the
scale applied to the deviation, to the root or to the quotient: a scale or shift of another shape (one per sample, say)
stays behind the norm; 6. scale and bias applied before the mean is taken off, x * r + (bias - mean * r), r being the
scaled inverse root; 7. casts from a half type to float32 and back around any of it; 8. nothing else reads a value
between the variance and the norm's end.

Source of the semantics: ONNX operator specification, LayerNormalization-17.
"""

from __future__ import annotations

import onnx_ir as ir

from ..base import MisfitError
from ..prover import ProvedPass
from ..sites import inherit
from .means import Mean, deviates, mean_of, uncast, variance_of
from .norms import TYPES, Norm, Root, check_axes, divide, filled, follow, leaves_of, read_affine, read_root, vector
from .values import consumers, only_consumer

KIND, SPELLING = "layer_norm", "primitives"


class LiftLayerNorm(ProvedPass):
    """Mean, deviation, variance, root, scale and bias over the last axes -> `LayerNormalization`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "LayerNormalization":
                self.log.lifted(KIND, node, "LayerNormalization")
            elif node.domain == "" and node.op_type in ("ReduceMean", "Div", "Mul", "Sub"):
                modified |= self._lift(node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, node: ir.Node) -> bool:
        variance = variance_of(node.outputs[0])
        if variance is None:
            return False  # the mean of something else
        try:
            new, end = _read(variance, node)
        except MisfitError as misfit:
            self.log.missed(KIND, node, SPELLING, str(misfit))
            return False
        return self.replace(KIND, end, new, SPELLING, leaves_of(new))


def _read(variance: Mean, node: ir.Node) -> tuple[ir.Node, ir.Node]:
    """The new node and the one that it stands for. Raises MisfitError."""
    x = variance.of
    shape = check_axes(variance)
    if x.dtype not in TYPES:
        raise MisfitError(f"it computes in {x.dtype.name if x.dtype is not None else 'an unknown type'}")

    root = read_root(variance, x)
    norm = _distributed(root, variance, shape)
    if norm is None:
        end, scale = divide(root, shape, lambda value: deviates(value, variance), "the deviation")
        norm = Norm(x, root.epsilon, end, scale)
    norm = read_affine(norm, shape, biased=norm.bias is None)
    assert node.graph is not None
    scale = norm.scale or filled(node.graph, 1, shape, norm.x.dtype)
    new = inherit(ir.node("LayerNormalization", [norm.x, scale, norm.bias], {"axis": -len(shape)}), node)
    new.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.epsilon)
    return new, norm.end


def _distributed(root: Root, variance: Mean, shape: list[int]) -> Norm | None:
    """Case 6, if the scaled inverse root is read by two products; else None."""
    factor, scale = root.value, None
    scaled = only_consumer(factor, "Mul")
    if scaled is not None and (scale := vector(scaled, factor, shape)) is not None:
        factor = scaled.outputs[0]
    readers = consumers(factor)
    if not root.inverse or len(readers) != 2 or {node.op_type for node in readers} != {"Mul"}:
        return None
    ends = {_times(node, factor, variance): node for node in readers}
    if set(ends) != {"x", "mean"} or factor.is_graph_output():
        return None
    shift, taken = follow(ends["mean"].outputs[0], "Sub", "the shift")
    if shift.inputs[1] is not taken or (bias := vector(shift, taken, shape)) is None:
        raise MisfitError("the scaled mean is not taken from a bias of the normalised size")
    end, _ = follow(shift.outputs[0], "Add", "the sum with the shift")
    if end is not follow(ends["x"].outputs[0], "Add", "the sum with the shift")[0]:
        raise MisfitError("the shift is not added to the scaled x")
    return Norm(variance.of, root.epsilon, end, scale, bias)


def _times(node: ir.Node, factor: ir.Value, variance: Mean) -> str:
    """What `node` multiplies `factor` by: "x", its "mean", or something else."""
    other = uncast(node.inputs[1] if node.inputs[0] is factor else node.inputs[0])
    if other is uncast(variance.of):
        return "x"
    mean = mean_of(other)
    same = mean is not None and mean.kept and mean.axes == variance.axes
    return "mean" if same and mean is not None and uncast(mean.of) is uncast(variance.of) else ""
