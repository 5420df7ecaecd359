"""Calibration data from disk: npz or safetensors files, or a function in a file; one sample in memory at a time."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ..errors import InputError
from ..spec import Calibration, Feeds, pick
from .sources import import_file

SUFFIXES = (".npz", ".safetensors")
MAX_BYTES = 1 << 31  # of one sample, unpacked: a small compressed file can claim any size


def load_calibration(text: str) -> Calibration:
    """`file.py:function`, one .npz or .safetensors file, or a folder of them, each file one sample {input: array}.

    Raises InputError where nothing of that kind is there. Files are read when the samples are asked for.
    """
    head, _, name = text.rpartition(":")
    if head.endswith(".py"):
        module: Any = import_file(Path(head))
        if not callable(getattr(module, name, None)):
            pick(f"function in {head}", name, [key for key, value in vars(module).items() if callable(value)])
        function: Callable[[], Iterable[Feeds]] = getattr(module, name)
        return function
    path = Path(text)
    inside = path.iterdir() if path.is_dir() else [path]
    files = sorted(file for file in inside if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise InputError(
            f"{text} is no calibration data: give a folder of .npz or .safetensors files (one sample each), one such "
            "file, or file.py:function."
        )
    return lambda: _samples(files)


def _samples(files: list[Path]) -> Iterator[Feeds]:
    for file in files:
        yield _read_npz(file) if file.suffix == ".npz" else _read_safetensors(file)


def _read_npz(file: Path) -> Feeds:
    with _reading(file, ".npz of plain arrays"):
        with zipfile.ZipFile(file) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
        if claimed > MAX_BYTES:
            raise InputError(f"{file} unpacks to {claimed} bytes; a sample may have {MAX_BYTES}.")
        with np.load(file, allow_pickle=False) as arrays:
            sample = {name: arrays[name] for name in arrays.files}
        for name, array in sample.items():
            if not isinstance(array, np.ndarray):  # np.load gives other files in the archive as bytes
                raise InputError(f"{file} holds {name!r}, which is no array: write it with np.savez.")
    return sample


def _read_safetensors(file: Path) -> Feeds:
    with _reading(file, ".safetensors"):
        return safetensors.numpy.load_file(file)


@contextlib.contextmanager
def _reading(file: Path, form: str) -> Iterator[None]:
    """A damaged file can raise anything (zlib.error, EOFError, ...); all of it means the same."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} is no readable {form}: {error}") from error
