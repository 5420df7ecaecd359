"""The route where a device is there but cannot be used: the target is lowered, the others go on."""

from pathlib import Path

import torch

import graphwright as gw
from graphwright import tables
from graphwright.artifact import Artifact
from graphwright.compare.verify import verify
from graphwright.errors import Exit
from graphwright.manifest import Manifest, Reference, TargetRecord, Verified
from graphwright.pipeline import exit_code, make_target, prepare
from graphwright.recipe import Step, make_recipe
from graphwright.records import enter_build, start_manifest
from graphwright.runtimes import BuildResult
from graphwright.spec import Job
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
    assert (record.status, record.verified.verdict) == ("lowered", "no device here")
    assert record.reason.startswith("ort-cuda cannot run here: ")
    assert (tmp_path / step.job.folder / record.graph).is_file()
    assert verify(spec, Artifact(tmp_path / step.job.folder, manifest, record)).passed is None
    manifest.targets.append(record)
    assert exit_code(manifest) is Exit.OK
    assert exit_code(manifest, require=True) is Exit.DEVICE


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
