"""Memory: what this process may still take, and what a session of processes holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

# Linux's control groups, version 2 and 1: limit, what is used of it, and the pages of files that can be given back
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available(groups: Path = GROUPS, own: Path = OWN) -> int:
    """Bytes that are free: the machine's, or what the tightest control group around this process leaves."""
    return max(0, min([psutil.virtual_memory().available, *_left(groups, own)]))


def held_by(session: int) -> int:
    """Bytes that the processes of a session hold alone; pages of files, which the kernel takes back, do not count."""
    total = 0
    for pid in psutil.pids():
        # a process may end at any time; of another user's one nothing can be read
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(pid) == session:
                info = psutil.Process(pid).memory_info()
                total += info.rss - getattr(info, "shared", 0)  # `shared` is Linux's
    return total


def _left(groups: Path, own: Path) -> Iterator[int]:
    lines = own.read_text().splitlines() if own.exists() else []
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        version = _V1 if "memory" in controllers.split(",") else _V2 if not controllers else None
        if version is None:
            continue
        top = groups / "memory" if version is _V1 else groups
        below = top / inside.lstrip("/")
        for folder in (below, *below.parents):  # the path inside may be the host's, which is not there in a container
            if folder.is_relative_to(top):
                yield from _left_in(folder, *version)


def _left_in(folder: Path, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    # absent: the topmost group has no files, and without the memory controller no group has; "max": no limit
    with contextlib.suppress(OSError, ValueError):
        facts = dict(line.split(None, 1) for line in (folder / "memory.stat").read_text().splitlines())
        free = int((folder / limit).read_text()) - int((folder / used).read_text())
        yield free + int(facts.get(reclaimable, 0))
