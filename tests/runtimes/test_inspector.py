"""The engine inspector's answers of TensorRT 10 and 11, read for what each product and attention became."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graphwright.errors import BuildError
from graphwright.runtimes.inspector import Layer, judge, read


def tensor(kind: str, split: bool = False, field: str = "Format/Datatype") -> dict[str, Any]:
    """A tensor as TensorRT 10 writes it, or `split` into two fields as 11 does."""
    if split:
        return {"Name": "t", "Location": "Device", "Dimensions": [2, 16, 64], "Format": "Linear", "Datatype": kind}
    return {"Name": "t", "Location": "Device", "Dimensions": [2, 16, 64], field: kind}


def layer(name: str, kind: str, inputs: list[dict[str, Any]], nodes: list[str], tactic: str = "") -> dict[str, Any]:
    """A layer at detailed verbosity."""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": inputs,
        "Outputs": inputs[:1],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def document(layers: list[Any], key: str = "Bindings") -> str:
    return json.dumps({"Layers": layers, key: ["ids", "scores"]})


HALF, FLOAT = tensor("Half"), tensor("Float")
GEMM = "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize64x64x64_stage4_warpsize2x2x1_tensor16x8x16"
UNKNOWN = tensor("N/A due to dynamic shapes")


@pytest.mark.parametrize(
    ("inputs", "tactic", "precision"),
    [
        ([HALF], "", "fp16"),
        ([FLOAT], "", "fp32"),
        ([tensor("BFloat16")], "", "bf16"),
        ([tensor("Int8")], "", "int8"),
        ([tensor("FP8")], "", "fp8"),
        ([tensor("FP4")], "", "nvfp4"),
        ([tensor("Row major linear FP16 format")], "", "fp16"),
        ([tensor("Channel major FP32 format where channel % 8 == 0")], "", "fp32"),
        ([tensor("Half", split=True)], "", "fp16"),
        ([tensor("BF16", field="DataType")], "", "bf16"),
        ([tensor("Int64"), HALF], "", "fp16"),
        ([UNKNOWN], GEMM, "fp16"),
        ([UNKNOWN], "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bf16"),
        ([UNKNOWN], "sm80_xmma_gemm_i8f16_i8i32_f16_tn_n", "int8"),
        ([UNKNOWN], "sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", "fp8"),
        ([UNKNOWN], "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n", "tf32"),
        ([FLOAT], "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n", "tf32"),
        ([UNKNOWN], "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n", "fp32"),
        ([UNKNOWN], "ampere_h16816gemm_256x128_ldg8_nn_v1", "fp16"),
        ([UNKNOWN], "0x0000000000000000", ""),
        ([], "", ""),
    ],
)
def test_a_layers_precision_is_read(inputs: list[dict[str, Any]], tactic: str, precision: str) -> None:
    (found,) = read(document([layer("q", "gemm", inputs, ["a", "b"], tactic)]))
    assert found == Layer("q", "gemm", tactic, ("a", "b"), precision)


def test_both_forms_of_the_document_are_read() -> None:
    layers = [layer("q", "gemm", [HALF], ["q"])]
    assert read(document(layers)) == read(document(layers, "I/O Tensors"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"Layers": ["q_myl0_1", "k_myl0_2"], "Bindings": []}), "build it with profiling=detailed"),
        ("no JSON", "has no layers as TensorRT 10 and 11 write them"),
        ("{}", "has no layers"),
        ("[]", "has no layers"),
        (json.dumps({"Layers": [3]}), "has no layers"),
        (json.dumps({"Layers": [{"LayerType": "gemm"}]}), "has no layers"),
    ],
)
def test_an_answer_without_layers_is_an_error(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        read(text)


FUSED = [
    layer("q+k+v_myl0_1", "gemm", [HALF], ["q", "k", "v"], GEMM),
    layer("__myl_MoveReshTran_myl0_2", "kgen", [HALF], ["attention"]),
    layer("_gemm_mha_v2_myl0_3", "kgen", [HALF, HALF, HALF, tensor("Bool")], ["attention"], "_gemm_mha_v2_0x1f"),
    layer("__myl_CastMeanSub_myl0_4", "kgen", [FLOAT], ["norm", "o"]),
    layer("o_myl0_5", "gemm", [HALF], ["o"], GEMM),
]
ASKED = dict.fromkeys(("q", "k", "v", "attention", "o"), "fp16")


def test_an_engine_as_it_was_asked_for_has_no_shortfall() -> None:
    found = judge(read(document(FUSED)), ASKED, ["attention"])
    assert found.precisions == {"fp16": 5}
    assert (found.shortfall, found.unknown) == ([], [])


@pytest.mark.parametrize("name", ["_gemv_mha_v1_myl0_3", "__mye8037_gemm_mha_v2", "fmha_v2_flash_attention_fp16_64"])
def test_names_of_fused_kernels(name: str) -> None:
    layers = [*FUSED[:2], layer(name, "kgen", [HALF], ["attention"]), *FUSED[3:]]
    assert judge(read(document(layers)), ASKED, ["attention"]).shortfall == []


def test_a_kernel_that_alone_is_the_attention_is_fused_whatever_its_name() -> None:
    layers = [FUSED[0], layer("__myl_Fused_myl0_3", "kgen", [HALF], ["attention"]), *FUSED[3:]]
    assert judge(read(document(layers)), ASKED, ["attention"]).shortfall == []


def test_another_precision_and_an_attention_in_parts_are_listed() -> None:
    parts = [
        layer("bmm1_myl0_2", "gemm", [HALF], ["attention"], GEMM),
        layer("__myl_MaxSubExpSumDiv_myl0_3", "kgen", [FLOAT], ["attention"]),
        layer("bmm2_myl0_4", "gemm", [HALF], ["attention"], GEMM),
        layer("o_myl0_5", "gemm", [FLOAT], ["o"], "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n"),
    ]
    found = judge(read(document([FUSED[0], *parts])), ASKED, ["attention"], lambda node: f"block.{node}")
    assert found.precisions == {"fp16": 4, "fp32": 1}
    assert found.shortfall == [
        "block.o: fp16 was asked, fp32 is what the engine computes in",
        "block.attention: the attention is 3 kernels, not one fused kernel",
    ]
    # the same is no shortfall of an attention that no fused kernel was asked for
    assert len(judge(read(document([FUSED[0], *parts])), ASKED).shortfall) == 1


def test_what_no_layer_names_is_unknown_and_no_shortfall() -> None:
    found = judge(read(document(FUSED[:1])), ASKED, ["attention"])
    assert found.precisions == {"fp16": 3}
    assert (found.shortfall, found.unknown) == ([], ["attention", "o"])


def test_tf32_is_a_shortfall_unless_it_was_allowed() -> None:
    layers = read(document([layer("q", "gemm", [FLOAT], ["q"], "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n")]))
    assert judge(layers, {"q": "fp32"}).shortfall == ["q: fp32 was asked, tf32 is what the engine computes in"]
    assert judge(layers, {"q": "fp32"}, tf32=True).shortfall == []
    assert judge(layers, {"q": "fp32"}, tf32=True).precisions == {"tf32": 1}
