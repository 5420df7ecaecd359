"""float16 or bfloat16, strongly typed: every cast is in the graph; inputs and outputs keep their types.

Each float32 op falls into one of three classes. *Products* (where the time goes) always compute in half. *Sensitive*
ops (sums over many terms, exponentials, norms, softmax) always compute in float32. Everything else follows its computed
inputs: half as soon as one of them is half, unless a constant of the op does not fit into half.

Legal cases: 1. graphs without If, Loop and Scan bodies; 2. constants are rounded to the nearest, and an op stays
float32 where a constant would overflow or, being a single number, lose more than 0.1 % (an epsilon of 1e-12 would
become 0). An additive mask of an Attention is clipped into the range of half first: its lowest value must not become
-inf, which a row of padding would turn into NaN.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from ...errors import BuildError
from ..base import GraphPass
from ..lift.values import add_constant, constant, insert
from ..sites import SiteLog

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "Einsum"})
SENSITIVE = frozenset(
    {
        *("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"),
        *("BatchNormalization", "LpNormalization", "Softmax", "LogSoftmax", "Softplus", "CumSum", "Range", "Resize"),
        *("ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"),
        *("ReduceLogSumExp", "Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Tan", "Erf"),
    }
)
BODIES = frozenset({"If", "Loop", "Scan"})
MASK = 3  # input of Attention
_NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}


class HalfPrecision(GraphPass):
    """float32 -> `dtype` wherever it is safe."""

    def __init__(self, dtype: ir.DataType, log: SiteLog | None = None) -> None:
        super().__init__(log)
        self.half = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        ShapeInferencePass()(model)  # every value's type must be known
        graph = model.graph
        floats = {value for node in graph for value in (*node.inputs, *node.outputs) if _is_float(value)}
        casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        for node in list(graph):
            if node.op_type in BODIES:
                raise BuildError(
                    f"{node.op_type} {node.name!r} has a body, which cannot be lowered to {self.half.name} in this "
                    "version: unroll it, or ask for fp32."
                )
            self._type(graph, node, floats, casts)
        self._keep_outputs(graph, floats)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, True)

    def _type(
        self,
        graph: ir.Graph,
        node: ir.Node,
        floats: set[ir.Value | None],
        casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
    ) -> None:
        if node.op_type == "Cast":
            return  # says its own type, and takes any
        wanted = self.half if self._in_half(node, floats) else ir.DataType.FLOAT
        for index, value in enumerate(node.inputs):
            if value is not None and value in floats and value.dtype != wanted:
                clip = node.op_type == "Attention" and index == MASK and self.half == ir.DataType.FLOAT16
                node.replace_input_with(index, self._cast(graph, node, value, wanted, casts, clip))
        if wanted == self.half:
            for value in node.outputs:
                if value in floats:
                    value.type = ir.TensorType(wanted)  # not .dtype: clones of a graph share their type objects

    def _in_half(self, node: ir.Node, floats: set[ir.Value | None]) -> bool:
        inputs = [value for value in node.inputs if value in floats and value is not None]
        if not inputs or node.op_type in SENSITIVE or node.domain != "":
            return False
        if node.op_type in PRODUCTS:
            return True
        if not all(self._fits(value) for value in inputs):
            return False
        computed = [value for value in inputs if constant(value) is None]
        # a table of embeddings is half the size and read in half; other ops on constants alone were folded
        return any(value.dtype == self.half for value in computed) or (not computed and node.op_type == "Gather")

    def _fits(self, value: ir.Value) -> bool:
        array = constant(value)
        if array is None or array.size == 0:
            return True
        with np.errstate(over="ignore"):
            rounded = array.astype(_NUMPY[self.half]).astype(np.float32)
        finite = bool(np.all(np.isfinite(rounded) | ~np.isfinite(array)))
        # bfloat16 keeps 8 bits: 0.4 % is its normal rounding
        allowed = 1e-3 if self.half == ir.DataType.FLOAT16 else 4e-3
        return finite and (array.size > 1 or bool(np.allclose(rounded, array, rtol=allowed, atol=0, equal_nan=True)))

    def _cast(
        self,
        graph: ir.Graph,
        node: ir.Node,
        value: ir.Value,
        dtype: ir.DataType,
        casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
        clip: bool,
    ) -> ir.Value:
        """`value` as `dtype`: a converted constant, or one Cast that all readers share."""
        if (value, dtype) in casts:
            return casts[value, dtype]
        array = constant(value)
        if array is not None and dtype == self.half:
            with np.errstate(over="ignore"):
                made = add_constant(graph, f"{value.name}.{dtype.name.lower()}", array.astype(_NUMPY[dtype]))
        else:
            source = value
            if clip:
                limit = np.float32(np.finfo(np.float16).max)
                bounds = [add_constant(graph, f"half.{s}", np.array(b)) for s, b in (("min", -limit), ("max", limit))]
                source = insert(node, "Clip", [value, *bounds])
                source.shape, source.type = value.shape, value.type
            made = insert(node, "Cast", [source], to=int(dtype))
            made.shape, made.type = value.shape, ir.TensorType(dtype)
        casts[value, dtype] = made
        return made

    def _keep_outputs(self, graph: ir.Graph, floats: set[ir.Value | None]) -> None:
        """Outputs stay float32 under their names."""
        for index, value in enumerate(list(graph.outputs)):
            if value in floats and value.dtype == self.half:
                name, value.name = value.name, f"{value.name}.{self.half.name.lower()}"
                cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
                cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
                cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                graph.append(cast)
                graph.outputs[index] = cast.outputs[0]


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT
