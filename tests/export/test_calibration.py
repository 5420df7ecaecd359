"""Calibration data from disk: files, folders and functions; and what is said of files that are damaged or hostile."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from graphwright.errors import InputError, UsageError
from graphwright.export import calibration as module
from graphwright.export.calibration import load_calibration
from graphwright.spec import Feeds

SAMPLE = {"ids": np.arange(6).reshape(2, 3), "mask": np.ones((2, 3), bool)}


def read(text: str | Path) -> list[Feeds]:
    """The samples, read twice: each read begins at the start."""
    made: Any = load_calibration(str(text))
    first, second = list(made()), list(made())
    assert len(first) == len(second)
    return first


def same(sample: Feeds, wanted: Feeds = SAMPLE) -> bool:
    return set(sample) == set(wanted) and all(np.array_equal(sample[name], wanted[name]) for name in wanted)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **(arrays or SAMPLE))
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_npz_file_is_one_sample(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "a.npz", **SAMPLE)
    (sample,) = read(tmp_path / "a.npz")
    assert same(sample)


def test_one_safetensors_file_is_one_sample(tmp_path: Path) -> None:
    safetensors.numpy.save_file(SAMPLE, tmp_path / "a.safetensors")
    (sample,) = read(tmp_path / "a.safetensors")
    assert same(sample)


def test_a_folder_gives_its_files_by_name(tmp_path: Path) -> None:
    npz(tmp_path / "2.npz", x=np.array(2))
    npz(tmp_path / "0.npz", x=np.array(0))
    safetensors.numpy.save_file({"x": np.array([1])}, tmp_path / "1.safetensors")
    (tmp_path / "README.md").write_text("where they come from")
    (tmp_path / "3.npz").mkdir()
    assert [int(sample["x"].item()) for sample in read(tmp_path)] == [0, 1, 2]


def test_a_function_in_a_file_is_called_when_asked(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("import numpy as np\ndef samples():\n    yield {'x': np.ones(3)}\n")
    (sample,) = read(f"{tmp_path / 'data.py'}:samples")
    assert same(sample, {"x": np.ones(3)})


def test_files_are_read_when_samples_are_asked_for(tmp_path: Path) -> None:
    npz(tmp_path / "0.npz")
    (tmp_path / "1.npz").write_bytes(b"damaged")
    made: Any = load_calibration(str(tmp_path))
    samples: Iterable[Feeds] = made()
    assert same(next(iter(samples)))
    with pytest.raises(InputError, match=r"1\.npz is no readable \.npz"):
        next(iter(samples))


@pytest.mark.parametrize("name", ["none.npz", "none", "empty", "notes.txt"])
def test_what_is_no_calibration_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(InputError, match=rf"{name} is no calibration data: give a folder of \.npz or \.safetensors"):
        load_calibration(str(tmp_path / name))


def test_an_unknown_function_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("def samples():\n    return []\nrows = [1]\n")
    with pytest.raises(UsageError, match=r"Unknown function in .*data\.py 'sample'\. Did you mean 'samples'\?"):
        load_calibration(f"{tmp_path / 'data.py'}:sample")
    with pytest.raises(UsageError, match=r"Unknown function in .*data\.py 'rows'"):
        load_calibration(f"{tmp_path / 'data.py'}:rows")
    with pytest.raises(InputError, match=r"none\.py does not exist"):
        load_calibration(f"{tmp_path / 'none.py'}:samples")


def flip(path: Path) -> None:
    """Damage the compressed bytes of the first array, and nothing of the archive's own tables."""
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    data = bytearray(path.read_bytes())
    start = first.header_offset + 30 + len(first.filename) + 20
    data[start : start + 8] = bytes(8)
    path.write_bytes(data)


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "text")


def objects(path: Path) -> None:
    np.savez(path, x=np.array([{}], dtype=object))


def cut(path: Path) -> None:
    os.truncate(path, 40)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"is no readable \.npz of plain arrays: "),
        (cut, r"is no readable \.npz of plain arrays: File is not a zip file"),
        (objects, r"is no readable \.npz of plain arrays: Object arrays cannot be loaded"),
        (no_array, r"holds 'notes\.txt', which is no array: write it with np\.savez\.$"),
    ],
)
def test_damaged_npz_files_are_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal(500))
    damage(path)
    with pytest.raises(InputError, match=rf"a\.npz {message}"):
        read(path)


def test_a_small_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 16)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(1 << 16, np.uint8))
    assert path.stat().st_size < 1 << 12
    with pytest.raises(InputError, match=r"a\.npz unpacks to \d+ bytes; a sample may have 65536\."):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{not json      }"])
def test_damaged_safetensors_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors is no readable \.safetensors: "):
        read(tmp_path / "a.safetensors")
