"""Where the time of a call goes, from the profile of the runtime itself, in the same words for every runtime."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# What an op type counts for. Products of weights are "gemm", of two activations "attention" (told by their ranks).
KINDS = {
    "gemm": """MatMul FusedMatMul Gemm FusedGemm Conv FusedConv FullyConnected Convolution MatMulNBits MatMulInteger
        DynamicQuantizeMatMul MatMulIntegerToFloat QLinearMatMul QGemm""",
    "attention": """Attention MultiHeadAttention GroupQueryAttention QAttention ScaledDotProductAttention MHA Softmax
        ScaledDotProductAttentionWithKVCache IsNaN RotaryEmbedding RoPE""",
    "norm": """LayerNormalization SimplifiedLayerNormalization RMSNormalization SkipLayerNormalization
        SkipSimplifiedLayerNormalization EmbedLayerNormalization MVN RMS NormalizeL2""",
    "point": """Gelu FastGelu BiasGelu QuickGelu Erf Tanh Relu Sigmoid Swish Add Sub Mul MulAdd Div Pow Sqrt Exp Neg Abs
        Where Not And Or Clip Max Min Eltwise Multiply Divide Subtract PowerStatic Select Subgraph""",
    "moves": """Reshape Transpose Slice StridedSlice Concat Split VariadicSplit Gather GatherElements GatherND Cast
        Convert Expand Broadcast Squeeze Unsqueeze Flatten Identity Reorder Tile Pad ReorderInput ReorderOutput
        QuantizeLinear DequantizeLinear DynamicQuantizeLinear""",
}
KIND = {op: kind for kind, ops in KINDS.items() for op in ops.split()}
CLASSES = (
    *KINDS,
    "rest",
    "out",
)  # point: activations, sums; rest: other ops; out: the time of a call that no op accounts for

ENOUGH = 0.4  # seconds of calls that a profile is made of, at least MIN_CALLS
MIN_CALLS, MAX_CALLS = 2, 20


class Profile(NamedTuple):
    """Shares of a call's time by class (they add up to 1), the ops that take most of it, and the products by weights.

    A product is (m, k, n): [m, k] times [k, n], in the order of the graph; only ONNX Runtime tells them.
    """

    shares: dict[str, float]
    top: dict[str, float]
    products: list[tuple[int, int, int]]


def onnxruntime(model: str, options: Any, feeds: Mapping[str, np.ndarray]) -> Profile:
    """By a second session of the same `options`, its profile read from the file that it writes."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        _repeat(lambda: session.run(None, dict(feeds)))
        events = json.loads(Path(session.end_profiling()).read_text())
        options.enable_profiling = False
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")[1:]
    begin = runs[0][0]  # the first call, in which memory is taken, does not count
    nodes = [event for event in events if event.get("cat") == "Node" and event["ts"] >= begin]
    kernels = [event for event in nodes if event["name"].endswith("_kernel_time")]
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for event in kernels:
        spent[_class(event["args"]), event["args"]["op_name"]] += event["dur"]
    products = [_product(event["args"]) for event in kernels if event["ts"] < runs[0][1]]
    return _profile(spent, sum(end - begin for begin, end in runs), [each for each in products if each])


def openvino(model: str, options: Mapping[str, Any], feeds: Mapping[str, np.ndarray]) -> Profile:
    """By a second request with counters, which give the mean of all calls so far: the first is taken out of it."""
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", {**options, "PERF_COUNT": True})
    request, fused = compiled.create_infer_request(), _fused_attentions(compiled)
    seconds: list[float] = []

    def call() -> None:
        begin = time.perf_counter()
        request.infer(dict(feeds), share_inputs=True)
        seconds.append(time.perf_counter() - begin)

    call()
    first = _counters(request, fused)
    _repeat(call)
    spent = {op: max(time * len(seconds) - first[op], 0) for op, time in _counters(request, fused).items()}
    return _profile(spent, sum(seconds[1:]), [])


def _fused_attentions(compiled: Any) -> frozenset[str]:
    """The names of the subgraphs that OpenVINO made of an attention: the ops that they hold are in their names."""
    ops = {op.get_friendly_name(): op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()}
    return frozenset(name for name, info in ops.items() if "softmax" in info["originalLayersNames"].astype(str).lower())


def _counters(request: Any, fused: frozenset[str]) -> dict[tuple[str, str], float]:
    """Seconds by class and op type. Products with weights are called FullyConnected there."""
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for info in request.get_profiling_info():
        attention = info.node_type == "MatMul" or info.node_name in fused
        kind = "attention" if attention else KIND.get(info.node_type, "rest")
        spent[kind, info.node_type] += info.real_time.total_seconds()
    return spent


def _repeat(call: Callable[[], object]) -> None:
    """Once, and then as often as makes a profile."""
    call()
    begin, count = time.perf_counter(), 0
    while count < MIN_CALLS or (count < MAX_CALLS and time.perf_counter() - begin < ENOUGH):
        call()
        count += 1


def _profile(spent: dict[tuple[str, str], float], total: float, products: list[tuple[int, int, int]]) -> Profile:
    shares: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
    ops: dict[str, float] = defaultdict(float)
    for (kind, op), time_spent in spent.items():
        shares[kind] += time_spent / total
        ops[op] += time_spent / total
    shares["out"] = max(0.0, 1 - sum(shares.values()))
    return Profile(shares, dict(sorted(ops.items(), key=lambda op: -op[1])[:8]), products)


def _shapes(args: Mapping[str, Any]) -> list[list[int]]:
    return [shape for typed in args["input_type_shape"] for shape in typed.values()]


def _class(args: Mapping[str, Any]) -> str:
    op, shapes = args["op_name"], _shapes(args)
    if op in ("MatMul", "FusedMatMul") and len(shapes) > 1 and len(shapes[1]) > 2:
        return "attention"  # packed weights have no shape any more, others have two dims
    return KIND.get(op, "rest")


def _product(args: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(m, k, n) of a product by a matrix of weights; of a convolution as the product that it amounts to."""
    if _class(args) != "gemm":
        return None
    first, *others = _shapes(args)
    (out,) = [shape for typed in args["output_type_shape"] for shape in typed.values()]
    if "Conv" in args["op_name"]:
        return out[0] * int(np.prod(out[2:])), int(np.prod(others[0][1:])), out[1]
    return int(np.prod(out[:-1])), first[-1], out[-1]
