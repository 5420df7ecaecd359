"""ort-cpu: ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

from ...devices import names
from ...spec import Lowering, Target
from ..lift.reshapes import FoldReshapes
from .cached import UseCaches
from .causal import MarkCausal
from .forms import LINEAR, NORM, alternatives, attention_class, chosen
from .group_norm import UseInstanceNorm
from .grouped import UseGroupQuery
from .heads import MergeHeads
from .multihead import UseMultiHead
from .older import UseOlderKernels
from .packed_attention import UsePackedAttention
from .packed_linear import PackLinears
from .plain_attention import PlainAttention
from .retyped import ChooseInIntegers
from .rows import FlattenRows
from .skip_norm import FuseSkipNorm


def _passes(lowering: Lowering) -> list[Any]:
    form = chosen(lowering)
    return [
        UseOlderKernels(),
        ChooseInIntegers(),
        UseInstanceNorm(),
        MarkCausal(),
        UseCaches(),
        PlainAttention(lambda node: form(attention_class(node)) == "primitive"),
        MergeHeads(),
        FoldReshapes(),
        UsePackedAttention(form),  # takes linear layers with it, so that it comes before what changes these
        UseMultiHead(form),
        UseGroupQuery(form),
        *([PackLinears()] if form(LINEAR) == "packed" else []),
        *([FlattenRows(), FoldReshapes()] if form(LINEAR) != "matmul" else []),
        *([FuseSkipNorm()] if form(NORM) == "skip" else []),
    ]


CONTRIB_OPS = frozenset(
    {"MultiHeadAttention", "Attention", "GroupQueryAttention"}
    | {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)

_HALF = (
    "ONNX Runtime has no half-precision products on the CPU, and would cast to float32 and back around each; take fp32 "
    "or int8-dynamic"
)

TARGET = Target(
    name="ort-cpu",
    runtime="ort-cpu",
    precisions=("fp32", "int8-dynamic"),
    refused=dict.fromkeys(("fp16", "bf16"), _HALF),
    devices=("", *names("ort-cpu")),
    # every standard op has a kernel or a function body, classical models' too; other contrib ops are ONNX Runtime's own
    # to fuse at load
    legal={"": None, "ai.onnx.ml": None, "com.microsoft": CONTRIB_OPS},
    lower=_passes,
    needs="onnxruntime",
    alternatives=alternatives,
)
