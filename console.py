"""What the command says: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from .errors import Exit, GraphwrightError


def explain(error: Exception) -> int:
    """Say what went wrong on stderr; the exit code."""
    if isinstance(error, GraphwrightError):
        say(f"error: {error}")
        return error.code
    if isinstance(error, MemoryError):
        say("error: out of memory. Close other programs, or use a machine with more of it.")
        return Exit.RESOURCES
    say(
        f"error: internal: {type(error).__name__}: {error}. Run it again with --debug for the traceback, and report it."
    )
    return Exit.INTERNAL


class Progress:
    """Stages on stderr: a spinner where a person watches, plain lines elsewhere."""

    def __enter__(self) -> Progress:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self

    def __call__(self, message: str) -> None:
        if message.endswith(" ..."):
            if self._status is not None:
                self._status.update(message)
        else:
            self._console.print(message, markup=False)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def print_result(*things: Any) -> None:
    """Tables and text on stdout."""
    from rich.console import Console

    # a file or a pipe has no width of its own: tables must not be cut at 80 columns there
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for thing in things:
        console.print(thing, markup=False, soft_wrap=isinstance(thing, str))


def print_json(value: Any) -> None:
    """JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def say(text: str) -> None:
    """A line of prose on stderr."""
    sys.stderr.write(text + "\n")
