"""tensorrt: NVIDIA TensorRT 11 and later, strongly typed; and 10 on Jetson."""

from __future__ import annotations

from typing import Any

from ...devices import named, names
from ...runtimes.tensorrt_versions import NEWEST, OPS_SINCE
from ...spec import Lowering, Target
from .attention import LowerAttention
from .scatter import SumScattered
from .tensorrt_older import SayInOlderOps

# Standard ops that the parser imports: its own `supports_operator`, asked for each op of ONNX 1.23 through
# TensorRT-RTX, whose parser is the same and needs no GPU.
_OPS = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow
Cast CastLike CausalConvWithState Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf
IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual LinearAttention Log LogSoftmax Loop LpNormalization
LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot
Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike
Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements
ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPS = frozenset(_OPS.split())


def passes(lowering: Lowering) -> list[Any]:
    """What TensorRT and TensorRT-RTX are lowered by."""
    version = min((device.tensorrt or NEWEST for device in named(lowering.job.device)), default=NEWEST)
    native = OPS_SINCE["Attention"] <= version
    older = [] if version >= NEWEST else [SayInOlderOps(version)]
    return [LowerAttention(native), SumScattered(), *older]


TARGET = Target(
    name="tensorrt",
    runtime="tensorrt",
    precisions=("fp16", "bf16", "fp32"),
    devices=("", *names("tensorrt")),
    legal={"": OPS},
    lower=passes,
    needs="an NVIDIA GPU and TensorRT 11 (`pip install graphwright[tensorrt]`, from the vendor's index)",
)
