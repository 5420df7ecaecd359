"""The store under use and damage: an object is there whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graphwright import store as stores
from graphwright.errors import GraphwrightError, UsageError
from graphwright.store import Key, Store, key

KEY = key("lift", graph="ab", opset=23)


def write(folder: Path) -> None:
    (folder / "graph.onnx").write_bytes(b"graph" * 100)
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(b"weights" * 100)


def never(folder: Path) -> None:
    raise AssertionError(f"made again in {folder}")


def left_behind(root: Path) -> list[str]:
    """What the store holds besides locks."""
    return [path.name for name in ("objects", "tmp") for path in (root / name).iterdir()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


def test_miss_put_hit(store: Store) -> None:
    assert store.get(KEY) is None
    folder = store.put(KEY, write)
    assert store.get(KEY) == folder == store.root / "objects" / KEY.digest
    assert (folder / "weights" / "w.bin").read_bytes() == b"weights" * 100
    assert store.take(KEY, never) == (folder, True)
    record = json.loads((folder / "object.json").read_text())
    assert record["stage"] == "lift"
    assert record["key"] == {"graph": "ab", "opset": 23}
    assert record["files"]["weights/w.bin"] == {
        "size": 700,
        "sha256": stores.hash_file(folder / "weights" / "w.bin"),
    }
    assert left_behind(store.root) == [KEY.digest]


def test_take_makes_once(store: Store) -> None:
    folder, hit = store.take(KEY, write)
    assert (folder, hit) == (store.get(KEY), False)
    assert store.take(KEY, never) == (folder, True)


def test_put_again_keeps_the_first(store: Store) -> None:
    first = store.put(KEY, write)
    stamp = (first / "object.json").stat().st_ino
    assert store.put(KEY, write) == first
    assert (first / "object.json").stat().st_ino == stamp
    assert left_behind(store.root) == [KEY.digest]


BASE = {"graph": "ab", "shapes": [1, 2], "flags": {"fp16": True, "axis": {0: "batch"}}, "lr": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"graph": "ac"},
        {"shapes": [2, 1]},
        {"shapes": [1, 2, 3]},
        {"flags": {"fp16": False, "axis": {0: "batch"}}},
        {"flags": {"fp16": 1, "axis": {0: "batch"}}},
        {"flags": {"fp16": True, "axis": {1: "batch"}}},
        {"lr": 1.0000000000000002},
        {"lr": None},
        {"more": ""},
    ],
)
def test_key_changes_with_every_part(change: dict[str, object]) -> None:
    assert key("lift", **{**BASE, **change}).digest != key("lift", **BASE).digest


def test_key_is_its_content() -> None:
    one, other = key("lift", **BASE), Key("lift", dict(reversed(list(BASE.items()))))
    assert one == other
    assert hash(one) == hash(other)
    assert one.digest == other.digest
    assert len(one.digest) == 64
    assert key("lower", **BASE).digest != one.digest
    many = {"axis": {2: "a", 10: "b"}}
    assert Key("s", key("s", **many).parts) == key("s", **many)


@pytest.mark.parametrize("part", [float("nan"), Path("x"), {1, 2}, b"x"])
def test_key_takes_json_only(part: object) -> None:
    with pytest.raises((TypeError, ValueError), match="JSON"):
        key("lift", part=part)


def flip(folder: Path) -> None:
    path = folder / "graph.onnx"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


def rewrite_record(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    record = json.loads((folder / "object.json").read_text())
    change(record)
    (folder / "object.json").write_text(json.dumps(record))


def replace_by_link(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def make_record_a_folder(folder: Path) -> None:
    (folder / "object.json").unlink()
    (folder / "object.json").mkdir()


def make_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit": (flip, "graph.onnx has other content"),
    "truncated": (lambda f: os.truncate(f / "weights" / "w.bin", 99), "has 99 bytes instead of 700"),
    "missing": (lambda f: (f / "graph.onnx").unlink(), "graph.onnx is missing"),
    "extra": (lambda f: (f / "weights" / "more").touch(), "weights/more is extra"),
    "link": (lambda f: (f / "more").symlink_to("/etc"), "more is neither a regular file nor a folder"),
    "no record": (lambda f: (f / "object.json").unlink(), "object.json"),
    "record a folder": (make_record_a_folder, "object.json"),
    "record empty": (lambda f: os.truncate(f / "object.json", 0), "EOF"),
    "record cut": (lambda f: os.truncate(f / "object.json", 40), "EOF"),
    "record no text": (lambda f: (f / "object.json").write_bytes(b"\xff\0\xff"), "JSON"),
    "record of other form": (lambda f: rewrite_record(f, lambda r: r.update(version=2)), "version"),
    "record with more": (lambda f: rewrite_record(f, lambda r: r.update(more=2)), "more"),
    "record of other key": (lambda f: rewrite_record(f, lambda r: r.update(stage="lower")), "another key"),
    "folder a link": (replace_by_link, "its folder is a link"),
    "folder a file": (make_a_file, "object.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_a_miss(store: Store, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    folder = store.put(KEY, write)
    damage, reason = DAMAGE[kind]
    damage(folder)
    assert store.get(KEY) is None
    assert "The stored stage 'lift' was damaged" in caplog.text
    assert reason in caplog.text
    assert left_behind(store.root) == []
    assert store.take(KEY, write) == (folder, False)
    assert store.get(KEY) == folder


@pytest.mark.parametrize("kind", ["bit", "folder a link", "folder a file"])
def test_put_over_damage(store: Store, kind: str) -> None:
    folder = store.put(KEY, write)
    DAMAGE[kind][0](folder)
    assert store.put(KEY, write) == folder
    assert store.get(KEY) == folder


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UsageError])
def test_a_writer_that_raises_leaves_nothing(store: Store, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise error("no")

    with pytest.raises(error, match="no"):
        store.take(KEY, fail)
    assert left_behind(store.root) == []
    assert store.take(KEY, write)[1] is False


def test_a_writer_may_not_link_or_write_the_record(store: Store) -> None:
    with pytest.raises(GraphwrightError, match="'lift' cannot be stored: x is neither a regular file"):
        store.put(KEY, lambda folder: (folder / "x").symlink_to("/etc/passwd"))
    with pytest.raises(GraphwrightError, match=r"a file of its own as object\.json"):
        store.put(KEY, lambda folder: (folder / "object.json").touch())
    assert left_behind(store.root) == []


def test_new_folders_are_private(store: Store) -> None:
    store.put(KEY, write)
    for folder in (store.root, *(path for path in store.root.rglob("*") if path.is_dir() and path.name != "weights")):
        assert folder.stat().st_mode & 0o777 == 0o700, folder


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative: to be ignored")
    monkeypatch.delenv("GRAPHWRIGHT_STORE", raising=False)
    assert Store().root == tmp_path / ".cache" / "graphwright"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Store().root == tmp_path / "xdg" / "graphwright"
    monkeypatch.setenv("GRAPHWRIGHT_STORE", str(tmp_path / "own"))
    assert Store().root == tmp_path / "own"


def test_size_and_clean(store: Store) -> None:
    assert store.clean() == (0, 0)
    one, other = store.put(KEY, write), store.put(key("lower"), write)
    wanted = (2, 2 * 1200 + sum((folder / "object.json").stat().st_size for folder in (one, other)))
    assert store.size() == wanted
    assert store.clean() == wanted
    assert store.size() == (0, 0)
    assert left_behind(store.root) == []


def test_clean_stays_inside(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    own = 1200 + (store.put(KEY, write) / "object.json").stat().st_size
    (store.root / "objects" / ("a" * 64)).symlink_to(outside)
    (store.root / "objects" / KEY.digest / "link").symlink_to(outside)
    (store.root / "tmp" / ("b" * 32)).symlink_to(outside)
    (store.root / "objects" / "notes").mkdir()
    (store.root / "objects" / "notes" / "mine").touch()
    assert store.size() == (2, own)
    assert store.clean() == (2, own)
    assert (outside / "precious").read_text() == "keep"
    assert left_behind(store.root) == ["notes"]
    assert (store.root / "objects" / "notes" / "mine").exists()


@pytest.mark.parametrize("name", ["objects", "tmp", "locks"])
def test_a_linked_folder_of_the_store_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    (store.root / name).rmdir()
    (tmp_path / "outside").mkdir(mode=0o700)
    (store.root / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match=f"{name} is a link, but must be a real folder: `rm "):
        Store(store.root)


def test_versions() -> None:
    found = stores.versions("numpy", "no-such-package", "filelock")
    assert list(found) == ["numpy", "filelock"]
    assert found["numpy"][0].isdigit()


def test_sources_digest(tmp_path: Path) -> None:
    def digest_after(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return stores.sources_digest(tmp_path)

    seen = [digest_after("a.py", "1")]
    for name in ("tests/t.py", "out/o.py", ".venv/v.py", "passes/.hidden/h.py", "b.txt", "a.pyc"):
        assert digest_after(name, "x") == seen[0], name
    for name, text in (("a.py", "2"), ("b.py", ""), ("passes/p.py", "1"), ("passes/build/b.py", "1")):
        seen.append(digest_after(name, text))
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    seen.append(stores.sources_digest(tmp_path))
    assert len(set(seen)) == len(seen)


def test_own_digest_is_of_this_package() -> None:
    assert stores.own_digest() == stores.sources_digest(Path(stores.__file__).parent)
    assert len(stores.own_digest()) == 64


def test_import_stays_light() -> None:
    code = "import sys, graphwright.store; print(sorted({'numpy', 'onnx', 'onnx_ir', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
