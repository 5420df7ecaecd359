"""A backend that crashes, hangs, grows or lies costs its own target: the others are built, proved and written down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import graphwright as gw
from graphwright.artifact import load
from graphwright.compare.verify import verify_recorded
from graphwright.errors import Exit, ResourceError
from graphwright.finish import finish
from graphwright.manifest import TargetRecord, read
from graphwright.passes import TARGETS
from graphwright.pipeline import Shipment
from graphwright.runtimes import RUNTIMES
from graphwright.runtimes.child import NORMAL, Limits
from graphwright.tests import fake_backends

FAKES = "from graphwright.tests.fake_backends import register; from graphwright.cli import main; register(); main()"


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, runtime in fake_backends.runtimes().items():
        monkeypatch.setitem(RUNTIMES, name, runtime)
    for name, target in fake_backends.targets().items():
        monkeypatch.setitem(TARGETS, name, target)


def ship(source: Path, out: Path, *targets: str, limits: Limits = NORMAL, budget: float = 0) -> Shipment:
    """The others stand before and after ONNX Runtime's CPU, which is right."""
    named = [*targets[:1], "ort-cpu", *targets[1:]]
    return gw.ship(source, [f"{name}:fp32" for name in named], out, budget=budget, limits=limits)


def records(shipment: Shipment) -> dict[str, TargetRecord]:
    assert shipment.manifest == read(shipment.out)
    return {record.target: record for record in shipment.manifest.targets}


def check_right(record: TargetRecord, out: Path) -> None:
    assert (record.status, record.verified.verdict, record.failure) == ("built", "passed", "")
    assert verify_recorded(load(out / "ort-cpu-fp32"), out / "golden.safetensors").passed


def test_crashes_cost_their_targets(small_onnx: Path, tmp_path: Path) -> None:
    made = ship(small_onnx, tmp_path / "out", "crash", "leave", "garble", "abort", "chatter", budget=1)
    found = records(made)
    assert made.code is Exit.BUILD
    check_right(found["ort-cpu"], made.out)
    assert (found["chatter"].status, found["chatter"].verified.verdict) == ("built", "passed")
    reasons = {
        "crash": "The crash builder died (SIGSEGV). Its last words: tuning layer 7",
        "leave": "The leave builder died (exit code 3). Its last words: licence not found",
        "garble": "The garble builder gave an answer that cannot be read. Its last words: none",
        "abort": "The run of abort:fp32 died (SIGABRT). Its last words: assertion failed: plan != nullptr",
    }
    for name, reason in reasons.items():
        assert (found[name].status, found[name].failure, found[name].reason) == ("failed", "build", reason)
        assert found[name].verified.passed is None
        # what failed is not opened again to be measured, and nothing of it is kept
        latency = found[name].latency
        assert latency is not None
        assert latency.samples == 0
        assert names(made.out / f"{name}-fp32") == ["golden.safetensors", "manifest.json"]
    assert all(reason.split(". Its")[0] in (made.out / "report.html").read_text() for reason in reasons.values())


def test_what_takes_too_much_or_too_long_costs_its_target_and_is_a_lack_of_resources(
    small_onnx: Path, tmp_path: Path
) -> None:
    made = ship(small_onnx, tmp_path / "out", "eat", "crash", limits=Limits(bytes=600_000_000))
    found = records(made)
    assert made.code is Exit.RESOURCES
    check_right(found["ort-cpu"], made.out)
    assert (found["crash"].failure, found["eat"].failure) == ("build", "resources")
    assert "The eat builder took 0." in found["eat"].reason
    assert "its limit is 0.60 GB" in found["eat"].reason
    # a limit that the right backend keeps on a busy machine too
    assert found["ort-cpu"].build is not None
    limits = Limits(seconds=max(3.0, 4 * found["ort-cpu"].build.seconds))
    made = ship(small_onnx, tmp_path / "out", "hang", limits=limits)
    found = records(made)
    assert made.code is Exit.RESOURCES
    check_right(found["ort-cpu"], made.out)
    assert (found["hang"].status, found["hang"].failure) == ("failed", "resources")
    assert f"and was ended: its limit is {limits.seconds:g} s" in found["hang"].reason
    check_gone((made.out / "pids").read_text())


def test_build_raises_what_its_backend_ran_into(small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="The eat builder took"):
        gw.build(small_onnx, tmp_path / "out", target="eat:fp32", limits=Limits(bytes=400_000_000))
    assert not (tmp_path / "out").exists()


def test_finish_goes_on_after_a_crash(small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends that fail are lowered for, as on a machine without them, and are there when it is finished."""
    with monkeypatch.context() as patch:
        for name in ("crash", "eat"):
            patch.setattr(type(RUNTIMES[name]), "missing", lambda self: "no device")
        made = ship(small_onnx, tmp_path / "out", "crash", "eat", "abort")
    assert {name: record.status for name, record in records(made).items()} == {
        "crash": "lowered",
        "ort-cpu": "built",
        "eat": "lowered",
        "abort": "failed",
    }
    manifest, code = finish(made.out, None, limits=Limits(bytes=400_000_000), progress=lambda _: None)
    assert code is Exit.RESOURCES
    found = {record.target: record for record in manifest.targets}
    assert {name: record.verified.verdict for name, record in found.items()} == {
        "crash": "failed",
        "ort-cpu": "passed",
        "eat": "failed",
        "abort": "no device here",
    }
    assert "tuning layer 7" in found["crash"].verified.reason
    assert "its limit is 0.40 GB" in found["eat"].verified.reason
    assert found["crash"].status == "lowered", "it may be built where the backend works"
    assert read(made.out) == manifest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_with_a_run_all_that_it_started_ends(
    small_onnx: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Neither the backend nor what that has started would end by itself, and a killed run cannot tell them to."""
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", FAKES, "ship", str(small_onnx), "-t", "hang:fp32", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(temporary)})
    pids = ""
    while len(pids.split()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
        pids = "".join(path.read_text() for path in out.glob(".part-*/pids"))
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    check_gone(pids)
    wait_until(lambda: list(temporary.glob("graphwright-*")) == [])
    assert out.exists() == (number is signal.SIGKILL)
    made = gw.ship(small_onnx, ["ort-cpu:fp32"], out, budget=0)
    assert made.passed
    assert names(out) == ["golden.safetensors", "manifest.json", "ort-cpu-fp32", "report.html"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wait_until(true: Callable[[], bool]) -> None:
    """What follows a kill is done by another process."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_gone(pids: str) -> None:
    """Within some seconds: who was killed may still have to be cleared away."""
    processes = [psutil.Process(int(pid)) for pid in pids.split() if psutil.pid_exists(int(pid))]
    alive = [process for process in psutil.wait_procs(processes, timeout=30)[1] if process.status() != "zombie"]
    assert alive == []
