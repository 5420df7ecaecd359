"""Caches of keys and values as inputs and outputs, and dims that are the sum of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

import graphwright as gw
from graphwright.errors import InputError
from graphwright.export.onnx_source import from_onnx
from graphwright.stages import ranges_of

PAST = {0: "batch", 2: "past"}
BOTH = {0: "batch", 1: "sequence"}
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 32}


def shapes(values: Any) -> dict[str, list[str]]:
    return {value.name: [str(dim) for dim in value.shape] for value in values}


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=64, num_hidden_layers=2, **SIZES)
    module: torch.nn.Module = transformers.LlamaForCausalLM(config).eval()
    return module


def pair(heads: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, heads, length, 8), torch.randn(2, heads, length, 8)


def test_a_step_of_a_decoder_takes_and_gives_its_cache() -> None:
    cache = DynamicCache([pair(2, 5), pair(2, 5)])
    inputs = {
        "input_ids": torch.randint(0, 64, (2, 3)),
        "attention_mask": torch.ones(2, 8, dtype=torch.int64),
        "past_key_values": cache,
    }
    names = [f"{layer}.{part}" for layer in range(2) for part in range(2)]
    dims = {"input_ids": BOTH, "attention_mask": {0: "batch", 1: "past + sequence"}}
    dims |= {f"past_key_values.{name}": PAST for name in names}
    golden = gw.to_onnx(gw.ModelSpec(llama(), inputs, dims, name="step"), 18)  # proves it at other sizes
    assert shapes(golden.graph.inputs) == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "past + sequence"],
        **{f"past_key_values.{name}": ["batch", "2", "past", "8"] for name in names},
    }
    assert shapes(golden.graph.outputs) == {
        "logits": ["batch", "sequence", "64"],
        **{f"present_key_values.{name}": ["batch", "2", "past + sequence", "8"] for name in names},
    }
    assert cache.layers[0].keys.shape[2] == 5, "the user's own cache is not written to"


def test_a_cache_that_only_goes_out_keeps_its_name() -> None:
    inputs = {"input_ids": torch.randint(0, 64, (2, 3))}
    golden = gw.to_onnx(gw.ModelSpec(llama(), inputs, {"input_ids": BOTH}, name="prefill"), 18)
    assert list(shapes(golden.graph.outputs))[:2] == ["logits", "past_key_values.0.0"]


def test_a_cache_of_encoder_and_decoder() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    module = transformers.T5ForConditionalGeneration(config).eval()
    inputs = {
        "encoder_outputs": (torch.randn(2, 7, 32),),
        "attention_mask": torch.ones(2, 7, dtype=torch.int64),
        "decoder_input_ids": torch.randint(0, 64, (2, 1)),
        "past_key_values": EncoderDecoderCache(DynamicCache([pair(4, 3)]), DynamicCache([pair(4, 7)])),
    }
    dims = {"encoder_outputs.0": BOTH, "attention_mask": BOTH, "decoder_input_ids": {0: "batch"}}
    dims |= {f"past_key_values.self.0.{part}": PAST for part in range(2)}
    dims |= {f"past_key_values.cross.0.{part}": {0: "batch", 2: "sequence"} for part in range(2)}
    golden = gw.to_onnx(gw.ModelSpec(module, inputs, dims, name="t5"), 18)
    outputs = shapes(golden.graph.outputs)
    assert outputs["present_key_values.self.0.0"] == ["batch", "4", "past + 1", "8"]
    assert outputs["present_key_values.cross.0.1"] == ["batch", "4", "sequence", "8"]


class Step(torch.nn.Module):
    """One attention over x [batch, sequence, 16] and a past of 2 heads: tensors in pairs, as modules pass them on."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
        head = x.view(*x.shape[:2], 2, 8).transpose(1, 2)
        keys, values = (torch.cat([part, head], 2) for part in past)
        y = torch.nn.functional.scaled_dot_product_attention(head, keys, values, mask[:, None, None])
        return {"y": y.transpose(1, 2).flatten(2), "past": (keys, values)}


def step(total: str = "past + sequence") -> gw.ModelSpec:
    inputs = {"x": torch.randn(2, 3, 16), "mask": torch.ones(2, 8, dtype=torch.bool), "past": pair(2, 5)}
    dims = {"x": BOTH, "mask": {0: "batch", 1: total}, "past.0": PAST, "past.1": PAST}
    return gw.ModelSpec(Step(), inputs, dims, name="step")


@pytest.mark.parametrize("opset", [18, 23])
def test_pairs_of_a_module_of_the_users_own(opset: int) -> None:
    golden = gw.to_onnx(step(), opset)
    assert shapes(golden.graph.outputs) == {
        "y": ["batch", "sequence", "16"],
        "present.0": ["batch", "2", "past + sequence", "8"],
        "present.1": ["batch", "2", "past + sequence", "8"],
    }


def test_a_sum_that_was_not_said_to_be_one_is_no_free_dim() -> None:
    with pytest.raises(InputError, match=r"takes only the sizes .* name that one as the sum that it is"):
        gw.to_onnx(step("total"), 18)


def test_a_past_of_one_is_enlarged_with_all_that_depends_on_it() -> None:
    spec = step()
    inputs = {"x": spec.inputs["x"][:, :1], "mask": torch.ones(2, 2, dtype=torch.bool), "past": pair(2, 1)}
    golden = gw.to_onnx(gw.ModelSpec(Step(), inputs, spec.dynamic, name="step"), 18)
    assert shapes(golden.graph.inputs)["mask"] == ["batch", "past + sequence"]


def test_ranges_and_files_know_sums(tmp_path: Path) -> None:
    golden = gw.to_onnx(step(), 18)
    ranges = ranges_of(golden, step())
    assert ranges["past + sequence"] == (2, 8, ranges["past"][2] + ranges["sequence"][2])
    ir.save(golden, tmp_path / "step.onnx")
    read = from_onnx(tmp_path / "step.onnx")
    assert read.dynamic["mask"] == {0: "batch", 1: "past + sequence"}
    assert read.tensors["mask"].shape == (2, 32)


def test_the_whole_way(tmp_path: Path) -> None:
    assert gw.ship(step(), ["ort-cpu:fp32"], tmp_path / "out", budget=0).passed
