"""Artifacts: opened as they were built, and not where they were changed, are elsewhere's, or only lowered."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import graphwright as gw
from graphwright.artifact import Artifact, load, load_all
from graphwright.errors import DeviceError, InputError, UsageError
from graphwright.manifest import Manifest, TargetRecord, read, write
from graphwright.runtimes import RUNTIMES


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x @ x.transpose(0, 1)}


@pytest.fixture(scope="module")
def spec() -> gw.ModelSpec:
    return gw.ModelSpec(Twice(), {"x": torch.randn(3, 4)}, {"x": {0: "rows"}}, name="twice")


@pytest.fixture(scope="module")
def shipped(spec: gw.ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One target built, one that is only lowered where there is no GPU."""
    out = tmp_path_factory.mktemp("shipped")
    gw.ship(spec, targets=["ort-cpu:fp32", "tensorrt:fp16"], out=out, budget=0)
    return out


@pytest.fixture
def out(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "out"))


@pytest.fixture
def folder(out: Path) -> Path:
    return out / "ort-cpu-fp32"


def edit(folder: Path, change: Callable[[Manifest, TargetRecord], None]) -> Artifact:
    """The artifact in `folder`, after its manifest was changed."""
    manifest = read(folder)
    change(manifest, manifest.targets[0])
    write(manifest, folder)
    return load(folder)


def test_it_opens_and_runs(folder: Path) -> None:
    artifact = load(str(folder))
    assert artifact.label == str(artifact.job) == "ort-cpu:fp32"
    assert artifact.path == folder / "model.onnx"
    assert artifact.golden == folder / "golden.safetensors"
    assert artifact.missing() is None
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with artifact.open() as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ x.T, rtol=1e-6)


def test_it_may_be_moved(folder: Path, tmp_path: Path) -> None:
    with load(folder.rename(tmp_path / "elsewhere")).open() as session:
        assert session.provider == "CPUExecutionProvider"


# --- finding it


def test_all_that_was_shipped_is_found(out: Path) -> None:
    assert [artifact.label for artifact in load_all(out)] == ["ort-cpu:fp32", "tensorrt:fp16"]
    assert [artifact.folder for artifact in load_all(str(out))] == [out / "ort-cpu-fp32", out / "tensorrt-fp16"]
    assert [artifact.folder for artifact in load_all(out / "ort-cpu-fp32")] == [out / "ort-cpu-fp32"]


def test_the_folder_of_a_shipment_is_no_artifact(out: Path) -> None:
    one = re.escape(f"{out} holds what was shipped; name one artifact of it: {out}/")
    with pytest.raises(UsageError, match=f"^{one}ort-cpu-fp32, {re.escape(str(out))}/tensorrt-fp16\\.$"):
        load(out)
    manifest = read(out)
    manifest.targets = manifest.targets[1:]
    write(manifest, out)
    with pytest.raises(UsageError, match=f"^{one}tensorrt-fp16\\.$"):
        load(out)


def test_a_manifest_without_a_target_is_no_artifact(folder: Path) -> None:
    manifest = read(folder)
    manifest.targets = []
    write(manifest, folder)
    with pytest.raises(InputError, match=r"holds a manifest\.json without a target: build it again\."):
        load(folder)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no readable manifest\.json"):
        load(tmp_path)


# --- not opening it


def fail(manifest: Manifest, record: TargetRecord) -> None:
    record.status, record.reason = "failed", "no form for Loop"


def lower(manifest: Manifest, record: TargetRecord) -> None:
    record.status = "lowered"


def test_what_was_not_built_is_not_opened(folder: Path) -> None:
    failed = edit(folder, fail)
    assert failed.missing() == "failed: no form for Loop"
    with pytest.raises(DeviceError, match=r"ort-cpu:fp32 in .* cannot run here: failed: no form for Loop\.$"):
        failed.open()
    lowered = edit(folder, lower)
    with pytest.raises(
        DeviceError, match="cannot run here: lowered, not built: `graphwright verify` builds it on this"
    ):
        lowered.open()


def test_what_needs_another_device_is_not_opened(out: Path) -> None:
    artifact = load(out / "tensorrt-fp16")
    if RUNTIMES["tensorrt"].missing() is None:
        assert artifact.record.status == "built"
        return
    assert artifact.missing() == RUNTIMES["tensorrt"].missing()
    assert artifact.path == artifact.folder / "model.onnx", "the graph: there is no engine"
    with pytest.raises(DeviceError, match=r"^tensorrt:fp16 in .*/tensorrt-fp16 cannot run here: "):
        artifact.open()


def test_a_changed_file_is_not_opened(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    artifact = load(folder)
    with pytest.raises(InputError, match=r"model\.onnx was changed since it was built \(its SHA-256 differs\): build"):
        artifact.open()


def test_a_missing_file_is_not_opened(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"lacks 'model\.onnx', which its manifest lists: build it again\."):
        load(folder).open()


def elsewhere(manifest: Manifest, record: TargetRecord) -> None:
    record.sha256 = {"../model.onnx": record.sha256["model.onnx"]}
    record.artifact = "../model.onnx"


def unlisted(manifest: Manifest, record: TargetRecord) -> None:
    record.artifact = "other.onnx"


def unnamed(manifest: Manifest, record: TargetRecord) -> None:
    record.sha256 = {}


def unknown(manifest: Manifest, record: TargetRecord) -> None:
    record.target = "ort-cpo"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (unlisted, InputError, r"The manifest in .* has no SHA-256 of 'other\.onnx': build it again\."),
        (unnamed, InputError, r"The manifest in .* has no SHA-256 of 'model\.onnx': build it again\."),
        (unknown, UsageError, r"Unknown target 'ort-cpo'\. Did you mean 'ort-cpu'\?"),
    ],
)
def test_a_manifest_that_was_changed_opens_nothing(
    folder: Path, change: Callable[[Manifest, TargetRecord], None], kind: type[Exception], message: str
) -> None:
    shutil.copy(folder / "model.onnx", folder / "other.onnx")
    artifact = edit(folder, change)
    with pytest.raises(kind, match=message):
        artifact.open()


def test_nothing_outside_of_its_folder_is_opened(folder: Path) -> None:
    shutil.copy(folder / "model.onnx", folder.parent / "model.onnx")
    manifest = read(folder)
    elsewhere(manifest, manifest.targets[0])
    with pytest.raises(InputError, match=r"lacks '\.\./model\.onnx', which its manifest lists: build it again\."):
        Artifact(folder, manifest, manifest.targets[0]).open()


@pytest.mark.parametrize("name", ["../golden.safetensors", "/etc/hostname", ".."])
def test_recorded_inputs_outside_of_the_folder_are_refused(out: Path, name: str) -> None:
    artifact = load(out / "ort-cpu-fp32")
    artifact.manifest.golden = name
    with pytest.raises(InputError, match="outside of its folder"):
        _ = artifact.golden


def test_a_graph_that_was_changed_is_refused_before_any_loader_sees_it(folder: Path, spec: gw.ModelSpec) -> None:
    (folder / "model.onnx").write_bytes(b"no graph any more")
    with pytest.raises(InputError, match="it is no ONNX model, or was cut off"):
        gw.verify(spec, load(folder))
