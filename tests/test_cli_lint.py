"""The verbs lint and targets, and lint within a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
import pytest

import graphwright as gw
from graphwright.cli import main
from graphwright.devices import DEVICES
from graphwright.passes import TARGETS

ATTENTION = """
<ir_version: 10, opset_import: ["": 23]>
attention (float[B, 2, S, 16] q, float[B, 2, S, 16] k, float[B, 2, S, 16] v, bool[B, 1, 1, S] mask)
=> (float[B, 2, S, 16] y) { y = Attention(q, k, v, mask) }"""
PLAIN = '<ir_version: 10, opset_import: ["": 23]> plain (float[B, 16] x) => (float[B, 16] y) { y = Gelu(x) }'


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, in a folder that holds two ONNX files."""
    ir.save(ir.from_onnx_text(ATTENTION), tmp_path / "attention.onnx")
    ir.save(ir.from_onnx_text(PLAIN), tmp_path / "plain.onnx")
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["graphwright", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return Result(int(stop.value.code or 0), said.out, said.err)

    return command


def test_lint_says_what_is_refused_and_where(run: Run) -> None:
    refused = run("lint", "attention.onnx", "--target", "ort-cpu", "--as-is")
    assert refused.code == 1
    assert "error ort-mask-query-dim (" in refused.out
    assert "Way out: Expand the mask's last two dims" in refused.out
    assert refused.out.splitlines()[-1] == "ort-cpu:fp32: lint: 1 error"
    told = json.loads(run("lint", "attention.onnx", "--target", "ort-cpu", "--as-is", "--json").out)
    assert (told["job"], told["as_is"], told["passed"]) == ("ort-cpu:fp32", True, False)
    assert [finding["rule"] for finding in told["findings"]] == ["ort-mask-query-dim"]
    assert set(told["findings"][0]) == {"rule", "severity", "path", "node", "message", "way_out"}


def test_lint_of_what_would_be_built_passes(run: Run) -> None:
    built = run("lint", "plain.onnx", "--target", "tensorrt@jetson-orin:fp16")
    assert (built.code, built.out) == (0, "tensorrt@jetson-orin:fp16: lint: nothing found\n")


def test_warnings_alone_are_exit_0(run: Run) -> None:
    warned = run("lint", "plain.onnx", "--target", "tensorrt@jetson-orin", "--as-is")
    assert warned.code == 0
    assert "lint: 2 warnings" in warned.out, "a range that is not known, and opset 23"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model.py:spec", "--as-is"], 2, "--as-is is for an ONNX file, but the source is model.py:spec"),
        (["absent.onnx", "--as-is"], 3, "absent.onnx"),
        (["plain.onnx", "--target", "tensorrt@jetson-orin:fp8"], 2, "fp8 on jetson-orin: SM87 has no fp8 products"),
    ],
)
def test_what_cannot_be_linted(run: Run, arguments: list[str], code: int, message: str) -> None:
    refused = run("lint", *arguments)
    assert refused.code == code
    assert message in refused.err


def test_targets_lists_devices_within_a_hundred_columns(run: Run) -> None:
    shown = run("targets")
    assert shown.code == 0
    assert max(len(line.rstrip()) for line in shown.out.splitlines()) <= 100
    assert all(name in shown.out for name in (*TARGETS, *DEVICES))
    rows = {row["name"]: row for row in json.loads(run("targets", "--json").out)}
    assert set(rows) == set(TARGETS)
    assert set(rows["tensorrt-rtx"]["devices"]) >= {"sm89", "sm75", "rtx-5090"}
    turing = next(profile for profile in rows["tensorrt-rtx"]["profiles"] if profile["name"] == "sm75")
    assert turing["lacks"] == {"bf16": "SM75 has no bf16 products; they came with SM80"}
    assert rows["ort-cpu"]["here"] == "runs"


def test_a_target_that_cannot_run_here_is_linted_in_a_run(tmp_path: Path) -> None:
    path = tmp_path / "attention.onnx"
    ir.save(ir.from_onnx_text(ATTENTION.replace("B, 1, 1, S", "B, 1, S, S")), path)
    said: list[str] = []
    targets = ["tensorrt@jetson-orin:fp32", "tensorrt:fp32", "ort-cpu:fp32"]
    made = gw.ship(path, targets, tmp_path / "out", budget=0, progress=said.append)
    assert made.passed
    orin, newest, cpu = made.manifest.targets
    assert (orin.status, orin.device, orin.lint) == ("lowered", "jetson-orin", [])
    assert "Attention" not in orin.ops["target"]
    assert [(found.rule, found.severity, found.count) for found in newest.lint] == [
        ("trt-attention-kernel", "warning", 1)
    ]
    assert cpu.lint == []
    assert any(line.startswith("tensorrt:fp32: lowered, no device here, lint: 1 warning") for line in said)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "trt-attention-kernel" in page
    assert gw.load(tmp_path / "out" / "tensorrt-fp32").record.lint == newest.lint
