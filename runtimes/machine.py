"""Whether this machine is a device of devices.py."""

from __future__ import annotations

import platform
from collections.abc import Collection
from functools import cache
from pathlib import Path

from ..devices import Device
from ..spec import Precision
from .cuda import compute_capability, cuda_missing

_KINDS = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}


def device_missing(device: Device, precision: Precision) -> str | None:
    """Why this machine cannot run what was made for `device` in `precision`; None if it can."""
    if device.kind == "nvidia":
        reason = cuda_missing()
        return gpu_misfit(device, compute_capability()) if reason is None else reason
    kind = platform.machine()
    return cpu_misfit(device, precision, _KINDS.get(kind, kind), cpu_flags())


def gpu_misfit(device: Device, capability: str) -> str | None:
    """Why a GPU of that compute capability (as in sm89) is not `device`; None if it is."""
    if capability == device.build_name:
        return None
    return f"{device.name} is {device.build_name}, and the GPU here is {capability}"


def cpu_misfit(device: Device, precision: Precision, kind: str, flags: Collection[str]) -> str | None:
    """Why a CPU of that kind and those features is not `device`; None if it can stand for it."""
    if kind != device.kind:
        return f"{device.name} is {device.kind}, and the CPU here is {kind}"
    lacking = [flag for flag in device.flags if not set(flag.split("|")).intersection(flags)]
    if lacking:
        return f"the CPU here does not tell of {', '.join(flag.replace('|', ' or ') for flag in lacking)}"
    others = [flag for flag in device.arithmetic if flag in flags] if "int" in precision else []
    if others:
        return f"the CPU here has {others[0]}, with which integer products give other numbers than on {device.name}"
    return None


@cache
def cpu_flags() -> frozenset[str]:
    """The features of this machine's CPU, as Linux writes them; none where it does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    return flags_of(text)


def flags_of(cpuinfo: str) -> frozenset[str]:
    """The features of the first CPU in the text of /proc/cpuinfo: `flags` on x86, `Features` on Arm."""
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    return next((frozenset(v.split()) for k, _, v in lines if k.strip() in ("flags", "Features")), frozenset())
