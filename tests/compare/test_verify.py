"""Parity in a process of its own: against the model, against what was recorded, and where that process fails."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphwright as gw
from graphwright.compare.cases import record, replay, replaying
from graphwright.compare.verify import golden_of, verify_recorded
from graphwright.errors import BuildError, InputError, ResourceError
from graphwright.runtimes.child import Limits
from graphwright.store import Store

ANSWER = """
import os
from pathlib import Path
Path(os.environ["TMPDIR"], "answer.json").write_text('{answer}')
"""


@pytest.fixture(scope="module")
def artifact(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> gw.Artifact:
    out = tmp_path_factory.mktemp("shipped")
    gw.ship(small_onnx, ["ort-cpu:fp32"], out, budget=0)
    return gw.load(out / "ort-cpu-fp32")


def test_against_the_model_and_against_what_was_recorded(artifact: gw.Artifact, small_onnx: Path) -> None:
    live, recorded = gw.verify(str(small_onnx), artifact), gw.verify(None, artifact)
    assert (live.verdict, live.cases) == (recorded.verdict, recorded.cases) == ("passed", 4)
    assert live.worst == recorded.worst
    assert list((Store().root / "tmp").iterdir()) == []


def test_another_model_is_not_the_same(artifact: gw.Artifact, small_onnx: Path, tmp_path: Path) -> None:
    other = onnx.load(small_onnx)
    weight = onnx.numpy_helper.to_array(other.graph.initializer[0]).copy()
    weight[3, 5] += 0.01
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save(other, tmp_path / "other.onnx")
    found = gw.verify(str(tmp_path / "other.onnx"), artifact)
    assert found.verdict == "failed"
    assert found.worst is not None
    # one column of y differs, by at most 0.01 |x| times the slope of gelu, which is below 1.13
    assert 0.001 < found.worst.max_abs < 0.06


def test_recorded_cases_that_are_damaged(artifact: gw.Artifact, tmp_path: Path) -> None:
    whole = golden_of(artifact).read_bytes()
    (tmp_path / "cases").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="is no readable golden file"):
        verify_recorded(artifact, tmp_path / "cases")


def test_nan_in_the_reference_is_left_out(artifact: gw.Artifact, tmp_path: Path) -> None:
    """It crosses over to the child as it is."""
    pairs = [(case, {name: array.copy() for name, array in out.items()}) for case, out in replay(golden_of(artifact))]
    for _, out in pairs:
        out["y"][0, :8] = np.nan
    record(replaying(pairs), [case for case, _ in pairs], tmp_path / "cases")
    found = verify_recorded(artifact, tmp_path / "cases")
    assert found.passed
    assert f"{8 * len(pairs)} entries left out" in found.model_dump_json()


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("import os; os.abort()", BuildError, r"^The run of ort-cpu:fp32 died \(SIGABRT\)\."),
        (ANSWER.format(answer='{"verdict": "splendid"}'), BuildError, r"answered with what is no Verified: verdict: "),
        (ANSWER.format(answer='{"verdict": "passed", "cases": 4, "more": 1}'), BuildError, r"is no Verified: more: "),
    ],
)
def test_a_process_that_fails(artifact: gw.Artifact, code: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        verify_recorded(artifact, golden_of(artifact), command=[sys.executable, "-c", code])


def test_a_process_that_takes_too_long(artifact: gw.Artifact) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(ResourceError, match=r"^The run of ort-cpu:fp32 was not done after \d\.\d s and was ended"):
        verify_recorded(artifact, golden_of(artifact), Limits(seconds=0.5), command)
