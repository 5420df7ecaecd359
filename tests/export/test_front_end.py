"""The front ends: which module takes which, and what Hugging Face models need of theirs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import graphwright as gw
from graphwright.errors import BuildError, InputError
from graphwright.export import open_reference
from graphwright.export.front_end import FrontEnd, Transformers, front_end
from graphwright.runtimes.ort_cpu import PROVIDER, OrtSession
from graphwright.spec import PATH

BOTH = {0: "batch", 1: "sequence"}
DIMS = {"input_ids": BOTH, "attention_mask": BOTH}
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}


def text() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, -2:] = 0
    return {"input_ids": torch.randint(5, 64, (2, 6)), "attention_mask": mask}


def mixtral() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.MixtralConfig(**sizes)
    config.use_cache = False
    module: torch.nn.Module = transformers.MixtralForCausalLM(config).eval()
    return module


class Pooled(torch.nn.Module):
    """A model inside of a module of the user's own."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = (1.0 - attention_mask) * -1e4
        return {"pooled": (hidden * weights.softmax(-1).unsqueeze(-1)).sum(1)}


def xlnet() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=4, d_inner=32)
    module: torch.nn.Module = transformers.XLNetModel(config).eval()
    return module


def test_a_module_that_holds_a_model_of_transformers_takes_its_front_end() -> None:
    model = xlnet()
    assert isinstance(front_end(model), Transformers)
    assert isinstance(front_end(Pooled(model)), Transformers)
    assert type(front_end(torch.nn.Linear(2, 2))) is FrontEnd


def test_a_plain_module_loads_nothing_of_transformers() -> None:
    code = (
        "import sys, torch, graphwright as gw\n"
        "gw.to_onnx(gw.ModelSpec(torch.nn.Linear(2, 2), {'input': torch.ones(2, 2)}, {'input': {0: 'batch'}}))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("opset", [18, 23])
def test_experts_export(opset: int) -> None:
    spec = gw.ModelSpec(mixtral(), text(), DIMS, name="mixtral")
    golden = gw.to_onnx(spec, opset)  # proves it at other sizes
    assert [value.name for value in golden.graph.outputs] == ["logits"]
    assert [str(dim) for dim in golden.graph.outputs[0].shape or ()] == ["batch", "sequence", "64"]
    assert "model.layers.0.mlp.experts" in {node.metadata_props.get(PATH) for node in golden.graph}


@pytest.mark.parametrize("wrap", [lambda model: model, Pooled])
def test_models_that_subtract_a_mask_of_whole_numbers_export(wrap: Callable[[torch.nn.Module], Any]) -> None:
    gw.to_onnx(gw.ModelSpec(wrap(xlnet()), text(), DIMS, name="xlnet"), 18)


def test_functions_of_torch_are_as_they_were_after_tracing() -> None:
    kept = [torch.where, torch.Tensor.view, torch.nn.functional.scaled_dot_product_attention]
    front = front_end(xlnet())
    with front.active():
        assert torch.where is kept[0]
        assert torch.Tensor.view is not kept[1]
        assert torch.nn.functional.scaled_dot_product_attention is kept[2]
        assert not torch.is_grad_enabled()
    assert [torch.where, torch.Tensor.view, torch.nn.functional.scaled_dot_product_attention] == kept
    assert torch.is_grad_enabled()


class Padded(torch.nn.Module):
    """torch's own encoder, whose fused kernel writes zeros where a row is padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.encoder = torch.nn.TransformerEncoder(layer, 1)

    def forward(self, x: torch.Tensor, pad: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.encoder(x, src_key_padding_mask=pad)}


def test_the_fused_encoder_layer_is_neither_exported_nor_the_reference() -> None:
    torch.manual_seed(0)
    pad = torch.zeros(2, 5, dtype=torch.bool)
    pad[1, 3:] = True
    spec = gw.ModelSpec(Padded().eval(), {"x": torch.randn(2, 5, 16), "pad": pad}, {"x": BOTH, "pad": BOTH})
    golden = gw.to_onnx(spec, 18)
    feeds = {name: value.numpy() for name, value in spec.tensors.items()}
    with open_reference(spec) as reference:
        wanted = reference.run(feeds)["y"]
    assert np.abs(wanted[1, 3:]).max() > 0.1
    assert torch.backends.mha.get_fastpath_enabled()
    import onnx_ir as ir

    with OrtSession(ir.to_proto(golden).SerializeToString(), [PROVIDER]) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], wanted, atol=1e-5)


class Counter(torch.nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


def test_a_buffer_that_is_set_to_itself_is_not_changed() -> None:
    class Moved(Counter):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count = self.count.to(x.device)
            return x + self.count

    gw.to_onnx(gw.ModelSpec(Moved(), {"x": torch.ones(2, 3)}, {"x": {0: "batch"}}))


def test_a_forward_that_changes_a_buffer_is_refused() -> None:
    spec = gw.ModelSpec(Counter(), {"x": torch.ones(2, 3)}, {"x": {0: "batch"}})
    with pytest.raises(InputError, match=r"^Counter\.forward changes the buffer 'count', but a graph keeps nothing"):
        gw.to_onnx(spec)


class Loop(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place in x[:, 0].nonzero():
            x = x + place
        return x


def test_a_trace_that_ends_at_data_says_it_in_one_paragraph(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BuildError, match="could not trace 'model': GuardOnDataDependentSymNode"):
        gw.to_onnx(gw.ModelSpec(Loop(), {"x": torch.randn(2, 3)}, {"x": {0: "batch"}}))
    assert capfd.readouterr().err == ""
