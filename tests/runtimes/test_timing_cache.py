"""Timing caches: kept a version and a device, merged by any number of processes, never believed when damaged."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from graphwright.runtimes.timing_cache import TimingCache
from graphwright.store import Store

KNOWN = ("tensorrt", "11.4.0.106", "sm89")


def entries(cache: TimingCache) -> set[bytes]:
    return set(cache.load().split())


def test_there_is_none_at_first_and_what_is_learned_is_kept(tmp_path: Path) -> None:
    cache = TimingCache(*KNOWN, tmp_path)
    assert cache.load() == b""
    cache.merge(lambda there: there + b" one")
    TimingCache(*KNOWN, tmp_path).merge(lambda there: there + b" two")
    assert entries(cache) == {b"one", b"two"}
    assert {path.name for path in cache.path.parent.iterdir()} == {
        "tensorrt-11.4.0.106-sm89",
        "tensorrt-11.4.0.106-sm89.lock",
    }


def test_it_lies_in_the_store_and_is_of_one_version_and_device() -> None:
    TimingCache(*KNOWN).merge(lambda _: b"one")
    assert TimingCache(*KNOWN).path.is_relative_to(Store().root)
    for other in (("tensorrt", "11.5.0", "sm89"), ("tensorrt", "11.4.0.106", "sm90")):
        assert TimingCache(*other).load() == b""
    other_cache = TimingCache("tensorrt", "11.5.0", "sm89")
    other_cache.path.write_bytes(TimingCache(*KNOWN).path.read_bytes())  # by hand: its header says whose it is
    assert other_cache.load() == b""


def test_a_damaged_one_counts_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TimingCache(*KNOWN, tmp_path)
    cache.merge(lambda _: b"one")
    cache.path.write_bytes(cache.path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert cache.load() == b""
    assert "A timing cache was damaged, and is made anew" in caplog.text
    assert not cache.path.exists()


def test_a_merge_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    cache = TimingCache(*KNOWN, tmp_path)
    cache.merge(lambda _: b"one")

    def fails(there: bytes) -> bytes:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        cache.merge(fails)
    assert entries(cache) == {b"one"}


def test_processes_that_merge_at_once_lose_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from graphwright.runtimes.timing_cache import TimingCache
for number in range(8):
    cache = TimingCache("tensorrt", "11.4.0.106", "sm89", Path(sys.argv[1]))
    cache.merge(lambda there: there + f" {sys.argv[2]}.{number}".encode())
"""
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(name)]) for name in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    wanted = {f"{name}.{number}".encode() for name in range(2) for number in range(8)}
    assert entries(TimingCache(*KNOWN, tmp_path)) == wanted


def test_cleaning_the_store_removes_it_and_what_a_killed_build_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    cache = TimingCache(*KNOWN, store.root)
    cache.merge(lambda _: b"one")
    part = cache.path.with_name(f"{cache.path.name}.99.part")
    part.write_bytes(b"half")
    size = cache.path.stat().st_size
    assert store.clean() == (0, size + 4)
    assert list(cache.path.parent.iterdir()) == []
    assert cache.load() == b""
