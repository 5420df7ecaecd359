"""Scratch: paths held under a lock while they are written, so that what a killed process left is known and removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".lock"


@contextlib.contextmanager
def held(path: Path, timeout: float = -1) -> Iterator[Path]:
    """Hold the name `path` under `path`.lock; what is there at the end is removed, and the lock with it.

    The kernel frees the lock when its process dies: what no one holds is stale, without a guess by pid or age. Raises
    filelock.Timeout where another holds it for longer than `timeout` seconds; below 0 it is waited for.
    """
    lock = Path(f"{path}{_LOCK}")
    with FileLock(lock, timeout=timeout):  # one that was removed while it was waited for is made anew
        try:
            yield path
        finally:
            remove(path)
            lock.unlink(missing_ok=True)


def sweep(folder: Path, prefix: str = "") -> int:
    """Remove what processes that are gone held in `folder` under names with `prefix`; how many bytes that was."""
    total = 0
    names = {path.name.removesuffix(_LOCK) for path in folder.iterdir() if path.name.startswith(prefix)}
    for name in sorted(names):
        with contextlib.suppress(Timeout), held(folder / name, timeout=0) as path:  # Timeout: its owner lives
            total += size_of(path)
    return total


def size_of(path: Path) -> int:
    """The bytes of a file, or of the files in a folder; a link holds none."""
    try:
        inside = [found for found, _ in walk(path)] if path.is_dir() else []
        files = [] if path.is_symlink() else [path, *inside]
        return sum(info.st_size for info in map(Path.lstat, files) if stat.S_ISREG(info.st_mode))
    except FileNotFoundError:
        return 0  # another process removed it meanwhile


def walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All that is below a folder; links are not followed."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        yield from ((path := Path(parent, name), path.lstat()) for name in (*folders, *names))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder without following links; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _raise(error: OSError) -> None:
    raise error
