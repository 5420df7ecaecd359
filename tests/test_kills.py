"""Runs that are killed at random moments: the next one uses or repairs what they left, and nothing piles up."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

import graphwright as gw
from graphwright.runtimes.ort_cpu import PROVIDER, OrtSession
from graphwright.store import Store

TARGET = "ort-cpu:fp32"
MARK = "GRAPHWRIGHT_TEST_MARK"  # in the environment of a run, and of all that it starts
SECONDS = 30.0  # for what is done after a kill, by other processes


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.full)])
def test_a_run_that_is_killed_leaves_what_the_next_one_uses_or_repairs(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    chance = random.Random(kills)
    out, temporary, root = (tmp_path / name for name in ("out", "temporary", "store"))
    temporary.mkdir()
    monkeypatch.setenv("GRAPHWRIGHT_STORE", str(root))
    duration = run(small_onnx, out, temporary, lambda _: None)
    for _ in range(kills):
        if chance.random() < 0.7:
            Store().clean()  # else the run finds all of its stages
        moment = chance.uniform(0, duration)

        def kill(process: subprocess.Popen[bytes], moment: float = moment) -> None:
            wait_for(lambda: part_of(out) or process.poll() is not None)
            time.sleep(moment)
            process.kill()

        run(small_onnx, out, temporary, kill)
        check_next_run(small_onnx, out)
        wait_for(lambda: list(temporary.glob("graphwright-*")) == [])
        assert names(root / "tmp") == names(root / "locks") == []
        assert names(out) == ["golden.safetensors", "manifest.json", "ort-cpu-fp32", "report.html"]


def run(source: Path, out: Path, temporary: Path, end: Callable[[subprocess.Popen[bytes]], None]) -> float:
    """Ship in a process of its own, and see that no process of it is left; its seconds from when it began to write."""
    mark = uuid.uuid4().hex
    asked = ["ship", str(source), "--target", TARGET, "--out", str(out), "--budget", "0"]
    command = [sys.executable, "-m", "graphwright", *asked]
    environment = {**os.environ, MARK: mark, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        end(process)
        if process.poll() is None:
            wait_for(lambda: part_of(out) or process.poll() is not None)
        start = time.monotonic()
        said = process.stderr.read()
    assert process.returncode in (0, -9), said
    wait_for(lambda: not marked(mark))
    return time.monotonic() - start


def check_next_run(source: Path, out: Path) -> None:
    """It ships, and what it ships is right."""
    assert gw.ship(source, [TARGET], out, budget=0).passed
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    with gw.load(out / "ort-cpu-fp32").open() as session, OrtSession(source, [PROVIDER]) as reference:
        # the same kernels; fused or not, in another order of sums at most
        np.testing.assert_allclose(session.run({"x": x})["y"], reference.run({"x": x})["y"], atol=1e-5)


def part_of(out: Path) -> bool:
    """Whether a run writes there."""
    return any(out.glob(".part-*/"))


def marked(mark: str) -> list[int]:
    """The processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:  # it ended, or is not ours
            continue
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
