"""Backends that fail: each is ONNX Runtime's CPU, but for what it does first. The child processes import this file."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pydantic import Field

from graphwright.runtimes import RUNTIMES, BuildRequest, BuildResult, Session, Settings
from graphwright.runtimes.ort_cpu import OrtCpu, OrtCpuSettings
from graphwright.spec import Target

HANG = 600  # seconds


class Fake(OrtCpu):
    """Does as it should."""

    def before_build(self, request: BuildRequest) -> None:
        """What goes wrong there."""

    def before_open(self, artifact: Path) -> None:
        """What goes wrong there."""

    def build(self, request: BuildRequest) -> BuildResult:
        self.before_build(request)
        return super().build(request)

    def open(self, artifact: Path, settings: Settings | None = None) -> Session:
        self.before_open(artifact)
        return super().open(artifact, settings)


class Code(OrtCpuSettings):
    """What `Told` is to run."""

    build: str = Field(default="pass", description="statements; `result` is what the build gives, if they set it")


class Told(Fake):
    """Runs the code that it is given."""

    name = "told"
    settings = Code

    def build(self, request: BuildRequest) -> BuildResult:
        assert isinstance(request.settings, Code)
        names = {**globals(), "request": request}
        exec(request.settings.build, names)
        result = names.get("result")
        return result if isinstance(result, BuildResult) else super().build(request)


class Crash(Fake):
    """Reads address 0."""

    name = "crash"

    def before_build(self, request: BuildRequest) -> None:
        os.write(2, b"tuning layer 7\n")
        ctypes.string_at(0)


class Leave(Fake):
    """Ends the process in the middle, as a library's exit() does."""

    name = "leave"

    def before_build(self, request: BuildRequest) -> None:
        os.write(1, b"licence not found\n")
        os._exit(3)


class Garble(Fake):
    """Gives what is no answer."""

    name = "garble"

    def before_build(self, request: BuildRequest) -> None:
        Path(os.environ["TMPDIR"], "answer.json").write_bytes(b"\x00\xff}{")
        os._exit(0)


class Chatter(Fake):
    """Prints 200 MB, and is right."""

    name = "chatter"

    def before_build(self, request: BuildRequest) -> None:
        line = b"a long line of no use to anyone\n" * 32768
        for _ in range(200):
            os.write(1, line)


class Hang(Fake):
    """Waits, with a process of its own that waits too; says which on the way. Neither ends when it is asked to."""

    name = "hang"

    def before_build(self, request: BuildRequest) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        also = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({HANG})"])
        (request.graph.parent.parent / "pids").write_text(f"{os.getpid()} {also.pid}")
        time.sleep(HANG)


class Eat(Fake):
    """Takes 100 MB after 100 MB; stops at 3 GB, for the machine's sake."""

    name = "eat"

    def before_build(self, request: BuildRequest) -> None:
        eaten = []
        for _ in range(30):
            eaten.append(b"\x01" * 100_000_000)
            time.sleep(0.02)
        time.sleep(HANG)


class Abort(Fake):
    """Builds; what it built ends the process that opens it."""

    name = "abort"

    def before_open(self, artifact: Path) -> None:
        os.write(2, b"assertion failed: plan != nullptr\n")
        os.abort()


FAKES = (Told, Crash, Leave, Garble, Chatter, Hang, Eat, Abort)


def register() -> None:
    """Make all of them known in this process."""
    from graphwright.passes import TARGETS  # not at the top: children start faster without

    RUNTIMES.update(runtimes())
    TARGETS.update(targets())


def targets() -> dict[str, Target]:
    """A target for each, of fp32 and without passes."""
    return {
        kind.name: Target(
            name=kind.name,
            runtime=kind.name,
            precisions=("fp32",),
            devices=("",),
            legal={"": None},
            lower=lambda _: [],
            needs="nothing",
        )
        for kind in FAKES
    }


def runtimes() -> dict[str, Fake]:
    """One of each, by name. Raises ValueError where a real runtime has the name."""
    if taken := {kind.name for kind in FAKES} & set(RUNTIMES):
        raise ValueError(f"{taken} are real runtimes")
    return {kind.name: kind() for kind in FAKES}
