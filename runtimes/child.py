"""Work in a child process: what crashes there takes only itself down, and its memory goes with it.

The parent writes a request as JSON to the child's standard input; the child answers with one line of JSON on its
standard output. Backends may print what they like to standard error: its end is kept for the error message.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
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
PYTHON = (sys.executable, "-P", "-m")
COMMAND = (*PYTHON, "graphwright.runtimes.child")


def build_in_child(runtime: str, request: BuildRequest, command: Sequence[str] = COMMAND) -> BuildResult:
    """`RUNTIMES[runtime].build(request)` in a process of its own; `command` ends in `main` below.

    Raises what the build raised; BuildError where the process died, ResourceError where it was killed (most often for
    its memory).
    """
    question = {
        "runtime": runtime,
        "graph": str(request.graph),
        "ranges": dict(request.ranges),
        "device": request.device,
        "settings": request.settings.model_dump(mode="json"),
    }
    answer, said = ask(command, f"The {runtime} builder", question)
    if "error" in answer:
        # backends give the real reason in their log, and a poor summary as the error
        reasons = [line.strip() for line in said.splitlines() if "error" in line.lower() or "[E]" in line]
        message = " ".join([answer["message"], *dict.fromkeys(reasons[-3:])])
        raise error_of(answer, message)
    return BuildResult(**{**answer, "notes": tuple(answer["notes"])})


def ask(command: Sequence[str], who: str, question: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The answer of a child process, and what it printed; `who` names it in messages.

    An answer with an "error" in it stands for `error_of` it. Raises BuildError where the process died, ResourceError
    where it was killed.
    """
    request = json.dumps({"who": who, **question})
    done = subprocess.run(list(command), input=request, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == -signal.SIGKILL:
        raise ResourceError(f"{who} was killed, most likely for its memory: free some, or build elsewhere.")
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = " ".join(done.stderr.split()[-60:])
        named = {-number: number.name for number in signal.Signals}
        how = named.get(done.returncode, f"exit code {done.returncode}")
        raise BuildError(f"{who} died ({how}). Its last words: {last or 'none'}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer, done.stderr


def error_of(answer: dict[str, Any], message: str) -> GraphwrightError:
    """The error that an answer tells of."""
    return _ERRORS.get(answer["error"], BuildError)(message)


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """In the child: answer one request with what `work` makes of it, or with the error that it raises."""
    question = json.load(sys.stdin)
    who = question.pop("who")
    # a backend's own prints must not mix with the answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer = work(question)
    except errors.GraphwrightError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        answer = {"error": "ResourceError", "message": f"{who} ran out of memory."}
    answers.write(json.dumps(answer) + "\n")
    answers.close()


def _build(question: dict[str, Any]) -> dict[str, Any]:
    runtime = RUNTIMES[question["runtime"]]
    ranges = {dim: tuple(bounds) for dim, bounds in question["ranges"].items()}
    graph = Path(question["graph"])
    settings = runtime.settings.model_validate_json(json.dumps(question["settings"]))
    with disk_errors(graph.parent):
        return asdict(runtime.build(BuildRequest(graph, ranges, question["device"], settings)))


def main() -> None:
    """Answer one request for a build."""
    serve(_build)


if __name__ == "__main__":
    main()
