"""The target openvino: each attention and each norm becomes one of its own kernels, in the precision asked for."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import graphwright as gw
from graphwright.compare.verify import verify
from graphwright.errors import BuildError
from graphwright.passes import TARGETS, optimize
from graphwright.passes.lower.openvino import OPS
from graphwright.runtimes import RUNTIMES, BuildRequest, BuildResult
from graphwright.spec import COMPUTE

OPENVINO = RUNTIMES["openvino"]


class Block(torch.nn.Module):
    """x [batch, sequence, 64], keep [batch, sequence] bool -> y [batch, sequence, 64]; two layers, four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(64, 192) for _ in range(2))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(64) for _ in range(2))
        self.up = torch.nn.ModuleList(torch.nn.Linear(64, 128) for _ in range(2))
        self.down = torch.nn.ModuleList(torch.nn.Linear(128, 64) for _ in range(2))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        mask = keep[:, None, None, :] & keep[:, None, :, None]
        for qkv, norm, up, down in zip(self.qkv, self.norms, self.up, self.down, strict=True):
            q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in qkv(norm(x)).chunk(3, -1))
            made = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + made.transpose(1, 2).flatten(-2)
            x = x + down(torch.nn.functional.gelu(up(x)))
        return {"y": x}


@pytest.fixture(scope="module")
def spec() -> gw.ModelSpec:
    torch.manual_seed(0)
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[1, 4:] = False
    dynamic = {0: "batch", 1: "sequence"}
    inputs = {"x": torch.randn(2, 6, 64), "keep": keep}
    return gw.ModelSpec(Block().eval(), inputs, {"x": dynamic, "keep": dynamic}, name="block")


@pytest.fixture(scope="module")
def lifted(spec: gw.ModelSpec) -> gw.Lifted:
    return gw.lift(gw.to_onnx(spec))


def build(lifted: gw.Lifted, precision: str, folder: Path) -> BuildResult:
    ir.save(optimize(lifted, "openvino", precision).model, folder / "model.onnx")
    return OPENVINO.build(BuildRequest(folder / "model.onnx"))


def test_every_site_becomes_one_kernel(lifted: gw.Lifted, tmp_path: Path) -> None:
    built = build(lifted, "fp32", tmp_path)
    assert built.precisions == {"fp32": 8}, "three linear layers and an attention, twice"
    assert built.ops["Subgraph"] == 2
    assert built.ops["MVN"] == 2
    assert not {"Softmax", "MatMul", "IsNaN", "Select", "Gelu", "Erf"} & set(built.ops), "none is left by itself"


@pytest.mark.parametrize("precision", TARGETS["openvino"].precisions)
def test_the_graph_stays_float32_and_says_what_to_compute_in(lifted: gw.Lifted, precision: str) -> None:
    model = optimize(lifted, "openvino", precision).model
    assert model.metadata_props[COMPUTE] == precision
    types = {value.dtype for node in model.graph for value in node.outputs if value.dtype is not None}
    assert not types & {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}
    ops = {node.op_type for node in model.graph}
    assert ("DequantizeLinear" in ops) == (precision == "int8-dynamic")
    assert not ops & {"Attention", "MatMulInteger", "DynamicQuantizeLinear"}


def test_what_runs_is_proved_in_every_precision_and_again_without_the_lifted_graph(
    spec: gw.ModelSpec, tmp_path: Path
) -> None:
    # the second row's padded queries see no key: they have no right value, and are counted
    targets = [f"openvino:{precision}" for precision in TARGETS["openvino"].precisions]
    shipped = gw.ship(spec, targets, tmp_path / "out", budget=0)
    for record in shipped.manifest.targets:
        folder = tmp_path / "out" / f"openvino-{record.precision}"
        if record.status == "lowered":
            assert "bfloat16" in record.reason
            continue
        assert (record.status, record.verified.verdict) == ("built", "passed"), record.verified
        assert record.build is not None
        assert record.precision in record.precision_achieved or record.build.notes
        assert record.ops["runtime"]["MVN"] == 2
        assert record.options["quantization_group"] == 128
        assert verify(spec, gw.load(folder)).passed, "from the target graph's own masks"


def test_ops_that_it_lacks_are_refused_by_name() -> None:
    assert "Det" not in OPS
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23]> f (float[N, 2, 2] x) => (float[N] y) { y = Det(x) }'
    )
    with pytest.raises(BuildError, match=r"^openvino has no form for Det at "):
        optimize(model, "openvino")


def test_a_graph_quantized_ahead_may_go_to_it() -> None:
    assert {"QuantizeLinear", "DequantizeLinear", "QLinearMatMul"} <= OPS
    text = """<ir_version: 10, opset_import: ["": 23]> f (float[N, 2] x) => (float[N, 2] y)
        <float s = {0.5}, uint8 z = {128}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    ops = [node.op_type for node in optimize(ir.from_onnx_text(text), "openvino").model.graph]
    assert ops == ["QuantizeLinear", "DequantizeLinear"]
