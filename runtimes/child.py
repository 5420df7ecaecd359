"""Work in a child process: what crashes, hangs or grows there takes only itself down, with all that it held.

The parent writes a question into a folder of the child's own, the child its answer; both are JSON. What the child
prints is read by the parent, which keeps the end of it for the error message.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from .. import errors
from ..errors import BuildError, GraphwrightError, ResourceError, UsageError
from ..store import disk_errors
from . import RUNTIMES, memory
from .base import BuildRequest, BuildResult, Runtime, Settings
from .watch import Watch, size

_ERRORS = {kind.__name__: kind for kind in GraphwrightError.__subclasses__()}

# -P: nothing in the user's working folder may stand in for a module
PYTHON = (sys.executable, "-P", "-m")
COMMAND = (*PYTHON, "graphwright.runtimes.child")
# -I -S: it needs nothing but the standard library, and is there in some 15 ms
WARDEN = (sys.executable, "-I", "-S", str(Path(__file__).with_name("warden.py")))

SECONDS = 3600.0  # an engine of a large model at the highest level of effort takes tens of minutes on a small device
SHARE = 0.9  # of the memory that is free at the start: the rest is for the parent and what else goes on
ANSWER_BYTES = 1 << 24  # an answer names facts; what is larger is none

_QUESTION, _ANSWER = "question.json", "answer.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one child process, with all that it starts, may use.

    `bytes` is of memory; None: nine tenths of what is free when it starts. Raises UsageError for what is no limit.
    """

    seconds: float = SECONDS
    bytes: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"A limit of time must be a number of seconds above 0, but is {self.seconds!r}.")
        if self.bytes is not None and self.bytes <= 0:
            raise UsageError(f"A limit of memory must be a number of bytes above 0, but is {self.bytes!r}.")


NORMAL = Limits()


def build_in_child(
    runtime: str, request: BuildRequest, limits: Limits = NORMAL, command: Sequence[str] = COMMAND
) -> BuildResult:
    """`RUNTIMES[runtime].build(request)` in a process of its own; `command` ends in `main` below.

    Raises what the build raised; BuildError where the process died, ResourceError where it went beyond its limits or
    was killed (most often for its memory).
    """
    question = {
        **about(RUNTIMES[runtime], request.settings),
        "graph": str(request.graph),
        "ranges": dict(request.ranges),
        "device": request.device,
    }
    who = f"The {runtime} builder"
    answer, said = ask(command, who, question, limits)
    if "error" in answer:
        # backends give the real reason in their log, and a poor summary as the error
        reasons = [line.strip() for line in said.splitlines() if "error" in line.lower() or "[E]" in line]
        raise error_of(answer, " ".join([answer["message"], *dict.fromkeys(reasons[-3:])]))
    return typed(BuildResult, answer, who)


def ask(
    command: Sequence[str], who: str, question: dict[str, Any], limits: Limits = NORMAL
) -> tuple[dict[str, Any], str]:
    """The answer of a child process, and the end of what it printed; `who` names it in messages.

    An answer with an "error" in it stands for `error_of` it. However this ends, and even where this process is killed,
    the child's process group ends too and its folder for temporary files is removed. Raises BuildError where the child
    died or its answer is none, ResourceError where it went beyond `limits` or was killed.
    """
    most = limits.bytes or int(SHARE * memory.available())
    with tempfile.TemporaryDirectory(prefix="graphwright-") as name:
        folder = Path(name)
        (folder / _QUESTION).write_text(json.dumps({"who": who, **question}))
        with _started(command, folder) as child:
            watch = Watch(who, child, limits.seconds, most)
            watch.until_it_ends()
            return _read(folder / _ANSWER, watch), watch.said


def typed(kind: type[T], answer: dict[str, Any], who: str) -> T:
    """`answer` as what it should be. Raises BuildError where it is something else."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(answer))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise BuildError(f"{who} answered with what is no {kind.__name__}: {where}: {wrong['msg']}.") from error


def about(runtime: Runtime, settings: Settings) -> dict[str, Any]:
    """The part of a question that `runtime_of` reads."""
    kind = type(runtime)  # by its class, so that a runtime that the user added is found too
    return {"runtime": f"{kind.__module__}:{kind.__qualname__}", "settings": settings.model_dump(mode="json")}


def error_of(answer: dict[str, Any], message: str) -> GraphwrightError:
    """The error that an answer tells of."""
    return _ERRORS.get(answer["error"], BuildError)(message)


@contextlib.contextmanager
def _started(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child that leads a group of its own; at the end of the block, or of this process, no one of it is left."""
    # unbuffered: the last words of one that dies must not die with it
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with (
        subprocess.Popen(
            list(command),
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ) as child,
        # leaving the block closes its input: that ends it, and it ends the child
        subprocess.Popen(
            [*WARDEN, str(child.pid), str(folder)], stdin=pipe, stdout=null, stderr=null, start_new_session=True
        ),
    ):
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once
            # only now it may begin: a child whose parent died before there was a warden reads nothing, and ends
            child.stdin.write(os.fsencode(folder) + b"\n")
            child.stdin.close()
        yield child


def _read(path: Path, watch: Watch) -> dict[str, Any]:
    code = watch.child.returncode
    if code == -signal.SIGKILL:
        raise ResourceError(
            f"{watch.who} was killed, most likely for its memory ({size(watch.peak)} when last seen): free some, or "
            f"build elsewhere. {watch.last_words}"
        )
    if code != 0 or not path.exists():
        named = {-number: number.name for number in signal.Signals}
        raise BuildError(f"{watch.who} died ({named.get(code, f'exit code {code}')}). {watch.last_words}")
    try:
        with path.open("rb") as file:
            answer = json.loads(file.read(ANSWER_BYTES))
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or ("error" in answer and not isinstance(answer.get("message"), str)):
        raise BuildError(f"{watch.who} gave an answer that cannot be read. {watch.last_words}")
    return answer


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """In the child: answer one question with what `work` makes of it, or with the error that it raises."""
    name = sys.stdin.buffer.readline().rstrip(b"\n")
    if not name:
        sys.exit("who asks is gone")
    folder = Path(os.fsdecode(name))
    _be_expendable()
    question = json.loads((folder / _QUESTION).read_text())
    who = question.pop("who")
    try:
        answer = work(question)
    except errors.GraphwrightError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        answer = {"error": "ResourceError", "message": f"{who} ran out of memory."}
    (folder / _ANSWER).write_text(json.dumps(answer))


def _be_expendable() -> None:
    """Where memory runs out all at once, the kernel ends this process rather than another; a crash leaves no dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # Linux has it
        Path("/proc/self/oom_score_adj").write_text("500")


def runtime_of(question: dict[str, Any]) -> tuple[Runtime, Settings]:
    """In the child: the runtime that a question is about, and its settings."""
    runtime: Runtime = pkgutil.resolve_name(question["runtime"])()
    return runtime, runtime.settings.model_validate_json(json.dumps(question["settings"]))


def _build(question: dict[str, Any]) -> dict[str, Any]:
    runtime, settings = runtime_of(question)
    ranges = {dim: tuple(bounds) for dim, bounds in question["ranges"].items()}
    graph = Path(question["graph"])
    with disk_errors(graph.parent):
        return asdict(runtime.build(BuildRequest(graph, ranges, question["device"], settings)))


def main() -> None:
    """Answer one request for a build."""
    serve(_build)


if __name__ == "__main__":
    main()
