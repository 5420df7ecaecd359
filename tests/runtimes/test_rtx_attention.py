"""Every form of attention that lowering makes is one that the parser and the builder of TensorRT take."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.errors import DeviceError
from graphwright.passes.lower import lower, lowering_of, parse_job
from graphwright.runtimes import RUNTIMES, BuildRequest
from graphwright.runtimes.child import build_in_child

RANGES = {"B": (1, 2, 8), "S": (1, 16, 64), "T": (1, 16, 64), "P": (1, 16, 64), "L": (2, 32, 128)}
RTX = RUNTIMES["tensorrt-rtx"]

# Q [B, 4, S, 16]; k, v of as many heads, g and w of two; r, x flat; a past of P keys, L in all; masks of truth values
FORMS = {
    "plain": "y = Attention (q, k, v)",
    "mask": "y = Attention <scale = 0.5> (q, k, v, m)",
    "causal": "y = Attention <is_causal = 1> (q, k, v)",
    "causal and mask": "y = Attention <is_causal = 1> (q, k, v, m)",
    "causal and added mask": "f = Cast <to = {type}> (m)  y = Attention <is_causal = 1> (q, k, v, f)",
    "grouped": "y = Attention (q, g, w, m)",
    "past, causal": "y, pk2, pv2 = Attention <is_causal = 1> (q, k, v, , pk, pv)",
    "past, mask, causal": "y, pk2, pv2 = Attention <is_causal = 1> (q, k, v, l, pk, pv)",
    "soft-cap": "y = Attention <softcap = 9.0> (q, k, v, m)",
    "soft-cap, causal, grouped": "y = Attention <softcap = 9.0, is_causal = 1> (q, g, w, m)",
    "soft-cap, grouped, a mask for each head": "y = Attention <softcap = 9.0> (q, g, w, h)",
    "weights": "y, , , z = Attention <qk_matmul_output_mode = 3> (q, k, v, m)",
    "grouped scores": "y, , , z = Attention <qk_matmul_output_mode = 1, softcap = 9.0, is_causal = 1> (q, g, w)",
    "softmax in float32": "y = Attention <softmax_precision = 1> (q, k, v)",
    "flat": "y = Attention <is_causal = 1, q_num_heads = 4, kv_num_heads = 2> (r, x, x, m)",
    "one K for two": "a = Relu (k)  y = Attention (q, a, v)  z = Attention (q, a, v, m)",
    "heads of 8": "a = Reshape (q, eight)  y = Attention (a, a, a)",
}


def all_forms(dtype: str) -> ir.Model:
    """Each form under names of its own."""
    number = {"float": 1, "float16": 10, "bfloat16": 16}[dtype]
    sizes = {"q": "B, 4, S, 16", "k": "B, 4, T, 16", "v": "B, 4, T, 16", "g": "B, 2, T, 16", "w": "B, 2, T, 16"}
    sizes |= {"pk": "B, 4, P, 16", "pv": "B, 4, P, 16", "r": "B, S, 64", "x": "B, T, 32"}
    masks = {"m": "B, 1, S, T", "l": "B, 1, S, L", "h": "B, 4, S, T"}
    nodes, inputs, outputs = [], [f"bool[{size}] {name}" for name, size in masks.items()], []
    for index, form in enumerate(FORMS.values()):
        text = re.sub(r"\b(y|z|pk2|pv2|[a-f]|[qkvgwrx]|pk|pv)\b", rf"\1_{index}", form.format(type=number))
        nodes.append(text)
        inputs += [f"{dtype}[{size}] {name}_{index}" for name, size in sizes.items() if f"{name}_{index}" in text]
        outputs += [f"{dtype}[] {name}_{index}" for name in ("y", "z", "pk2", "pv2") if f"{name}_{index}" in text]
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        g ({", ".join(inputs)}) => ({", ".join(outputs)}) <int64[4] eight = {{0, 8, -1, 8}}>
        {{ {"  ".join(nodes)} }}""")
    for value in model.graph.outputs:
        value.shape = None
    ShapeInferencePass()(model)
    return model


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("float16", "fp16"),
        pytest.param("bfloat16", "bf16", marks=pytest.mark.full),
        pytest.param("float", "fp32", marks=pytest.mark.full),
    ],
)
def test_every_form_builds(dtype: str, precision: str, tmp_path: Path) -> None:
    model = lower(all_forms(dtype), lowering_of(parse_job(f"tensorrt-rtx:{precision}")))
    ir.save(model, tmp_path / "model.onnx")
    request = BuildRequest(tmp_path / "model.onnx", RANGES, "sm89")
    if RTX.builder_missing() is not None:
        with pytest.raises(DeviceError, match=r"pip install graphwright\[rtx\]"):
            build_in_child("tensorrt-rtx", request)
        return
    built = build_in_child("tensorrt-rtx", request)
    assert set(built.precisions) == {precision}
    assert built.precisions[precision] >= len(FORMS)
