"""Weights that stay on disk: read when they are asked for, through the file that was checked, and no other."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphwright.errors import InputError
from graphwright.export import weights
from graphwright.export.onnx_file import read_onnx

VALUES = np.array([1.5, -2.5], np.float32)
MODEL = '<ir_version: 10, opset_import: ["": 23]> g (float[2] x) => (float[2] y) { y = Relu(x) }'


@pytest.fixture(autouse=True)
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the small ones here."""
    monkeypatch.setattr(weights, "ON_DISK", 0)


def read(
    folder: Path, *files: str, data: bytes = VALUES.tobytes(), dtype: onnx.TensorProto.DataType = onnx.TensorProto.FLOAT
) -> ir.Model:
    """A model of one weight for each of `files` beside it, named after the file."""
    model = onnx.parser.parse_model(MODEL)
    for name in files:
        (folder / name).write_bytes(data)
        made = model.graph.initializer.add(name=name, data_type=dtype, dims=[2])
        made.data_location = onnx.TensorProto.EXTERNAL
        made.external_data.add(key="location", value=name)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return read_onnx(folder / "model.onnx")


def value(model: ir.Model, name: str = "w.bin") -> np.ndarray:
    found = model.graph.initializers[name].const_value
    assert found is not None
    return found.numpy()


def test_a_weight_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    model = read(tmp_path, "w.bin").clone()
    changed = VALUES + 1
    (tmp_path / "w.bin").write_bytes(changed.tobytes())  # the same file with other content
    assert value(model).tolist() == changed.tolist()
    with pytest.raises(ValueError, match="read-only"):
        value(model)[0] = 0


def test_another_file_of_its_name_is_not_read(tmp_path: Path) -> None:
    model = read(tmp_path, "w.bin")
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").write_bytes(b"secret!!")
    assert value(model).tolist() == VALUES.tolist()


def test_a_file_cut_off_later(tmp_path: Path) -> None:
    model = read(tmp_path, "w.bin")
    os.truncate(tmp_path / "w.bin", 5)
    with pytest.raises(InputError, match=r"the data file 'w\.bin' changed while it was read\. Try again"):
        value(model)


def test_what_stays_on_disk_is_saved(tmp_path: Path) -> None:
    model = read(tmp_path, "w.bin")
    ir.save(model, tmp_path / "copy.onnx", external_data="copy.data", size_threshold_bytes=0)
    assert (tmp_path / "copy.data").read_bytes()[: VALUES.nbytes] == VALUES.tobytes()
    assert value(read_onnx(tmp_path / "copy.onnx")).tolist() == VALUES.tolist()


def test_many_files_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "FILES", 1)
    model = read(tmp_path, "w.bin", "x.bin")
    kept = {name: isinstance(each.const_value, ir.LazyTensor) for name, each in model.graph.initializers.items()}
    assert kept == {"w.bin": True, "x.bin": False}
    assert value(model, "x.bin").tolist() == VALUES.tolist()


def test_types_of_less_than_a_byte_are_read_at_once(tmp_path: Path) -> None:
    found = read(tmp_path, "w.bin", data=b"\x21", dtype=onnx.TensorProto.INT4)
    assert not isinstance(found.graph.initializers["w.bin"].const_value, ir.LazyTensor)
    assert value(found).astype(int).tolist() == [1, 2]


def handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_handles_go_with_the_model(tmp_path: Path) -> None:
    gc.collect()
    before = handles()
    model = read(tmp_path, "w.bin")
    assert handles() == before + 1
    del model
    gc.collect()
    assert handles() == before
