"""A plan's envelope: nothing that was changed gets through, and what was built elsewhere is refused in words."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from graphwright.errors import DeviceError, Exit, GraphwrightError, InputError
from graphwright.runtimes import plan

PLAN = bytes(random.Random(0).randbytes(3000))
KNOWN: dict[str, Any] = {
    "runtime": "tensorrt",
    "version": "11.4.0.106",
    "devices": ("sm89",),
    "options": {"tf32": False, "workspace": None},
    "graph": "0" * 64,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    plan.write(path, PLAN, **KNOWN)
    return path


def test_what_is_written_is_read(path: Path) -> None:
    header, data = plan.read(path)
    assert data == PLAN
    assert {name: getattr(header, name) for name in KNOWN} == KNOWN
    assert (header.size, header.hardware, header.version_compatible) == (len(PLAN), "none", False)
    plan.write(path, memoryview(b""), **KNOWN)
    assert plan.read(path)[1] == b""


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, 600, 7), 8, 10, 14, 45, 46, 47, *range(600, len(whole), 397), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"build it again"):
            plan.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=r"The plan in .* was changed or cut off"):
        plan.read(path)


def test_every_flipped_bit_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    header = len(whole) - len(PLAN)
    flips = [8 * byte + byte % 8 for byte in range(header)]
    flips += random.Random(1).sample(range(8 * header, 8 * len(whole)), 60)
    for flip in flips:
        changed = bytearray(whole)
        changed[flip // 8] ^= 1 << flip % 8
        path.write_bytes(changed)
        with pytest.raises(InputError) as caught:
            plan.read(path)
        assert caught.value.code is Exit.INPUT


def test_random_bytes_are_no_plan(path: Path) -> None:
    source = random.Random(2)
    for length in (0, 1, 8, 46, 47, 500, 5000):
        for start in (b"", plan.MAGIC, plan.MAGIC + struct.pack("<H", plan.FORM)):
            path.write_bytes(start + source.randbytes(length))
            with pytest.raises(InputError):
                plan.read(path)


@pytest.mark.parametrize("length", [plan.LONGEST + 1, 2**32 - 1])
def test_a_header_of_absurd_length_is_not_even_read(path: Path, length: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[10:14] = struct.pack("<I", length)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"^The header of .* was changed or cut off"):
        plan.read(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"ftrt\x00\x00\x00\x00", "is no plan that graphwright wrote"),
        (plan.MAGIC + struct.pack("<H", 2), r"is a plan of form 2, but this version reads form 1"),
    ],
)
def test_another_beginning_says_what_it_is(path: Path, start: bytes, message: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(start + whole[len(start) :])
    with pytest.raises(InputError, match=message):
        plan.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"more": 1}, "more: Extra inputs are not permitted"), ({"devices": []}, "devices: Tuple should have at least 1")],
)
def test_a_header_of_another_form_is_refused_though_its_hash_is_right(
    path: Path, change: dict[str, Any], message: str
) -> None:
    import hashlib
    import json

    whole = path.read_bytes()
    length = struct.unpack("<I", whole[10:14])[0]
    header = json.dumps(json.loads(whole[46 : 46 + length]) | change).encode()
    fixed = plan.MAGIC + struct.pack("<HI", plan.FORM, len(header)) + hashlib.sha256(header).digest()
    path.write_bytes(fixed + header + whole[46 + length :])
    with pytest.raises(InputError, match=message):
        plan.read(path)


@pytest.mark.parametrize(
    ("built", "here"),
    [
        ({}, ("11.4.0.106", "sm89")),
        ({"devices": ("sm86", "sm89", "sm120")}, ("11.4.0.106", "sm120")),
        ({"version_compatible": True}, ("11.5.0.1", "sm89")),
        ({"version_compatible": True, "version": "10.3.0"}, ("10.14.1.48", "sm89")),
        ({"hardware": "ampere+", "devices": ("sm80",)}, ("11.4.0.106", "sm120")),
        ({"hardware": "same_cc"}, ("11.4.0.106", "sm89")),
    ],
)
def test_what_fits_may_run(path: Path, built: dict[str, Any], here: tuple[str, str]) -> None:
    plan.write(path, PLAN, **KNOWN | built)
    plan.check(path, plan.read(path)[0], "tensorrt", *here)


@pytest.mark.parametrize(
    ("built", "here", "message"),
    [
        ({}, ("11.5.0.1", "sm89"), r"here is 11\.5\.0\.1, and a plan runs on the very version that built it"),
        (
            {},
            ("11.4.0.106", "sm90"),
            r"was built by tensorrt 11\.4\.0\.106 for sm89; here is sm90\. Build it again here",
        ),
        (
            {"version_compatible": True},
            ("11.3.0.99", "sm89"),
            r"here is 11\.3\.0\.99, and a version-compatible plan runs",
        ),
        (
            {"version_compatible": True, "version": "10.3.0"},
            ("11.0.0", "sm89"),
            r"later versions of the same major one",
        ),
        (
            {"hardware": "ampere+"},
            ("11.4.0.106", "sm75"),
            r"here is sm75, and a plan for Ampere and later runs on sm80",
        ),
        ({"hardware": "same_cc"}, ("11.4.0.106", "sm86"), r"here is sm86"),
        ({"devices": ("sm86", "sm120")}, ("11.4.0.106", "sm89"), r"for sm86\+sm120; here is sm89"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_came_and_what_is_here(
    path: Path, built: dict[str, Any], here: tuple[str, str], message: str
) -> None:
    plan.write(path, PLAN, **KNOWN | built)
    with pytest.raises(DeviceError, match=message) as caught:
        plan.check(path, plan.read(path)[0], "tensorrt", *here)
    assert caught.value.code is Exit.DEVICE


def test_a_plan_of_another_runtime_is_refused(path: Path) -> None:
    with pytest.raises(GraphwrightError, match=r"is a plan of tensorrt, not of tensorrt-rtx\.$"):
        plan.check(path, plan.read(path)[0], "tensorrt-rtx", "1.7.1.116", "sm89")
