"""Watches a child process until it ends: keeps the end of what it prints, and ends it where it goes beyond a limit."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time

from ..errors import ResourceError
from . import memory

LOOK = 0.1  # seconds between two looks at the memory and the clock
GRACE = 2.0  # seconds that a child has to end by itself
KEPT = 1 << 16  # bytes of what it prints
WORDS = 60  # of the end of that, in a message


class Watch:
    """A child process, `who` in messages, that may take `seconds` and `most` bytes of memory."""

    def __init__(self, who: str, child: subprocess.Popen[bytes], seconds: float, most: int) -> None:
        assert child.stdout is not None
        self.who, self.child, self.seconds, self.most = who, child, seconds, most
        self.peak = self._before = 0
        self._tail = b""
        self._start = time.monotonic()
        self._pipe = child.stdout.fileno()
        os.set_blocking(self._pipe, False)

    @property
    def said(self) -> str:
        """The end of what the child printed."""
        return self._tail.decode(errors="replace")

    @property
    def last_words(self) -> str:
        """The end of that, in one line."""
        return f"Its last words: {' '.join(self.said.split()[-WORDS:]) or 'none'}"

    def until_it_ends(self) -> None:
        """Return when the child has ended by itself. Raises ResourceError where it had to be ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            look = self._start
            while self.child.poll() is None:
                if selector.select(LOOK) and not self._take():
                    selector.unregister(self._pipe)  # it closed its output: most likely it ends
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.child.wait(LOOK)
                if (now := time.monotonic()) >= look:
                    look = now + LOOK
                    self._look(now)
        for _ in range(16):  # more than a pipe holds; a process that the child left behind may write without end
            if not self._take():
                break

    def _take(self) -> bool:
        """Read once; whether there was something."""
        try:
            data = os.read(self._pipe, KEPT)
        except BlockingIOError:
            return False
        self._tail = (self._tail + data)[-KEPT:]
        return bool(data)

    def _look(self, now: float) -> None:
        held = memory.held_by(self.child.pid)
        # for a moment before it starts a program, a process counts with all of its parent's memory: so look twice
        both, self._before = min(held, self._before), held
        self.peak = max(self.peak, both)
        if both > self.most:
            self._end(signal.SIGKILL)  # at once: it may take the rest of the machine's memory meanwhile
            raise ResourceError(
                f"{self.who} took {size(self.peak)} of memory and was ended: its limit is {size(self.most)}. Raise "
                f"the limit, free some memory, or build elsewhere. {self.last_words}"
            )
        if now - self._start > self.seconds:
            self._end(signal.SIGTERM)  # a backend may want to clean up; who stays is killed by the warden
            raise ResourceError(
                f"{self.who} was not done after {now - self._start:.1f} s and was ended: its limit is "
                f"{self.seconds:g} s. Raise the limit, or build elsewhere. {self.last_words}"
            )

    def _end(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(GRACE)
        self._take()


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.2f} GB"
