"""A plan in an envelope of our own: what built it, for what and from what, known before native code sees a byte of it.

    magic (8 bytes) | form, u16 | bytes of the header, u32 | SHA-256 of the header | header, JSON | plan

Numbers are little-endian. An engine is native code that its runtime trusts: whatever was changed, by a damaged disk or
by hand, is found by the hashes, and what was built for another version or device is refused in words, not by a crash.
"""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import DeviceError, InputError

MAGIC = b"\x89GWPLAN\n"
FORM = 1
_FIXED = struct.Struct("<8sHI32s")
LONGEST = 1 << 20  # bytes of a header

Hardware = Literal["none", "ampere+", "same_cc"]


class Header(BaseModel):
    """What is known of a plan. Strict: a field more or less is another form."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    runtime: str
    version: str = Field(description="exact version of the runtime that built it")
    devices: tuple[str, ...] = Field(min_length=1, description="compute capabilities, as in sm89")
    hardware: Hardware = Field(default="none", description="which other compute capabilities it runs on too")
    version_compatible: bool = False
    options: dict[str, Any] = Field(default_factory=dict, description="settings that it was built with")
    graph: str = Field(description="SHA-256 of the target graph that it was built from")
    size: int = Field(ge=0)
    sha256: str


def write(path: Path, plan: bytes | memoryview, **known: Any) -> None:
    """Write `plan` behind a header of what is `known` of it: the fields of `Header` but size and hash."""
    made = Header(size=len(plan), sha256=hashlib.sha256(plan).hexdigest(), **known).model_dump_json().encode()
    with path.open("wb") as file:
        file.write(_FIXED.pack(MAGIC, FORM, len(made), hashlib.sha256(made).digest()) + made)
        file.write(plan)


def read(path: Path) -> tuple[Header, bytes]:
    """Header and plan of a file, both checked. Raises InputError where the file is no plan, or was changed."""
    with path.open("rb") as file:
        fixed = file.read(_FIXED.size)
        if len(fixed) < _FIXED.size or not fixed.startswith(MAGIC):
            raise InputError(f"{path} is no plan that graphwright wrote: build it again.")
        _, form, length, digest = _FIXED.unpack(fixed)
        if form != FORM:
            raise InputError(f"{path} is a plan of form {form}, but this version reads form {FORM}: build it again.")
        text = file.read(length) if length <= LONGEST else b""
        if len(text) < length or hashlib.sha256(text).digest() != digest:
            raise InputError(f"The header of {path} was changed or cut off: build it again.")
        try:
            header = Header.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                f"The header of {path} is not of this version: {'.'.join(map(str, first['loc']))}: {first['msg']}. "
                "Build it again."
            ) from error
        plan = file.read(header.size + 1)
    if len(plan) != header.size or hashlib.sha256(plan).hexdigest() != header.sha256:
        raise InputError(f"The plan in {path} was changed or cut off (its SHA-256 differs): build it again.")
    return header, plan


def check(path: Path, header: Header, runtime: str, version: str, device: str) -> None:
    """Raise DeviceError where what is here cannot run the plan: `runtime`, its `version`, the `device` (as in sm89)."""
    if header.runtime != runtime:
        raise InputError(f"{path} is a plan of {header.runtime}, not of {runtime}.")
    wrong = _other_version(header, version) or _other_device(header, device)
    if wrong:
        raise DeviceError(
            f"{path} was built by {header.runtime} {header.version} for {'+'.join(header.devices)}; {wrong}. Build it "
            "again here, with `graphwright build` or `graphwright ship` and the same source and target."
        )


def _other_version(header: Header, version: str) -> str:
    if version == header.version:
        return ""
    built, here = _numbers(header.version), _numbers(version)
    if not header.version_compatible:
        return f"here is {version}, and a plan runs on the very version that built it"
    if built[:1] == here[:1] and built <= here:
        return ""
    return f"here is {version}, and a version-compatible plan runs on later versions of the same major one alone"


def _other_device(header: Header, device: str) -> str:
    if device in header.devices:
        return ""
    if header.hardware == "ampere+":
        ampere = all(_numbers(name) >= (80,) for name in (*header.devices, device))
        return "" if ampere else f"here is {device}, and a plan for Ampere and later runs on sm80 and later"
    return f"here is {device}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
