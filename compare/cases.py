"""The inputs to compare on: a grid of shapes, padded rows, real samples; and how they are kept on disk."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import InputError, ResourceError, UsageError
from ..spec import Feeds, size_of

Dynamic = Mapping[str, Mapping[int, str]]
Ranges = Mapping[str, tuple[int, int, int]]

GRID = 16  # combinations of sizes at most; each costs a run of the reference and of every artifact
PADDED = 4
BATCH_SIZES = (1, 3, 8)
SIZES = (1, 7, 33, 128)  # one, odd and below a vector's width, odd and above it, whole tiles
HEADER_BYTES = 8 << 20  # far above the header of any golden file, far below what would fill the memory

_KEY = re.compile(r"(?P<case>[0-9]{1,6})/(?P<side>in|out)/(?P<name>.+)", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """One set of inputs. `real` ones came from the user's calibration data; the others were made from the example."""

    name: str
    feeds: Feeds
    real: bool = False


Reference = Callable[[Case], Mapping[str, np.ndarray]]


def cases(feeds: Feeds, dynamic: Dynamic, ranges: Ranges, samples: Iterable[Feeds]) -> list[Case]:
    """The grid of sizes made from the example `feeds`, cases with padded rows, then each of `samples` as it is.

    A dynamic dim that is axis 0 wherever it occurs takes `BATCH_SIZES`, any other `SIZES`, clipped into its range. Of
    the combinations up to `GRID` are taken, such that each size occurs, the all-smallest first and the all-largest too.
    Raises InputError where a sample does not fit the inputs: names, dtype, shape, or NaN.
    """
    grid = [Case(_title(sizes), _resize(feeds, dynamic, sizes)) for sizes in _combinations(feeds, dynamic, ranges)]
    real = [
        Case(f"sample {index}", _checked(index, sample, feeds, dynamic, ranges), real=True)
        for index, sample in enumerate(samples)
    ]
    return [*grid, *_padded(feeds, grid), *real]


