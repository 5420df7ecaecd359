"""What is read of the CPU: from files as Linux writes them, and from this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphwright.runtimes import cpu

X86 = """processor	: 0
model name	: Intel(R) Xeon(R) Gold
flags		: fpu sse2 fma avx avx2 avx512f avx512_vnni amx_tile

processor	: 1
flags		: fpu
"""
ARM = """processor	: 0
BogoMIPS	: 50.00
Features	: fp asimd asimdhp asimddp i8mm bf16
"""


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        (X86, ["AVX2", "FMA", "AVX512", "AVX512-VNNI"]),
        (ARM, ["NEON", "FP16", "dot products", "I8MM", "BF16"]),
        ("processor : 0\n", []),
    ],
)
def test_instruction_sets_are_those_of_the_first_core(tmp_path: Path, text: str, sets: list[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu.instruction_sets(tmp_path / "cpuinfo") == sets


def test_the_name_is_the_systems(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(X86)
    assert cpu.name(tmp_path / "cpuinfo") == "Intel(R) Xeon(R) Gold"
    assert cpu.name(tmp_path / "none"), "the architecture at least"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_limit_is_read_of_both_kinds(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu.quota(tmp_path) == cores


def test_the_governor_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert cpu.governor(tmp_path / "none") is None
    (tmp_path / "governor").write_text("powersave\n")
    assert cpu.governor(tmp_path / "governor") == "powersave"
