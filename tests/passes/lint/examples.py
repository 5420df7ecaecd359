"""For each rule on float graphs a bad example, a good one, and what the real runtime makes of both."""

from __future__ import annotations

from dataclasses import replace

from .graphs import (
    QKV,
    QKV32,
    Asked,
    Empty,
    Example,
    Graph,
    Ignored,
    Leaves,
    Raw,
    Refused,
    Taken,
    W,
    Y,
    attention,
    ones,
    pair,
    trt,
)

PLAIN = "y = Attention(q, k, v)"
ATTENTION = {
    "ort-mask-query-dim": Example(
        attention("y = Attention(q, k, v, m)", ", bool[B, 1, 1, T] m", target="ort-cpu"),
        attention("y = Attention(q, k, v, m)", ", bool[B, 1, S, T] m", target="ort-cpu"),
        Refused("ComputeOutputShapeForAttention"),
    ),
    "ort-mask-rank-3": Example(
        attention("y = Attention(q, k, v, m)", ", bool[B, S, T] m", target="ort-cpu"),
        attention("y = Attention(q, k, v, m)", ", bool[1, S, T] m", target="ort-cpu"),
        Refused("ComputeOutputShapeForAttention"),
    ),
    "ort-bias-query-dim": pair(
        Graph(
            "y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, , , m)",
            "float[B, S, 32] q, float[B, T, 32] k, float[B, T, 32] v, float[B, 1, 1, T] m",
        ),
        Refused("dimension 2 should be same as sequence_length"),
        inputs="float[B, S, 32] q, float[B, T, 32] k, float[B, T, 32] v, float[B, 1, S, T] m",
    ),
    "ort-rotary-batch": pair(
        Graph(
            "y = RotaryEmbedding(x, c, s)",
            "float[B, 4, S, 16] x, float[1, S, 8] c, float[1, S, 8] s",
            "float[B, 4, S, 16] y",
        ),
        Refused("expected to have the same shape as input"),
        inputs="float[B, 4, S, 16] x, float[B, S, 8] c, float[B, S, 8] s",
    ),
    "trt-rotary-batch": pair(
        trt(
            "y = RotaryEmbedding(x, c, s)",
            "",
            "float16[B, 4, S, 16] x, float16[1, S, 8] c, float16[1, S, 8] s",
            "float16[B, 4, S, 16] y",
        ),
        Refused("rotaryEmbeddingLayer"),
        inputs="float16[B, 4, S, 16] x, float16[B, S, 8] c, float16[B, S, 8] s",
    ),
    "ort-attention-window": Example(
        attention("y = Attention <left_window_size = 2> (q, k, v)", target="ort-cpu", opset=25),
        attention(PLAIN, target="ort-cpu", opset=25),
        Refused("Unrecognized attribute: left_window_size"),
    ),
    "trt-attention-window": Example(
        attention("y = Attention <left_window_size = 2> (q, k, v)", opset=25), attention(PLAIN, opset=25), Ignored()
    ),
    "trt-attention-cache": Example(
        attention("y, a, b = Attention(q, k, v)", y=f"{Y}, float16[B, 2, T, 16] a, float16[B, 2, T, 16] b"),
        attention(PLAIN),
        Refused("only supports Attention nodes with one output"),
    ),
    "trt-attention-softcap": Example(
        attention("y = Attention <softcap = 30.0> (q, k, v)"), attention(PLAIN), Refused("softcap")
    ),
    "trt-attention-softmax-precision": Example(
        attention("y = Attention <softmax_precision = 1> (q, k, v)"), attention(PLAIN), Refused("softmax precision")
    ),
    "trt-attention-causal-mask": Example(
        attention("y = Attention <is_causal = 1> (q, k, v, m)", ", bool[B, 1, S, T] m"),
        attention("y = Attention <is_causal = 1> (q, k, v)"),
        Refused("mask cannot be used together with CausalMaskKind"),
    ),
    "trt-attention-kernel": Example(
        replace(attention(PLAIN), inputs=QKV.replace("16]", "8]"), outputs=Y.replace("16]", "8]")),
        attention(PLAIN),
        Raw("not supported by a dedicated kernel"),
    ),
}

BFLOAT = "a = Cast <to = 16> (x) b = {op} y = Cast <to = 1> (b)"
FLOATS = {
    "ort-cpu-bf16": pair(
        Graph(BFLOAT.format(op="MatMul(a, a)"), "float[B, 32, 32] x", "float[B, 32, 32] y"),
        Refused("Could not find an implementation for MatMul"),
        body=BFLOAT.format(op="Transpose <perm = [0, 2, 1]> (a)"),
    ),
    "ort-cpu-f16": pair(
        Graph("y = MatMul(x, x)", "float16[B, 32, 32] x", "float16[B, 32, 32] y"),
        Leaves("Cast"),
        inputs="float[B, 32, 32] x",
        outputs="float[B, 32, 32] y",
    ),
    "ort-cpu-expanded": pair(
        Graph(
            "y = GroupNormalization <num_groups = 2> (x, g, h)",
            "float[B, 4, S, S] x",
            "float[B, 4, S, S] y",
            f"{ones('float[4] g = 1', 4)}, {ones('float[4] h = 1', 4)}",
        ),
        Leaves("ReduceMean"),
        body="y = InstanceNormalization(x, g, h)",
    ),
    "ort-cpu-contrib": pair(
        Graph(
            "y = com.microsoft.RelativePositionBias <max_distance = 8> (t, n, n)",
            "float[32, 4] t, int64[1] n",
            "float[1, 4, N, N] y",
        ),
        Refused("Could not find an implementation for RelativePositionBias"),
        body="y = com.microsoft.FastGelu(t)",
        outputs="float[32, 4] y",
        inputs="float[32, 4] t",
    ),
    "ort-rms-scale-type": pair(
        Graph("y = RMSNormalization(x, g)", "float16[B, S, 32] x, float[32] g", "float[B, S, 32] y"),
        Refused("bound to different types"),
        inputs="float[B, S, 32] x, float[32] g",
    ),
}

