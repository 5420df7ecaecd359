"""Each rule finds its bad example and leaves its good one alone; and the real runtimes agree with the rule."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphwright.devices import build_name
from graphwright.errors import GraphwrightError
from graphwright.passes.lint import RULES, lint
from graphwright.runtimes import RUNTIMES
from graphwright.runtimes.ort_cpu import PROVIDER, OrtSession, session_options

from .examples import EXAMPLES as FLOAT
from .graphs import Asked, Empty, Example, Graph, Ignored, Leaves, NoRuntime, Raw, Refused, Taken, Wrong, feeds
from .quantized_examples import QUANTIZED

EXAMPLES = {**FLOAT, **QUANTIZED}
RANGES = dict.fromkeys(("B", "S", "T"), (1, 3, 8))
RTX = RUNTIMES["tensorrt-rtx"]
ON_CPU = [name for name, example in EXAMPLES.items() if example.bad.target == "ort-cpu"]
ON_RTX = [name for name, example in EXAMPLES.items() if example.bad.target.startswith("tensorrt-rtx")]


def found(graph: Graph) -> set[str]:
    return {finding.rule for finding in lint(graph.model, graph.target, as_is=True, ranges=RANGES).findings}


def test_every_rule_has_both_examples() -> None:
    assert set(EXAMPLES) == set(RULES) - {"file-too-large"}, "which has a test of its own"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_rule_finds_its_bad_example_and_not_its_good_one(name: str) -> None:
    example, rule = EXAMPLES[name], RULES[name]
    (job,) = {lint(example.bad.model, example.bad.target, as_is=True, ranges=RANGES).job.target}
    assert rule.applies(job)
    assert name in found(example.bad)
    assert name not in found(example.good)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_good_example_has_no_error_at_all(name: str) -> None:
    good = EXAMPLES[name].good
    wrong = [str(f) for f in lint(good.model, good.target, as_is=True, ranges=RANGES).findings if f.severity == "error"]
    assert wrong == []


# --- ONNX Runtime agrees


@contextlib.contextmanager
def on_disk(graph: Graph) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph.model, path)
        yield path


def run(graph: Graph) -> dict[str, np.ndarray]:
    with on_disk(graph) as path, OrtSession(path, [PROVIDER]) as session:
        return session.run(feeds(graph))


def ops(graph: Graph) -> set[str]:
    """The ops of the graph that ONNX Runtime makes at load; of one that reads a weight alone that too."""
    with on_disk(graph) as path:
        options = session_options(PROVIDER)
        options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
        ort.InferenceSession(str(path), options, providers=[PROVIDER])
        made = onnx.load_model(options.optimized_model_filepath).graph
    weights = {tensor.name for tensor in made.initializer}
    names = [(f"{node.domain}.{node.op_type}" if node.domain else node.op_type, node.input) for node in made.node]
    return {name for name, _ in names} | {f"{name} of a constant" for name, inputs in names if inputs[0] in weights}


@pytest.mark.parametrize("name", ON_CPU)
def test_onnx_runtime_agrees(name: str) -> None:
    example = EXAMPLES[name]
    match example.proof:
        case Refused(reason):
            assert RULES[name].severity == "error"
            with pytest.raises(GraphwrightError, match=reason):
                run(example.bad)
            run(example.good)
        case Leaves(op):
            assert RULES[name].severity == "warning"
            run(example.bad)
            run(example.good)
            assert op in ops(example.bad)
            assert op not in ops(example.good)
        case Taken():
            assert run(example.bad)["y"].shape == run(example.good)["y"].shape
        case Wrong():
            check_numbers(name, example)
        case other:
            pytest.fail(f"{name} is for ort-cpu and has the proof {other}")


def check_numbers(name: str, example: Example) -> None:
    bad, good = run(example.bad)["y"], run(example.good)["y"]
    # the examples give 1 where they are right, in steps of 0.05; a wrong one is off by more than 0.1
    np.testing.assert_allclose(good, np.ones_like(good), atol=0.05)
    assert not np.allclose(bad, good, atol=0.1, equal_nan=True)


# --- TensorRT-RTX agrees


@pytest.fixture(scope="module")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What TensorRT-RTX makes of the bad and the good example of each rule, all in one process of its own."""
    folder, requests = tmp_path_factory.mktemp("rtx"), {}
    for name in ON_RTX:
        example = EXAMPLES[name]
        how = {Raw: "raw", Ignored: "layers"}.get(type(example.proof), "build")
        for kind, graph in (("bad", example.bad), ("good", example.good)):
            path = folder / f"{name}-{kind}" / "model.onnx"
            path.parent.mkdir()
            ir.save(graph.model, path)
            device = build_name(graph.target.partition("@")[2])
            requests[f"{name} {kind}"] = {"graph": str(path), "device": device, "ranges": RANGES, "how": how}
    if RTX.builder_missing() is not None:
        return {}
    script = Path(__file__).with_name("rtx_builds.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(requests), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("name", ON_RTX)
def test_tensorrt_rtx_agrees(name: str, rtx: dict[str, dict[str, Any]]) -> None:
    if not rtx:
        assert "pip install" in str(RTX.builder_missing())
        return
    bad, good = rtx[f"{name} bad"], rtx[f"{name} good"]
    assert good["error"] == "", good
    match EXAMPLES[name].proof:
        case Refused(reason):
            assert RULES[name].severity == "error"
            assert re.search(reason, bad["error"] + bad["log"]), bad
        case Raw(reason):
            assert reason in bad["log"]
        case Ignored():
            assert bad["layers"] == good["layers"]
        case Taken():
            assert RULES[name].severity == "warning"
            assert bad["error"] == ""
        case Asked(words):
            assert RULES[name].severity == "warning"
            assert words in bad["error"]
        case Empty():
            assert bad["error"] or bad["shapes"] == {"x": "(0, 32) / (0, 32) / (0, 32)"}
        case other:
            pytest.fail(f"{name} is for tensorrt-rtx and has the proof {other}")


def test_what_nothing_here_can_run_says_why() -> None:
    others = {name for name in EXAMPLES if name not in ON_CPU + ON_RTX}
    assert others == {"ort-cuda-qdq", "avx2-saturation"}
    assert all(isinstance(EXAMPLES[name].proof, NoRuntime) for name in others)
