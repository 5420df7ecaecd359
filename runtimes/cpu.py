"""What this machine's CPU can do and how much of it this process may use, as the system tells."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
CGROUPS = Path("/sys/fs/cgroup")

# name that people use -> feature in /proc/cpuinfo, of x86 and of Arm; all that products of matrices are made with
FEATURES = {
    "AVX2": "avx2",
    "FMA": "fma",
    "AVX512": "avx512f",
    "AVX-VNNI": "avx_vnni",
    "AVX512-VNNI": "avx512_vnni",
    "AVX512-BF16": "avx512_bf16",
    "AVX512-FP16": "avx512_fp16",
    "AMX-INT8": "amx_int8",
    "AMX-BF16": "amx_bf16",
    "NEON": "asimd",
    "FP16": "asimdhp",
    "dot products": "asimddp",
    "I8MM": "i8mm",
    "BF16": "bf16",
    "SVE": "sve",
}


def name(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name, or its architecture where the system has no name for it."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read(cpuinfo), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def instruction_sets(cpuinfo: Path = CPUINFO) -> list[str]:
    """Those of `FEATURES` that the CPU has; none where the system does not tell them in the way of Linux."""
    line = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(cpuinfo), re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    return [name for name, flag in FEATURES.items() if flag in flags]


def governor(path: Path = GOVERNOR) -> str | None:
    """How the first core's clock is governed, as in `performance`; None where the system does not tell."""
    return _read(path).strip() or None


def quota(root: Path = CGROUPS) -> float | None:
    """Cores' worth of time that a container leaves this process; None where it has no limit, or tells none."""
    limit, _, period = _read(root / "cpu.max").partition(" ")  # cgroup 2: "200000 100000" or "max 100000"
    if not limit:  # cgroup 1
        limit, period = (_read(root / "cpu" / f"cpu.cfs_{part}_us") for part in ("quota", "period"))
    if not limit.strip().isdecimal() or not period.strip().isdecimal():
        return None
    return int(limit) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
