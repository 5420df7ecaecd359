"""openvino: OpenVINO on the CPU."""

from __future__ import annotations

import onnx_ir as ir

from ...devices import names
from ...spec import COMPUTE, Lowering, Precision, Target
from .integer_weights import KeepIntegerWeights
from .plain_attention import PlainAttention

# Standard ops of which OpenVINO 2026.4 answers at least one of ONNX's own backend tests rightly, and Dropout, whose
# tests all ask for training.
_OPS = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitShift
BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress
Concat ConcatFromSequence Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max
MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not
OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RoiAlign RotaryEmbedding Round Scan Scatter ScatterElements ScatterND Selu SequenceAt SequenceConstruct
SequenceLength Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign
SpaceToDepth Split SplitToSequence Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unique
Unsqueeze Upsample Where Xor
"""
OPS = frozenset(_OPS.split())


class StateCompute(ir.passes.InPlacePass):
    """Writes into the graph the precision to compute in: left to itself, OpenVINO takes bfloat16 for float32."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self.precision = precision

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.metadata_props[COMPUTE] = self.precision
        return ir.passes.PassResult(model, True)


def _passes(lowering: Lowering) -> list[ir.passes.InPlacePass]:
    return [PlainAttention(), KeepIntegerWeights(), StateCompute(lowering.job.precision)]


TARGET = Target(
    name="openvino",
    runtime="openvino",
    precisions=("fp32", "bf16", "int8-dynamic"),  # float16 is slower than float32 here, measured with AVX512-FP16 too
    devices=("", *names("openvino")),
    legal={"": OPS},
    lower=_passes,
    needs="a CPU that OpenVINO runs on, and the package (`pip install graphwright[openvino]`)",
    hinted=frozenset({"bf16"}),
)
