"""Builds in a child process: whatever a builder does there, here it is an answer or an error that says what it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from graphwright.errors import BuildError, DeviceError, GraphwrightError, InputError, ResourceError
from graphwright.runtimes import BuildRequest, BuildResult
from graphwright.runtimes.child import build_in_child

# a child with one runtime more, whose build is the test's
CHILD = """
import atexit, ctypes, errno, os, signal, sys
from graphwright.errors import *
from graphwright.runtimes import RUNTIMES, BuildResult, Runtime
from graphwright.runtimes.child import main

class Fake(Runtime):
    name = "fake"
    def missing(self): return None
    def open(self, artifact): raise NotImplementedError
    def build(self, request):
        {body}

RUNTIMES["fake"] = Fake()
main()
"""
REQUEST = BuildRequest(Path("folder/model.onnx"), {"batch": (1, 2, 8)}, "sm89")


def build(body: str) -> BuildResult:
    return build_in_child("fake", REQUEST, [sys.executable, "-c", CHILD.format(body=body)])


def test_request_and_result_cross_over_as_they_are() -> None:
    made = build(
        "return BuildResult(str(request.graph), {'fake': '1'}, {'device': request.device,"
        " 'batch': list(map(str, request.ranges['batch'])), 'tuple': isinstance(request.ranges['batch'], tuple)},"
        " {'MatMul': 2}, ('one', 'two'))"
    )
    assert made == BuildResult(
        "folder/model.onnx",
        {"fake": "1"},
        {"device": "sm89", "batch": ["1", "2", "8"], "tuple": True},
        {"MatMul": 2},
        ("one", "two"),
    )


def test_what_a_backend_prints_does_not_mix_with_the_answer() -> None:
    noise = r"print('ready'); os.write(1, b'from C: \xff\n'); os.write(2, b'\xff\n')"
    late = "atexit.register(os.write, 1, b'bye\\n')"
    assert build(f"{noise}; {late}; return BuildResult('a', {{}}, {{}})") == BuildResult("a", {}, {})


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("ctypes.string_at(0)", BuildError, r"^The fake builder died \(SIGSEGV\)\. Its last words: "),
        ("os.write(2, b'assertion'); os.abort()", BuildError, r"died \(SIGABRT\)\. Its last words: .*assertion"),
        ("os.kill(os.getpid(), signal.SIGTERM)", BuildError, r"died \(SIGTERM\)\. Its last words: none$"),
        ("os._exit(3)", BuildError, r"^The fake builder died \(exit code 3\)\. Its last words: none$"),
        ("os._exit(0)", BuildError, r"^The fake builder died \(exit code 0\)\."),
        ("raise ValueError('bad layer')", BuildError, r"died \(exit code 1\)\. .*ValueError: bad layer$"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            ResourceError,
            r"^The fake builder was killed, most likely for its memory: free some, or build elsewhere\.$",
        ),
        ("raise MemoryError", ResourceError, r"^The fake builder ran out of memory\.$"),
        ("raise OSError(errno.ENOSPC, 'full')", ResourceError, r"cannot be written: the disk is full"),
        ("raise InputError('a bad input')", InputError, r"^a bad input$"),
        ("raise DeviceError('no device')", DeviceError, r"^no device$"),
        (
            "os.write(2, b'[E] layer 3 has no kernel\\nloading\\n'); raise BuildError('it failed.')",
            BuildError,
            r"^it failed\. \[E\] layer 3 has no kernel$",
        ),
    ],
)
def test_what_ends_a_build_is_said(body: str, kind: type[GraphwrightError], message: str) -> None:
    with pytest.raises(GraphwrightError, match=message) as caught:
        build(body)
    assert type(caught.value) is kind


def test_files_of_the_working_folder_do_not_stand_in_for_modules(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "numpy.py", "onnxruntime.py"):
        (tmp_path / name).write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert build_in_child("ort-cpu", BuildRequest(graph)).artifact == "model.onnx"