def _title(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{dim}={size}" for dim, size in sizes.items()) or "example"


def _combinations(feeds: Feeds, dynamic: Dynamic, ranges: Ranges) -> list[dict[str, int]]:
    """Sizes by dim, the smallest first; the example's own come last where the grid does not hold them."""
    places = [(name, axis, dim) for name, axes in dynamic.items() for axis, dim in axes.items() if dim.isidentifier()]
    example = {dim: feeds[name].shape[axis] for name, axis, dim in places}
    axes = {(dim, axis > 0) for _, axis, dim in places}
    batch = {dim for dim, later in axes if not later and (dim, True) not in axes}
    choices = [_sizes(BATCH_SIZES if dim in batch else SIZES, ranges.get(dim)) for dim in example]
    total = math.prod(map(len, choices))
    picked = [0, total - 1]
    if total <= GRID:
        picked = list(range(total))
    else:
        # Diagonals hold each size of each dim; even steps through the product fill the rest.
        for step in range(max(map(len, choices))):
            picked.append(_encode(choices, [(step + shift) % len(sizes) for shift, sizes in enumerate(choices)]))
        picked += [step * total // GRID for step in range(GRID)]
    kept = list(dict.fromkeys(picked))[:GRID]
    grid = [dict(zip(example, _decode(choices, number), strict=True)) for number in sorted(kept)]
    return grid if example in grid else [*grid, example]


def _sizes(wanted: tuple[int, ...], bounds: tuple[int, int, int] | None) -> list[int]:
    low, _, high = bounds or (1, 1, max(wanted))
    if low > max(wanted):
        return sorted({low, min(high, 2 * low + 1)})
    return sorted({min(max(size, low), high) for size in wanted})


def _encode(choices: list[list[int]], digits: list[int]) -> int:
    number = 0
    for sizes, digit in zip(choices, digits, strict=True):
        number = number * len(sizes) + digit
    return number


def _decode(choices: list[list[int]], number: int) -> list[int]:
    digits = []
    for sizes in reversed(choices):
        number, digit = divmod(number, len(sizes))
        digits.append(sizes[digit])
    return digits[::-1]


def _resize(feeds: Feeds, dynamic: Dynamic, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The example tiled or cropped along each dynamic axis: only values that it held, so that ids stay legal."""
    resized = {}
    for name, example in feeds.items():
        array = example
        for axis, dim in dynamic.get(name, {}).items():
            array = np.take(array, np.arange(size_of(dim, sizes)) % array.shape[axis], axis=axis)
        resized[name] = _allow(array, _keep_value(example)) if _is_mask(name, example) else array
    return resized


def _is_mask(name: str, array: np.ndarray) -> bool:
    flags = array.dtype.kind == "b" or (array.dtype.kind in "iu" and bool(np.isin(array, (0, 1)).all()))
    return "mask" in name.lower() and flags and array.ndim > 0 and array.size > 0


def _keep_value(example: np.ndarray) -> int:
    """What a mask says of a position that counts: 1, unless some row of the example has none (True may mean masked)."""
    return int(bool(example.any(axis=-1).all()))


def _allow(mask: np.ndarray, keep: int) -> np.ndarray:
    """`mask` with a position that counts in every row: cropping may have left a row without one, which is undefined."""
    empty = ~(mask == keep).any(axis=-1)
    mask = mask.copy()
    mask[..., 0] = np.where(empty, keep, mask[..., 0])
    return mask


def _padded(feeds: Feeds, grid: list[Case]) -> list[Case]:
    """The largest cases once more, each row of their masks with another number of leading ones."""
    masks = [
        name for name, array in feeds.items() if _is_mask(name, array) and array.ndim > 1 and _keep_value(array) == 1
    ]
    varied = [
        case for case in grid if any(case.feeds[name].shape[0] > 1 < case.feeds[name].shape[-1] for name in masks)
    ]
    varied.sort(key=lambda case: max(case.feeds[name].size for name in masks), reverse=True)
    made = []
    for case in varied[:PADDED]:
        padded = {name: _pad_rows(case.feeds[name]) for name in masks}
        made.append(Case(f"{case.name} padded", {**case.feeds, **padded}))
    return made


def _pad_rows(mask: np.ndarray) -> np.ndarray:
    """Row i keeps its first max(1, size - i * k) positions, with k such that the last row keeps few of them."""
    rows, size = mask.shape[0], mask.shape[-1]
    kept = np.maximum(1, size - np.arange(rows) * max(1, size // rows))
    ones = np.arange(size) < kept.reshape(-1, *[1] * (mask.ndim - 1))
    return np.broadcast_to(ones, mask.shape).astype(mask.dtype)


def _checked(index: int, sample: Feeds, feeds: Feeds, dynamic: Dynamic, ranges: Ranges) -> Feeds:
    if not isinstance(sample, Mapping):
        raise InputError(f"Calibration sample {index} must be a dict of arrays, but is a {type(sample).__name__}.")
    wrong = sorted(set(sample) ^ set(feeds))
    if wrong:
        raise InputError(
            f"Calibration sample {index} must hold {', '.join(feeds)}, but holds {', '.join(sample) or 'nothing'}: "
            f"wrong {', '.join(wrong)}."
        )
    sizes: dict[str, int] = {}
    for name, example in feeds.items():
        where = f"Input {name!r} of calibration sample {index}"
        _check_array(where, sample[name], example)
        _check_shape(where, sample[name], example, dynamic.get(name, {}), ranges, sizes)
    for dim, size in sizes.items():
        if size != size_of(dim, sizes):
            raise InputError(f"Calibration sample {index} has {dim} of {size}, but {size_of(dim, sizes)} is that sum.")
    return {name: sample[name] for name in feeds}


def _check_array(where: str, array: Any, example: np.ndarray) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{where} must be a numpy array, but is a {type(array).__name__}.")
    if array.dtype != example.dtype:
        raise InputError(f"{where} must be {example.dtype}, but is {array.dtype}: use .astype({str(example.dtype)!r}).")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"{where} holds NaN at {int(np.isnan(array).sum())} of {array.size} entries.")


def _check_shape(
    where: str, array: np.ndarray, example: np.ndarray, axes: Mapping[int, str], ranges: Ranges, sizes: dict[str, int]
) -> None:
    wanted = "[" + ", ".join(str(axes.get(axis, size)) for axis, size in enumerate(example.shape)) + "]"
    if array.ndim != example.ndim:
        raise InputError(f"{where} must have shape {wanted}, but has {list(array.shape)}.")
    for axis, size in enumerate(array.shape):
        dim = axes.get(axis, "")
        expected = sizes.setdefault(dim, size) if dim else example.shape[axis]
        low, _, high = ranges.get(dim, (1, size, size))
        if size != expected or not low <= size <= high:
            also = f" ({dim!r} is {low} to {high})" if dim in ranges else ""
            raise InputError(f"{where} must have shape {wanted}{also}, but has {list(array.shape)}.")


def replaying(pairs: Sequence[tuple[Case, Mapping[str, np.ndarray]]]) -> Reference:
    """Recorded outputs as a reference."""
    outputs = {id(case): out for case, out in pairs}
    return lambda case: outputs[id(case)]


def record(reference: Reference, cases: Iterable[Case], path: Path, limit_bytes: float = math.inf) -> int:
    """Write inputs and reference outputs to `path` (safetensors); returns how many cases were kept.

    Whole cases are dropped from the end once the tensors exceed `limit_bytes`; where none fits, the one with the
    smallest inputs is kept all the same. Raises UsageError where `path` cannot be written, ResourceError where the
    disk is full.
    """
    listed = list(cases)
    if not listed:
        raise UsageError(f"There is no case to record in {path}.")
    tensors: dict[str, np.ndarray] = {}
    kept: list[Case] = []
    for case in listed:
        entry = _entry(len(kept), case, reference)
        if _bytes(tensors) + _bytes(entry) > limit_bytes:
            break
        tensors |= entry
        kept.append(case)
    if not kept:
        kept = [min(listed, key=lambda case: _bytes(case.feeds))]
        tensors = _entry(0, kept[0], reference)
    names = json.dumps([{"name": case.name, "real": case.real} for case in kept])
    _write(path, safetensors.numpy.save(tensors, metadata={"cases": names}))
    return len(kept)


def _entry(index: int, case: Case, reference: Reference) -> dict[str, np.ndarray]:
    tensors = {f"{index}/in/{name}": array for name, array in case.feeds.items()}
    tensors |= {f"{index}/out/{name}": array for name, array in reference(case).items()}
    # safetensors writes an array's memory as it lies, whatever its strides
    return {key: np.asarray(array, order="C") for key, array in tensors.items()}


def _bytes(tensors: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in tensors.values())


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"No room for {path} ({len(data)} bytes): {error.strerror}.") from error
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def replay(path: Path) -> list[tuple[Case, dict[str, np.ndarray]]]:
    """The cases that `record` wrote, with the reference's outputs. Raises InputError where the file is damaged."""
    try:
        _check_header(path)
        with safetensors.safe_open(path, framework="np") as file:
            metadata, tensors = file.metadata() or {}, file.get_tensors()
    # TypeError, KeyError: a dtype that numpy has not
    except (OSError, safetensors.SafetensorError, TypeError, KeyError, MemoryError) as error:
        raise InputError(f"{path} is no readable golden file: {error}") from error
    titles = list(_titles(path, metadata))
    found: list[dict[str, dict[str, np.ndarray]]] = [{"in": {}, "out": {}} for _ in titles]
    for key, array in tensors.items():
        parts = _KEY.fullmatch(key)
        if parts is None or int(parts["case"]) >= len(titles):
            raise InputError(f"{path} is damaged: {key!r} names no input or output of its {len(titles)} cases.")
        found[int(parts["case"])][parts["side"]][parts["name"]] = array
    for (title, _), sides in zip(titles, found, strict=True):
        if not (sides["in"] and sides["out"]):
            raise InputError(f"{path} is damaged: case {title!r} lacks its inputs or its outputs.")
    return [(Case(title, sides["in"], real), sides["out"]) for (title, real), sides in zip(titles, found, strict=True)]


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > HEADER_BYTES:
        raise InputError(f"{path} claims a header of {length} bytes; a golden file has at most {HEADER_BYTES}.")


def _titles(path: Path, metadata: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    try:
        listed = json.loads(metadata.get("cases", ""))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its metadata names no cases.") from error
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path} is damaged: its metadata names no cases.")
    for entry in listed:
        match entry:
            case {"name": str(title), "real": bool(real)}:
                yield title, real
            case _:
                raise InputError(f"{path} is damaged: {entry!r} does not describe a case.")
