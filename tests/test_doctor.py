"""doctor: a line for each thing that a target needs, found or with the way to get it."""

from __future__ import annotations

import sys

import pytest

from graphwright import doctor
from graphwright.doctor import Finding, examine
from graphwright.passes.lower import TARGETS
from graphwright.runtimes import cpu, cuda
from graphwright.runtimes.ort_cpu import cores


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    findings = examine()
    lines = {finding.name: finding for finding in findings}
    assert len(lines) == len(findings), "each name once"
    return lines


def test_every_target_and_every_library_has_a_line(found: dict[str, Finding]) -> None:
    assert {f"target {name}" for name in TARGETS} <= set(found)
    for library in cuda.LIBRARIES:
        line = found[library.name]
        there = cuda.locate(library, sys.path)
        assert line.state == ("ok" if there else "absent")
        assert (f"`pip install {library.package}`" in line.detail) == (there is None)
    assert {finding.state for finding in found.values()} <= {"ok", "absent", "problem"}


def test_cuda_is_there_with_its_devices_or_absent_with_a_reason(found: dict[str, Finding]) -> None:
    reason = cuda.cuda_missing()
    if reason is not None:
        assert found["cuda"] == Finding("cuda", "absent", reason)
        assert not any(name.startswith("cuda device") for name in found)
        return
    assert found["cuda"].state == "ok"
    for device in cuda.devices():
        assert device.capability in found[f"cuda device {device.index}"].detail


def test_the_cpu_is_told_with_what_speeds_products_up(found: dict[str, Finding]) -> None:
    assert found["cpu"].detail.startswith(cpu.name())
    assert all(name in found["cpu"].detail for name in cpu.instruction_sets())
    assert found["cores"].detail.startswith(f"{cores()} available")


def test_a_limit_below_the_cores_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "quota", lambda: 0.5)
    monkeypatch.setattr(cpu, "governor", lambda: "powersave")
    line = next(line for line in doctor._cpu() if line.name == "cores")
    assert line.state == "problem"
    assert "limited to the time of 0.5 cores" in line.detail
    assert line.detail.endswith("clock governor powersave")
    monkeypatch.setattr(cpu, "quota", lambda: 1000.0)
    assert next(line for line in doctor._cpu() if line.name == "cores").state == "ok"
