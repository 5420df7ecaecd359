"""What ONNX Runtime made of a graph at load: kernels that it lacks, fusions that it undid."""

from __future__ import annotations

from collections.abc import Mapping

_MS = "com.microsoft."

# op -> what its load-time fusions may make of it; an op that is here and less often in the optimized graph, without one
# of these in its place, was taken apart
BECOMES: Mapping[str, tuple[str, ...]] = {
    "Attention": (f"{_MS}MultiHeadAttention", f"{_MS}Attention"),
    "Conv": (f"{_MS}FusedConv", f"{_MS}nchwc.Conv", "com.ms.internal.nhwc.Conv", f"{_MS}NhwcFusedConv"),
    "Gelu": (f"{_MS}BiasGelu", f"{_MS}FastGelu", f"{_MS}Gelu", f"{_MS}QuickGelu"),
    "Gemm": (f"{_MS}FusedGemm", "MatMul"),
    "GroupNormalization": (f"{_MS}GroupNorm",),
    "InstanceNormalization": (),
    "LayerNormalization": (f"{_MS}SkipLayerNormalization", f"{_MS}EmbedLayerNormalization"),
    "MatMul": (f"{_MS}FusedMatMul", "Gemm", f"{_MS}MatMulNBits", f"{_MS}MatMulIntegerToFloat", "QLinearMatMul"),
    "MatMulInteger": (f"{_MS}MatMulIntegerToFloat", f"{_MS}DynamicQuantizeMatMul"),
    "Mish": (),
    "RMSNormalization": ("SimplifiedLayerNormalization", f"{_MS}SkipSimplifiedLayerNormalization"),
    "RotaryEmbedding": (f"{_MS}RotaryEmbedding",),
    "Swish": (f"{_MS}QuickGelu",),
}
_CONTRIB = (
    *("MultiHeadAttention", "Attention", "GroupQueryAttention", "MatMulNBits"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
)


def differences(asked: Mapping[str, int], made: Mapping[str, int]) -> tuple[str, ...]:
    """In words, from op counts of the target graph and of the optimized one (a domain in front, but for ONNX's own)."""
    lost = []
    for op in (*BECOMES, *(f"{_MS}{name}" for name in _CONTRIB)):
        missing = asked.get(op, 0) - made.get(op, 0)
        instead = sum(max(made.get(other, 0) - asked.get(other, 0), 0) for other in BECOMES.get(op, ()))
        if missing > instead:
            count = f"{missing - instead} of {asked[op]}"
            lost.append(f"{count} {op} taken apart by ONNX Runtime: it has no kernel for them")
    casts = made.get("Cast", 0) - asked.get("Cast", 0)
    if casts > 0:
        lost.append(f"{casts} Casts put in by ONNX Runtime: it lacks kernels for a type of the graph")
    return tuple(lost)
