"""For each rule on quantized graphs a bad example, a good one, and what the real runtime makes of both."""

from __future__ import annotations

from .graphs import (
    BIAS,
    GEMM,
    MATRIX,
    PAIR,
    PRODUCT,
    QUANT,
    S8,
    SCALES,
    STATIC,
    U8,
    Example,
    Graph,
    Leaves,
    NoRuntime,
    Refused,
    Taken,
    W,
    Wrong,
    ones,
    pair,
    q_around,
    trt,
)

QUANTIZED_ORT = {
    "ort-zero-scale": pair(
        Graph(PAIR.format(z="z", attr=""), constants="float xs = {0}, uint8 z = {0}"),
        Wrong(),
        constants="float xs = {0.05}, uint8 z = {0}",
    ),
    "ort-s8-output-dtype": pair(
        Graph(S8.replace("QuantizeLinear(x", "QuantizeLinear <output_dtype = 3> (x"), constants=QUANT),
        Refused("output_dtype INT8 does not match y_zero_point type UINT8"),
        body=S8,
    ),
    "ort-s8-no-zero-point": pair(
        Graph(S8.replace("QuantizeLinear(x, xs, s)", "QuantizeLinear <output_dtype = 3> (x, xs)"), constants=QUANT),
        Leaves("MatMul"),
        body=S8,
    ),
    "ort-s8-matmul-add": pair(
        Graph(PRODUCT.format(z="s", out="d") + " y = Add(d, e)", *STATIC, f"{QUANT}, {BIAS}"),
        Refused("output_dtype INT8 does not match y_zero_point type UINT8"),
        body=PRODUCT.format(z="z", out="d") + " y = Add(d, e)",
    ),
    "ort-matmul-add-float": pair(
        Graph(PRODUCT.format(z="z", out="d") + " y = Add(d, e)", *MATRIX, f"{QUANT}, {BIAS}"),
        Leaves("Gemm"),
        inputs="float[B, S, 32] x",
        outputs="float[B, S, 32] y",
    ),
    "ort-gemm-bias": pair(
        Graph(GEMM.format(bias=", e"), *MATRIX, f"{QUANT}, {BIAS}"),
        Leaves("Gemm"),
        body=GEMM.format(bias=""),
    ),
    "ort-gemm-zero-point": pair(
        Graph(GEMM.format(bias="").replace("ws, s", "ws"), *MATRIX, QUANT),
        Leaves("Gemm"),
        body=GEMM.format(bias=""),
    ),
    "ort-no-integer-kernel": pair(Graph(q_around("Tanh"), constants=SCALES), Leaves("Tanh"), body=q_around("Sigmoid")),
    "ort-no-output-q": pair(
        Graph(
            q_around("Add", "c = Add(b, b)").replace("c = Add(b, b)", "y = Add(b, b)").partition(" d =")[0],
            constants=SCALES,
        ),
        Leaves("Add"),
        body=q_around("Add", "c = Add(b, b)"),
    ),
    "ort-dq-table": pair(
        Graph("t = DequantizeLinear(w, ws) y = Gather(t, i)", "int64[B, S] i", constants=QUANT),
        Leaves("DequantizeLinear of a constant"),
        body="t = Gather(w, i) y = DequantizeLinear(t, ws)",
    ),
    "ort-s8s8": pair(
        Graph("y = MatMulInteger(x, w)", "int8[B, 32] x", "int32[B, 32] y", W), Taken(), inputs="uint8[B, 32] x"
    ),
    "ort-weight-only": pair(
        Graph(
            "c = DequantizeLinear <axis = 1> (w, v) y = MatMul(x, c)", constants=f"{W}, {ones('float[32] v = 1', 32)}"
        ),
        Leaves("com.microsoft.MatMulNBits"),
        body=U8,
        constants=QUANT,
    ),
    "ort-half-qdq": pair(
        Graph(
            U8.replace("ws", "xs"),
            "float16[B, S, 32] x",
            "float16[B, S, 32] y",
            f"{W}, {SCALES.replace('float xs = {0.05}', 'float16 xs = {15360}')}",
        ),
        Leaves("MatMul"),
        inputs="float[B, S, 32] x",
        outputs="float[B, S, 32] y",
        constants=QUANT,
    ),
    "ort-bf16-scale": pair(
        Graph(
            "h = Cast <to = 16> (x) k = Cast <to = 16> (xs) a = QuantizeLinear(h, k, z) b = DequantizeLinear(a, k, z) "
            "y = Cast <to = 1> (b)",
            constants=SCALES,
        ),
        Refused("Could not find an implementation for QuantizeLinear"),
        body=PAIR.format(z="z", attr=""),
    ),
    "ort-float4": pair(
        Graph("a = QuantizeLinear <output_dtype = 23> (x, xs) y = DequantizeLinear(a, xs)", constants=SCALES),
        Refused("Could not find an implementation for QuantizeLinear"),
        body="a = QuantizeLinear <output_dtype = 2> (x, xs) y = DequantizeLinear(a, xs)",
    ),
    "ort-float8-matmul": pair(
        Graph(
            "a = QuantizeLinear <output_dtype = 17> (x, xs) b = DequantizeLinear(a, xs) "
            "c = QuantizeLinear <output_dtype = 17> (u, xs) d = DequantizeLinear(c, xs) y = MatMul(b, d)",
            "float[B, 32] x, float[32, 32] u",
            "float[B, 32] y",
            SCALES,
        ),
        Refused("MatMulIntegerToFloat"),
        body="a = QuantizeLinear(x, xs) b = DequantizeLinear(a, xs) c = QuantizeLinear(u, xs) "
        "d = DequantizeLinear(c, xs) y = MatMul(b, d)",
    ),
    "ort-cuda-qdq": pair(
        Graph(U8, constants=QUANT, target="ort-cuda"),
        NoRuntime("needs a CUDA device"),
        body="y = MatMul(x, w)",
        constants=W.replace("int8", "float"),
    ),
    "avx2-saturation": pair(
        Graph(U8, constants=QUANT.replace("w = {1,", "w = {-127,"), target="ort-cpu@x86-avx2"),
        NoRuntime("needs a CPU without VNNI"),
        constants=QUANT.replace("w = {1,", "w = {-64,"),
    ),
}

