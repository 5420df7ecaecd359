"""Work in a child process: whatever a builder does there, here it is an answer or an error that says what it was."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from graphwright.errors import (
    BuildError,
    DeviceError,
    Exit,
    GraphwrightError,
    InputError,
    ResourceError,
    UsageError,
)
from graphwright.runtimes import RUNTIMES, BuildRequest, BuildResult, memory
from graphwright.runtimes.child import NORMAL, Limits, build_in_child
from graphwright.tests import fake_backends

MB = 10**6


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The backends that fail are known here; whatever they do, nothing of them stays behind."""
    for name, runtime in fake_backends.runtimes().items():
        monkeypatch.setitem(RUNTIMES, name, runtime)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []
    assert psutil.Process().children() == []


def build(code: str, limits: Limits = NORMAL, request: BuildRequest | None = None) -> BuildResult:
    settings = fake_backends.Code(build=f"from graphwright.errors import *\nimport atexit, errno\n{code}")
    request = request or BuildRequest(Path("folder/model.onnx"), {"batch": (1, 2, 8)}, "sm89", settings)
    return build_in_child("told", request, limits)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_request_and_result_cross_over_as_they_are() -> None:
    made = build(
        "bounds = request.ranges['batch']\n"
        "result = BuildResult(str(request.graph), {'fake': '1'}, {'device': request.device,"
        " 'batch': list(map(str, bounds)), 'tuple': isinstance(bounds, tuple)}, {'MatMul': 2}, ('one', 'two'))"
    )
    assert made == BuildResult(
        "folder/model.onnx",
        {"fake": "1"},
        {"device": "sm89", "batch": ["1", "2", "8"], "tuple": True},
        {"MatMul": 2},
        ("one", "two"),
    )


def test_what_a_backend_prints_does_not_mix_with_the_answer() -> None:
    noise = r"print('{}'); os.write(1, b'from C: \xff\n'); os.write(2, b'\xff\n')"
    late = "atexit.register(os.write, 1, b'bye\\n')"
    assert build(f"{noise}; {late}; result = BuildResult('a', {{}}, {{}})") == BuildResult("a", {}, {})


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("ctypes.string_at(0)", BuildError, r"^The told builder died \(SIGSEGV\)\. Its last words: "),
        ("os.write(2, b'assertion'); os.abort()", BuildError, r"died \(SIGABRT\)\. Its last words: .*assertion"),
        ("print('half'); os.kill(os.getpid(), 15)", BuildError, r"died \(SIGTERM\)\. Its last words: half$"),
        ("os._exit(3)", BuildError, r"^The told builder died \(exit code 3\)\. Its last words: none$"),
        ("os._exit(0)", BuildError, r"^The told builder died \(exit code 0\)\."),
        ("raise ValueError('bad layer')", BuildError, r"died \(exit code 1\)\. .*ValueError: bad layer$"),
        (
            "print('tuning'); os.kill(os.getpid(), 9)",
            ResourceError,
            r"^The told builder was killed, most likely for its memory \(\d\.\d\d GB when last seen\): free some, or "
            r"build elsewhere\. Its last words: tuning$",
        ),
        ("raise MemoryError", ResourceError, r"^The told builder ran out of memory\.$"),
        ("raise OSError(errno.ENOSPC, 'full')", ResourceError, r"cannot be written: the disk is full"),
        ("raise InputError('a bad input')", InputError, r"^a bad input$"),
        ("raise DeviceError('no device')", DeviceError, r"^no device$"),
        (
            "os.write(2, b'[E] layer 3 has no kernel\\nloading\\n'); raise BuildError('it failed.')",
            BuildError,
            r"^it failed\. \[E\] layer 3 has no kernel$",
        ),
        (
            "result = BuildResult('a', {}, {'depth': {}})",
            BuildError,
            r"^The told builder answered with what is no BuildResult: options\.depth",
        ),
    ],
)
def test_what_ends_a_build_is_said(code: str, kind: type[GraphwrightError], message: str) -> None:
    with pytest.raises(GraphwrightError, match=message) as caught:
        build(code)
    assert type(caught.value) is kind


@pytest.mark.parametrize("answer", ["b'{'", "b'[' * 10**6", "b'7'", "b'\\xff'", 'b\'{"error": "InputError"}\''])
def test_an_answer_that_is_none(answer: str) -> None:
    code = f"Path(os.environ['TMPDIR'], 'answer.json').write_bytes({answer}); print('done'); os._exit(0)"
    with pytest.raises(BuildError, match=r"^The told builder gave an answer that cannot be read\. .* done$"):
        build(code)


