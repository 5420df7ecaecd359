"""The store under kill, race, a full disk and foreign permissions, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from graphwright import store as stores
from graphwright.errors import ResourceError, UsageError
from graphwright.store import Store, key

KEY = key("lift", graph="ab", opset=23)
PRELUDE = """
import os, sys, time
from pathlib import Path
from graphwright.store import Store, key
root = Path(sys.argv[1])
store, KEY = Store(root), key("lift", graph="ab", opset=23)
"""


def child(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a child printed, after it ended as it should."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    return out


def write(folder: Path) -> None:
    (folder / "graph.onnx").write_bytes(b"graph" * 100)
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(b"weights" * 100)


def left_behind(root: Path) -> list[str]:
    """What the store holds besides locks."""
    return [path.name for name in ("objects", "tmp") for path in (root / name).iterdir()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


def test_kill_in_the_middle_of_put(root: Path) -> None:
    killed = child(
        """
        def write(folder):
            (folder / "graph.onnx").write_bytes(b"half")
            os.kill(os.getpid(), 9)
        store.take(KEY, write)
        """,
        root,
    )
    said(killed, -9)
    store = Store(root)
    assert store.get(KEY) is None
    assert len(list((root / "tmp").glob("*/graph.onnx"))) == 1
    folder, hit = store.take(KEY, write)
    assert not hit
    assert store.get(KEY) == folder
    assert left_behind(root) == [KEY.digest]  # the next stage that was written swept
    assert list((root / "locks").iterdir()) == []


@pytest.mark.parametrize("when", ["before rename", "after rename", *range(1, 6)])
def test_kill_at_each_sync_point(root: Path, when: str | int) -> None:
    killed = child(
        """
        when, calls = sys.argv[2], 0
        def die(*_):
            os.kill(os.getpid(), 9)
        fsync, rename = os.fsync, os.rename
        def dying_fsync(handle):
            global calls
            calls += 1
            (die if str(calls) == when else fsync)(handle)
        def dying_rename(*paths, **more):
            when == "before rename" and die()
            rename(*paths, **more)
            when == "after rename" and die()
        os.fsync, os.rename = dying_fsync, dying_rename
        def write(folder):
            (folder / "graph.onnx").write_bytes(b"graph" * 100)
            (folder / "weights").mkdir()
            (folder / "weights" / "w.bin").write_bytes(b"weights" * 100)
        store.take(KEY, write)
        """,
        root,
        when,
    )
    said(killed, -9)
    store = Store(root)
    there = store.get(KEY)
    assert (there is not None) == (when == "after rename")
    folder, hit = store.take(KEY, write)
    assert hit == (when == "after rename")
    assert (folder / "weights" / "w.bin").read_bytes() == b"weights" * 100
    store.clean()
    assert left_behind(root) == []
    assert list((root / "locks").iterdir()) == []


def test_two_processes_make_one(root: Path, tmp_path: Path) -> None:
    code = """
    def write(folder):
        with open(sys.argv[2], "a") as log:
            log.write("made\\n")
        time.sleep(0.5)
        (folder / "graph.onnx").write_bytes(b"graph")
    print(store.take(KEY, write))
    """
    makers = [child(code, root, tmp_path / "log") for _ in range(3)]
    lines = [said(maker) for maker in makers]
    assert (tmp_path / "log").read_text() == "made\n"
    assert sorted("True" in line for line in lines) == [False, True, True]
    assert len({line.split("'")[1] for line in lines}) == 1


def test_puts_of_one_key_at_once(root: Path) -> None:
    code = """
    def write(folder):
        (folder / "graph.onnx").write_bytes(b"graph")
    print([store.put(KEY, write).name for _ in range(20)])
    """
    for maker in [child(code, root) for _ in range(2)]:
        assert said(maker).count(KEY.digest) == 20
    assert left_behind(root) == [KEY.digest]


@pytest.mark.parametrize("verb", ["store.put(KEY, write)", "store.take(KEY, write)"])
def test_file_size_limit_is_a_resource_error(root: Path, verb: str) -> None:
    limited = child(
        f"""
        import resource, signal
        from graphwright.errors import ResourceError
        assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        def write(folder):
            (folder / "small").write_bytes(b"x")
            (folder / "graph.onnx").write_bytes(bytes(1 << 20))
        try:
            {verb}
        except ResourceError as error:
            print(error.code, error)
        """,
        root,
    )
    out = said(limited)
    assert out.startswith("6 ")
    assert str(root) in out
    for fact in ("largest size allowed", "bytes free", "65536", "graphwright clean", "GRAPHWRIGHT_STORE"):
        assert fact in out
    assert left_behind(root) == []


def test_disk_full(tmp_path: Path) -> None:
    def fill() -> None:
        with stores.disk_errors(tmp_path, needed=100), Path("/dev/full").open("wb") as file:
            file.write(b"x" * 100)

    with pytest.raises(ResourceError, match=r"the disk is full \(\d+ bytes free, 100 needed\)"):
        fill()


def test_disk_errors_pass_what_is_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), stores.disk_errors(tmp_path):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(PermissionError), stores.disk_errors(tmp_path):
        raise PermissionError(13, "Permission denied", "/elsewhere/input")


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match=r"file.* cannot be used .*: give a folder"), stores.disk_errors(out):
            out.mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="cannot be used"):
            Store(out)


def test_a_folder_without_permission(root: Path) -> None:
    denied = child(
        """
        from graphwright.errors import UsageError
        if os.getuid() == 0:
            os.setuid(65534)  # root may write anywhere
        else:
            root.chmod(0o500)
        try:
            Store(root / "new")
        except UsageError as error:
            print(error.code, error)
        """,
        root,
    )
    assert said(denied).startswith(f"2 {root}/new cannot be used (Permission denied: ")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_store_that_others_may_write_is_refused(store: Store, mode: int) -> None:
    for folder in (store.root, store.root / "objects"):
        folder.chmod(mode)
        with pytest.raises(UsageError, match=rf"mode {mode:o}\): run `chmod 700 .*`, or set GRAPHWRIGHT_STORE"):
            Store(store.root)
        folder.chmod(0o700)
    assert Store(store.root).size() == (0, 0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_store_of_another_user_is_refused(store: Store) -> None:
    os.chown(store.root, 12345, -1)
    with pytest.raises(UsageError, match=r"belongs to user 12345, not to you: run `chown -R 0 "):
        Store(store.root)


def test_clean_spares_a_living_writer(store: Store) -> None:
    def clean_and_write(folder: Path) -> None:
        assert said(child("print(store.clean())", store.root)) == "(0, 0)\n"
        write(folder)

    folder = store.put(KEY, clean_and_write)
    assert store.get(KEY) == folder
