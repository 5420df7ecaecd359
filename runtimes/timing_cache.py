"""TensorRT's timing caches, kept in the store's folder: one file a runtime, version and device, checked like a plan.

A cache is native content that the builder trusts, so it lies in the same envelope as a plan. Any number of processes
may build at once: each loads what is there, and merges what it learned into what is there then.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import InputError
from ..scratch import held
from ..store import TIMING, Store
from . import plan

_log = logging.getLogger(__name__)


class TimingCache:
    """The cache of one runtime, version and device; `root` is the store's folder by default."""

    def __init__(self, runtime: str, version: str, device: str, root: Path | None = None) -> None:
        self._known = {"runtime": runtime, "version": version, "devices": (device,), "graph": ""}
        self.path = (root or Store().root) / TIMING / re.sub(r"[^\w.+-]", "_", f"{runtime}-{version}-{device}")

    def load(self) -> bytes:
        """The cache; empty if there is none. A damaged one is removed with a warning, and counts as none."""
        try:
            header, data = plan.read(self.path)
        except FileNotFoundError:
            return b""
        except InputError as error:
            _log.warning("A timing cache was damaged, and is made anew: %s", error)
            self.path.unlink(missing_ok=True)
            return b""
        wanted = (self._known["runtime"], self._known["version"], self._known["devices"])
        return data if (header.runtime, header.version, header.devices) == wanted else b""

    def merge(self, learned: Callable[[bytes], bytes]) -> None:
        """Replace the cache, whole or not at all, by what `learned` makes of the one that is there now."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        with FileLock(f"{self.path}.lock"), held(part):  # the lock stays: removing it could split those who wait
            plan.write(part, learned(self.load()), **self._known)
            part.replace(self.path)


def lend(config: Any, cache: TimingCache) -> None:
    """Give a builder's configuration what is known of kernels' times."""
    known = config.create_timing_cache(cache.load()) or config.create_timing_cache(b"")
    config.set_timing_cache(known, ignore_mismatch=False)


def keep(config: Any, cache: TimingCache) -> None:
    """Keep what a build learned, with what others learned meanwhile."""

    def both(there: bytes) -> bytes:
        learned, known = config.get_timing_cache(), config.create_timing_cache(there)
        if there and known is not None:
            learned.combine(known, ignore_mismatch=True)
        return bytes(learned.serialize())

    cache.merge(both)
