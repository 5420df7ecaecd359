"""The route where a device is there but cannot be used: the target is lowered, the others go on."""

from pathlib import Path

import pytest
import torch

import graphwright as gw
from graphwright import tables
from graphwright.artifact import Artifact
from graphwright.compare.verify import verify
from graphwright.errors import Exit
from graphwright.finish import finish
from graphwright.manifest import Manifest, Reference, TargetRecord, Verified
from graphwright.passes.quantize.islands import Extents
from graphwright.pipeline import exit_code, make_target, prepare
from graphwright.recipe import Step, make_recipe
from graphwright.records import enter_build, start_manifest
from graphwright.runtimes import BuildResult
from graphwright.spec import Job
from graphwright.stages import optimize_for
from graphwright.store import Store


def test_a_device_that_does_not_start_leaves_its_target_lowered(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = gw.ModelSpec(torch.nn.Linear(16, 16).eval(), {"input": torch.randn(2, 16)}, {"input": {0: "batch"}})
    recipe = make_recipe({"source": "linear", "targets": ["ort-cuda:fp16"], "out": tmp_path})
    shared = prepare(spec, recipe, Store(), tmp_path / "cases", print)
    manifest = start_manifest(spec, {"text": "linear"}, shared.lifted, shared.ranges)
    # what the plan says where a driver is found; ONNX Runtime's CUDA provider then does not start here
    step = Step(Job("ort-cuda", "fp16"), "lower, build, verify, measure", "its runtime and device are here")
    record = make_target(step, shared, manifest, tmp_path, print)
    assert (record.status, record.verified.verdict) == ("lowered", "simulated")
    assert record.reason.startswith("ort-cuda cannot run here: ")
    assert record.notes[0] == "1 of 1 products in float16; ranges measured on 4 inputs"
    assert (tmp_path / step.job.folder / record.graph).is_file()
    again = verify(spec, Artifact(tmp_path / step.job.folder, manifest, record))
    assert (again.verdict, again.passed) == ("simulated", None)
    manifest.targets.append(record)
    assert exit_code(manifest) is Exit.OK
    assert exit_code(manifest, require=True) is Exit.DEVICE


class Overflows(torch.nn.Module):
    """Of no use in float16 alone: its result is about 1e6."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        x: torch.Tensor = self.linear(input)
        return x * 3e4 * x.tanh() * 30


def overflows() -> gw.ModelSpec:
    torch.manual_seed(0)
    return gw.ModelSpec(Overflows().eval(), {"input": torch.randn(2, 16)}, {"input": {0: "batch"}})


def test_a_graph_that_overflows_is_shipped_right_with_its_islands_told(tmp_path: Path) -> None:
    made = gw.ship(overflows(), ["tensorrt:fp16", "tensorrt:bf16", "tensorrt:fp32"], tmp_path / "out", budget=0)
    assert [record.verified.verdict for record in made.manifest.targets] == ["simulated"] * 2 + ["no device here"]
    assert made.code is Exit.OK
    told = made.manifest.targets[0].notes
    assert any(note.startswith("float32: Mul at ") and note.endswith("float16 ends at 65504") for note in told)
    assert "float16 ends at 65504" in (tmp_path / "out/report.html").read_text()


def test_a_graph_that_is_wrong_in_simulation_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Extents, "misfit", lambda self, value: "")  # a float16 without islands
    made = gw.ship(overflows(), ["tensorrt:fp16"], tmp_path / "out", budget=0)
    (record,) = made.manifest.targets
    assert (record.status, record.verified.verdict, made.code) == ("lowered", "failed", Exit.VERIFICATION)
    assert record.verified.reason.startswith("in simulation on the CPU, output_0 ")
    assert "in simulation on the CPU" in tables.reasons(made.manifest)[0]
    manifest, code = finish(tmp_path / "out", None, progress=print)
    assert (manifest.targets[0].verified.verdict, code) == ("failed", Exit.VERIFICATION)


def test_a_graph_is_lowered_with_a_look_at_the_inputs_of_its_spec() -> None:
    spec = overflows()
    golden = gw.to_onnx(spec)
    assert optimize_for(spec, golden, "tensorrt", "fp16").trail.notes[0].endswith("ranges measured on 4 inputs")
    assert optimize_for(None, golden, "tensorrt:fp16").trail.notes[0].endswith("no data")
    assert optimize_for(spec, golden, "ort-cpu").trail.notes == []
    assert optimize_for(spec, golden, "openvino:bf16").trail.notes == []


def test_a_build_that_falls_short_of_what_was_asked_is_exit_1_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"engine")
    verified = Verified(verdict="passed", cases=1)
    record = TargetRecord(target="tensorrt", precision="fp16", status="lowered", verified=verified, reason="no device")
    manifest = Manifest(
        source={"name": "m"}, reference=Reference(runtime="torch", precision="fp32", version=""), targets=[]
    )
    manifest.targets.append(record)
    result = BuildResult(
        "model.engine", {"tensorrt": "11.4.0.106"}, {}, notes=("one",), precisions={"fp16": 3, "fp32": 1}
    )
    enter_build(record, result, "tensorrt", tmp_path, 1.0, ["two"])
    assert (record.status, record.reason, record.precision_achieved) == ("built", "", {"fp16": 3, "fp32": 1})
    assert record.build is not None
    assert record.build.notes == ["one", "two"]
    assert exit_code(manifest) is Exit.OK
    assert tables.reasons(manifest) == []
    result.shortfall.append("block.o: fp16 was asked, fp32 is what the engine computes in")
    enter_build(record, result, "tensorrt", tmp_path, 1.0, [])
    assert exit_code(manifest) is Exit.VERIFICATION
    assert tables.reasons(manifest) == ["tensorrt:fp16: block.o: fp16 was asked, fp32 is what the engine computes in"]