GELU = "a = Div(x, root) b = Erf(a) c = Add(b, one) "
FLOATS |= {
    "ort-erf-gelu": pair(
        Graph(
            GELU + "d = Mul(c, half) y = Mul(d, x)",
            constants="float root = {1.4142135}, float one = {1}, float half = {0.5}",
        ),
        Leaves("Erf"),
        body=GELU + "d = Mul(x, c) y = Mul(d, half)",
    ),
    "ort-attention-in-parts": Example(
        Graph(
            "kt = Transpose <perm = [0, 1, 3, 2]> (k) a = MatMul(q, kt) b = Mul(a, h) c = Add(b, m) d = Softmax(c) "
            "y = MatMul(d, v)",
            f"{QKV32}, float[B, 1, S, T] m",
            Y.replace("float16", "float"),
            "float h = {0.25}",
        ),
        attention("y = Attention(q, k, v, m)", ", float[B, 1, S, T] m", target="ort-cpu"),
        Leaves("Softmax"),
    ),
}

RELU = "y = Relu(x)"
LIMITS = {
    "ort-opset": pair(Graph(RELU, opset=27), Refused("ONNX Runtime only \\*guarantees\\*"), opset=26),
    "ort-ir-version": pair(
        Graph(RELU, ir_version=14, opset=20), Refused("Unsupported model IR version"), ir_version=13
    ),
    "trt-opset": pair(trt(RELU, opset=26), Taken(), opset=25),
    "trt-ir-version": pair(trt(RELU, ir_version=14), Taken(), ir_version=13),
    "trt-operator": pair(
        trt("y = MatMulInteger(x, w)", W, "int8[B, 32] x", "int32[B, 32] y"),
        Refused("refuses the graph: MatMulInteger"),
        body="y = MatMul(x, w)",
        constants=W.replace("int8", "float"),
        inputs="float[B, 32] x",
        outputs="float[B, 32] y",
    ),
    "trt-contrib-op": pair(
        trt("y = com.microsoft.FastGelu(x)"), Refused("Plugin not found"), body="y = com.microsoft.Gelu(x)"
    ),
    "trt-scatter": pair(
        trt(
            'y = ScatterElements <axis = 1, reduction = "add"> (x, i, u)',
            "",
            "float[2, S] x, int64[2, S] i, float[2, S] u",
            "float[2, S] y",
        ),
        Refused("Unsupported reduction type"),
        body="y = ScatterElements <axis = 1> (x, i, u)",
    ),
    "trt-unnamed-dim": pair(
        trt(RELU, inputs="float[?, 32] x", outputs="float[?, 32] y"),
        Empty(),
        inputs="float[B, 32] x",
        outputs="float[B, 32] y",
    ),
    "trt-no-range": pair(
        trt(RELU, inputs="float[N, 32] x", outputs="float[N, 32] y"),
        Asked("needs a range for each dynamic dim"),
        inputs="float[B, 32] x",
        outputs="float[B, 32] y",
    ),
    "mixed-types": pair(
        Graph("y = Mul(x, f)", "float16[B, S, 32] x", "float16[B, S, 32] y", "float f = {1}"),
        Refused("bound to different types"),
        constants="float16 f = {15360}",
    ),
    "device-type": pair(
        trt(
            "a = QuantizeLinear <output_dtype = 17> (x, xs) b = DequantizeLinear(a, xs) "
            "c = QuantizeLinear <output_dtype = 17> (w, xs) d = DequantizeLinear(c, xs) y = MatMul(b, d)",
            f"{W.replace('int8', 'float')}, float xs = {{0.1}}",
            target="tensorrt-rtx@sm86",
        ),
        Refused("HW-specific datatypes: fp8"),
        target="tensorrt-rtx@sm89",
    ),
    "rtx-turing-fp32": pair(
        trt("y = MatMul(x, x)", "", "float[B, 32, 32] x", "float[B, 32, 32] y", "tensorrt-rtx@sm75"),
        Raw("FP32 GEMM is not supported"),
        inputs="float16[B, 32, 32] x",
        outputs="float16[B, 32, 32] y",
    ),
}

EXAMPLES: dict[str, Example] = {**ATTENTION, **FLOATS, **LIMITS}