QUANTIZED_TRT = {
    "trt-scale-positive": pair(
        trt(PAIR.format(z="s", attr=""), "float xs = {-0.1}, int8 s = {0}"),
        Refused("Scale coefficients must all be positive"),
        constants="float xs = {0.1}, int8 s = {0}",
    ),
    "trt-uint8": pair(
        trt(PAIR.format(z="s", attr=""), "float xs = {0.1}, uint8 s = {0}"),
        Taken(),
        constants="float xs = {0.1}, int8 s = {0}",
    ),
    "trt-zero-point": pair(
        trt(PAIR.format(z="s", attr=""), "float xs = {0.1}, int8 s = {5}"),
        Refused("Non-zero zero point is not supported"),
        constants="float xs = {0.1}, int8 s = {0}",
    ),
    "trt-int32-bias": pair(
        trt(
            S8.replace("y =", "d =") + " f = DequantizeLinear(i, ws) y = Add(d, f)",
            f"{QUANT}, {ones('int32[32] i = 1', 32)}",
        ),
        Refused("input has type Int32 but must have type"),
        body=S8.replace("y =", "d =") + " y = Add(d, e)",
        constants=f"{QUANT}, {BIAS}",
    ),
    "trt-quantized-type": pair(
        trt("c = DequantizeLinear(w, ws) y = MatMul(x, c)", f"{W.replace('int8', 'int16')}, float ws = {{0.1}}"),
        Refused("Failed to import initializer: w"),
        constants=f"{W}, float ws = {{0.1}}",
    ),
    "trt-scale-type": pair(
        trt(
            "a = QuantizeLinear(x, h, s) b = DequantizeLinear(a, h, s) y = Cast <to = 1> (b)",
            "float16 h = {15360}, int8 s = {0}",
        ),
        Taken(),
        constants="float h = {1}, int8 s = {0}",
    ),
    "trt-activation-channels": pair(
        trt(PAIR.format(z="s", attr=" <axis = 2> "), f"{ones('float[32] xs = 1', 32)}, {ones('int8[32] s = 0', 32)}"),
        Taken(),
        constants="float xs = {1}, int8 s = {0}",
    ),
    "trt-block-axis": pair(
        trt(
            "c = DequantizeLinear <axis = 0, block_size = 2> (u, ws) y = MatMul(x, c)",
            f"{ones('int8[2, 32, 32] u = 1', 2048)}, {ones('float[1, 32, 32] ws = 1', 1024)}",
            "float[2, S, 32] x",
            "float[2, S, 32] y",
        ),
        Refused("blocking dimension must be the last or second to last"),
        body="c = DequantizeLinear <axis = 1, block_size = 16> (u, ws) y = MatMul(x, c)",
        constants=f"{ones('int8[2, 32, 32] u = 1', 2048)}, {ones('float[2, 2, 32] ws = 1', 128)}",
    ),
    "trt-scalar": pair(
        trt(
            "a = QuantizeLinear(n, xs, s) b = DequantizeLinear(a, xs, s) y = Mul(x, b)",
            SCALES,
            "float[B, S, 32] x, float n",
        ),
        Taken(),
        inputs="float[B, S, 32] x, float[1] n",
    ),
    "trt-int8-and-fp8": pair(
        trt(
            S8.replace("y =", "d =") + " f = QuantizeLinear <output_dtype = 17> (d, xs) g = DequantizeLinear(f, xs) "
            "h = QuantizeLinear <output_dtype = 17> (u, xs) i = DequantizeLinear(h, xs) y = MatMul(g, i)",
            f"{QUANT}, {ones('float[32, 32] u = 1', 1024)}",
        ),
        Taken(),
        body=S8,
    ),
}

QUANTIZED: dict[str, Example] = {**QUANTIZED_ORT, **QUANTIZED_TRT}