def test_a_backend_that_hangs_is_asked_to_end_then_killed_with_all_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    start = time.monotonic()
    with pytest.raises(ResourceError, match=r"not done after 3\.\d s and was ended: its limit is 3 s") as caught:
        build_in_child("hang", BuildRequest(tmp_path / "model" / "model.onnx"), Limits(seconds=3))
    assert time.monotonic() - start < 10
    assert caught.value.code is Exit.RESOURCES
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_a_backend_that_ends_when_asked_to_may_say_why() -> None:
    code = "signal.signal(15, lambda *_: (print('stopped at layer 7'), os._exit(1))); time.sleep(60)"
    with pytest.raises(ResourceError, match=r"its limit is 3 s\. .* Its last words: stopped at layer 7$"):
        build(code, Limits(seconds=3))


def test_what_a_backend_leaves_behind_is_ended_and_not_waited_for(tmp_path: Path) -> None:
    """It holds the child's output open, which has no end then."""
    code = (
        "also = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"Path({str(tmp_path / 'pid')!r}).write_text(str(also.pid)); result = BuildResult('a', {{}}, {{}})"
    )
    start = time.monotonic()
    assert build(code).artifact == "a"
    assert time.monotonic() - start < 10
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    "code",
    [
        "eaten = [b'1' * 50_000_000 for _ in range(40) if not time.sleep(0.02)]; time.sleep(60)",
        # the same in a process of its own
        "subprocess.run([sys.executable, '-c', 'import time; eaten = b\"1\" * 2_000_000_000; time.sleep(60)'])",
    ],
)
def test_a_backend_that_takes_too_much_memory_is_ended(code: str) -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises(
        ResourceError,
        match=r"^The told builder took \d\.\d\d GB of memory and was ended: its limit is 0\.50 GB\. Raise",
    ):
        build(code, Limits(bytes=500 * MB))
    assert psutil.Process().memory_info().rss - before < 100 * MB


def test_of_what_a_backend_prints_the_end_is_kept() -> None:
    before = psutil.Process().memory_info().rss
    code = "for _ in range(200): os.write(1, b'of no use\\n' * 100_000)\nos.write(2, b'the reason\\n'); os._exit(3)"
    with pytest.raises(BuildError, match=r"died \(exit code 3\)\. Its last words: .* of no use the reason$") as caught:
        build(code)
    assert len(str(caught.value)) < 1000
    assert psutil.Process().memory_info().rss - before < 20 * MB


def test_pages_of_files_do_not_count_as_memory_taken(tmp_path: Path) -> None:
    """Weights that are mapped can be given back by the kernel at any time."""
    with (tmp_path / "weights").open("wb") as file:
        for _ in range(6):
            file.write(bytes(100 * MB))
    code = (
        "import mmap, numpy as np\n"
        f"file = open({str(tmp_path / 'weights')!r}, 'rb')\n"
        "mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)\n"
        "assert mapped[::4096].sum() == 0; time.sleep(0.5); result = BuildResult('a', {}, {})"
    )
    assert build(code, Limits(bytes=500 * MB)).artifact == "a"


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seconds": float("nan")}, {"seconds": -1.0}, {"bytes": 0}])
def test_what_is_no_limit(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"^A limit of (time|memory) must be a number of (seconds|bytes) above 0, but"):
        Limits(**wrong)


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "1000", "a/memory.current": "300"}, 700),
        (
            "0::/a",
            {"a/memory.max": "1000", "a/memory.current": "900", "a/memory.stat": "anon 1\ninactive_file 50"},
            150,
        ),
        ("0::/a", {"a/memory.max": "1000", "a/memory.current": "1100"}, 0),
        ("0::/of/the/host", {"memory.max": "1000", "memory.current": "300"}, 700),
        (
            "5:cpu:/\n4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "1000", "memory/a/memory.usage_in_bytes": "200"},
            800,
        ),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": "300"}, None),
        ("0::/", {}, None),
    ],
)
def test_memory_that_is_available(tmp_path: Path, own: str, files: dict[str, str], left: int | None) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if not (path.parent / "memory.stat").exists():
            (path.parent / "memory.stat").write_text("inactive_file 0\n")
    free = memory.available(tmp_path / "groups", tmp_path / "own")
    if left is None:
        assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    else:
        assert free == left


def test_files_of_the_working_folder_do_not_stand_in_for_modules(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "numpy.py", "onnxruntime.py"):
        (tmp_path / name).write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert build_in_child("ort-cpu", BuildRequest(graph)).artifact == "model.onnx"


def test_temporary_files_of_a_child_are_in_a_folder_of_its_own() -> None:
    code = "import tempfile; made = tempfile.mkdtemp(); result = BuildResult(made, {}, {})"
    made = Path(build(code).artifact)
    assert made.parent.name.startswith("graphwright-")
    assert made.parent.parent == Path(tempfile.gettempdir())
    assert os.environ.get("TMPDIR") != str(made.parent)
    assert not made.exists()
