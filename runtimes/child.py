"""Builds in a child process: a builder that crashes takes only itself down, and its memory goes with it.

The parent writes a request as JSON to the child's standard input; the child answers with one line of JSON on its
standard output. Backends may print what they like to standard error: its end is kept for the error message.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import BuildError, GraphwrightError, ResourceError
from ..store import disk_errors
from . import RUNTIMES
from .base import BuildRequest, BuildResult

_ERRORS = {kind.__name__: kind for kind in GraphwrightError.__subclasses__()}


# -P: nothing in the user's working folder may stand in for a module
COMMAND = (sys.executable, "-P", "-m", "graphwright.runtimes.child")


def build_in_child(runtime: str, request: BuildRequest, command: Sequence[str] = COMMAND) -> BuildResult:
    """`RUNTIMES[runtime].build(request)` in a process of its own; `command` ends in `main` below.

    Raises what the build raised; BuildError where the process died, ResourceError where it was killed (most often for
    its memory).
    """
    question = {"runtime": runtime, **asdict(request), "graph": str(request.graph)}
    done = subprocess.run(
        list(command), input=json.dumps(question), capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode == -signal.SIGKILL:
        raise ResourceError(
            f"The {runtime} builder was killed, most likely for its memory: free some, or build elsewhere."
        )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = " ".join(done.stderr.split()[-60:])
        named = {-number: number.name for number in signal.Signals}
        how = named.get(done.returncode, f"exit code {done.returncode}")
        raise BuildError(f"The {runtime} builder died ({how}). Its last words: {last or 'none'}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        # backends give the real reason in their log, and a poor summary as the error
        said = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower() or "[E]" in line]
        message = " ".join([answer["message"], *dict.fromkeys(said[-3:])])
        raise _ERRORS.get(answer["error"], BuildError)(message)
    return BuildResult(**{**answer, "notes": tuple(answer["notes"])})


def main() -> None:
    """Answer one request."""
    question = json.load(sys.stdin)
    runtime = RUNTIMES[question.pop("runtime")]
    ranges = {dim: tuple(bounds) for dim, bounds in question["ranges"].items()}
    graph = Path(question["graph"])
    # a backend's own prints must not mix with the answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        with disk_errors(graph.parent):
            answer = asdict(runtime.build(BuildRequest(graph, ranges, question["device"])))
    except errors.GraphwrightError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        answer = {"error": "ResourceError", "message": f"The {runtime.name} builder ran out of memory."}
    answers.write(json.dumps(answer) + "\n")
    answers.close()


if __name__ == "__main__":
    main()
