"""What ONNX Runtime's CUDA provider has no kernel for in one type, computed in another, between casts.

1. A float16 or bfloat16 op without a kernel of its type, but with one of float32 -> Cast, the op in float32, Cast.
2. Where and Tile of booleans -> the same in int32.
3. An Attention whose float mask is of another type than its query -> the mask is cast to the query's type.
4. An op without a kernel in float32 either -> BuildError that names it: ONNX Runtime would compute it on the CPU, with
   a copy there and back in each run. What shapes, indices and masks of whole numbers are computed with stays: ONNX
   Runtime itself puts such nodes on the CPU.

The table is what the kernel registry of onnxruntime-gpu 1.31.1 (CUDA 13) holds for opset 23; tests/gpu compares it with
the registry of the installed one.
"""

from __future__ import annotations

import onnx_ir as ir

from ...errors import BuildError
from ...runtimes.ort_cuda import SHAPE_OPS
from ..base import GraphPass
from ..lift.values import insert, is_constant
from ..sites import path_of
from .retyped import CHOSEN, surround

F16, BF16, F32, F64 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE

_TABLE = {
    (F32, F16, BF16, F64): """
Abs Add AveragePool Cast Compress Concat ConstantOfShape Conv Cos DeformConv Div Dropout Erf Exp Expand Flatten Gather
GatherElements GatherND Gelu Gemm HardSigmoid HardSwish Identity If IsInf IsNaN LayerNormalization Loop MatMul Max Min
Mod Mul Neg Pow RMSNormalization RandomNormal RandomNormalLike RandomUniform RandomUniformLike ReduceMean ReduceSum Relu
Reshape ReverseSequence RoiAlign Scan ScatterElements ScatterND SequenceAt SequenceConstruct Shape Sigmoid Sign Sin Size
Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where
Bernoulli CastLike SequenceMap""",
    (F32, F16, BF16): "Attention LpNormalization RotaryEmbedding",
    (F32, F16, F64): """
ArgMax ArgMin BatchNormalization Ceil Clip ConvTranspose CumSum DepthToSpace Einsum Elu Equal Floor GRU
GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual InstanceNormalization LRN LSTM LeakyRelu Less LessOrEqual Log
LogSoftmax MaxPool PRelu Pad RNN Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMin
ReduceProd ReduceSumSquare Resize Round Selu Shrink SpaceToDepth ThresholdedRelu TopK""",
    (F32, F16): "DequantizeLinear NonZero OneHot QuantizeLinear",
    (F32, F64): "EyeLike Range",
    (F32,): """
CenterCropPad GridSample GroupNormalization Mish NegativeLogLikelihoodLoss NonMaxSuppression SoftmaxCrossEntropyLoss""",
    (): """
And ConcatFromSequence Constant MatMulInteger Not Or SequenceEmpty SequenceErase SequenceInsert SequenceLength Xor""",
}
# those without a kernel whose bodies, which ONNX Runtime puts in their place, have all that they need
BODIES = frozenset(
    {"Bernoulli", "CastLike", "CenterCropPad", "GroupNormalization", "Mish", "NegativeLogLikelihoodLoss", "SequenceMap"}
    | {"SoftmaxCrossEntropyLoss"}
)
KERNELS = {op: frozenset(types) for types, ops in _TABLE.items() for op in ops.split()}
FLOATS = frozenset({F16, BF16, F32, F64})
NO_BOOL = {"Where": CHOSEN, "Tile": (0,)}  # op -> its inputs that must not be bool
MASK = 3  # input of Attention


class UseCudaKernels(GraphPass):
    """Casts around what lacks a CUDA kernel in its type. Raises BuildError for what lacks one in every type."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        shapes: set[ir.Value] = set()  # computed from shapes and constants alone
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain != "":
                continue
            if _is_of_shapes(node, shapes):
                shapes.update(node.outputs)
            modified |= self._fit(node, shapes)
        return ir.passes.PassResult(model, modified)

    def _fit(self, node: ir.Node, shapes: set[ir.Value]) -> bool:
        if node.op_type == "Attention" and _cast_mask(node):
            return True
        if node.op_type in NO_BOOL and node.outputs[0].dtype == ir.DataType.BOOL:
            inputs = NO_BOOL[node.op_type]
            surround(node, ir.DataType.BOOL, ir.DataType.INT32, inputs)
            return True
        lacking = _floats(node) - KERNELS.get(node.op_type, frozenset())
        if not lacking and (node.op_type in KERNELS or node.op_type in SHAPE_OPS):
            return False
        if all(value is None or is_constant(value) for value in node.inputs):
            return False  # ONNX Runtime folds it
        if node.op_type in SHAPE_OPS and shapes.issuperset(node.outputs):
            return False
        half = lacking & {F16, BF16}
        if lacking != half or F32 not in KERNELS.get(node.op_type, ()):
            types = " and ".join(sorted(dtype.name.lower() for dtype in lacking)) or "any type"
            raise BuildError(
                f"ort-cuda has no kernel for {node.op_type} in {types}, at {path_of(node)}: ONNX Runtime would compute "
                "it on the CPU, with copies there and back in each run. Take ort-cpu, or a model without it."
            )
        for dtype in half:
            surround(node, dtype, F32, range(len(node.inputs)))
        return True


def _floats(node: ir.Node) -> set[ir.DataType]:
    """The floating types of a node's inputs and outputs, as far as they are known."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return {value.dtype for value in values if value.dtype is not None and value.dtype in FLOATS}


def _is_of_shapes(node: ir.Node, shapes: set[ir.Value]) -> bool:
    """Whether all that a node gives is known from shapes and constants."""
    given = [value for value in node.inputs if value is not None]
    return node.op_type in ("Shape", "Size") or all(value in shapes or is_constant(value) for value in given)


def _cast_mask(node: ir.Node) -> bool:
    """The kernels of Attention want a float mask in the query's type."""
    query, mask = node.inputs[0], node.inputs[MASK] if len(node.inputs) > MASK else None
    if query is None or mask is None or mask.dtype not in FLOATS or query.dtype in (mask.dtype, None):
        return False
    cast = insert(node, "Cast", [mask], to=int(query.dtype))
    cast.shape, cast.type = mask.shape, ir.TensorType(query.dtype)
    node.replace_input_with(MASK, cast)
    return True
