"""The processes of the CPU benchmark: those that make graphs, and those that hold a contender."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from cpu_graphs import OURS, START
from cpu_models import MODELS, Feeds
from cpu_table import Contender

import graphwright as gw
from graphwright.passes import Lifted
from graphwright.tuning import tune

HERE = Path(__file__).parent
TUNING = 120.0  # seconds of measuring forms; larger models than MiniLM get too few rounds, and keep the defaults
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "openvino", "onnx-ir")
VERSIONS = f"""
import json
from importlib.metadata import distributions
found = {{each.name.lower(): each.version for each in distributions() if each.name}}
print(json.dumps({{name: found[name] for name in {PACKAGES!r} if name in found}}))
"""


class Failure(Exception):  # noqa: N818 - a contender that fails is a result
    """What another process could not do, in its words."""


class Clock:
    """Nanoseconds, less those that a request spends on its way: so a call lasts what its own process measured."""

    def __init__(self) -> None:
        self.away = 0

    def __call__(self) -> int:
        return time.perf_counter_ns() - self.away


class Child:
    """A contender in its own process. Use it in a `with` block."""

    def __init__(self, python: str, engine: str, source: str, threads: int, clock: Clock, fetch: int | None = None):
        asked = {"engine": engine, "source": source, "threads": threads, "fetch": fetch}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close
        self.clock = clock
        self.process = subprocess.Popen(
            [python, HERE / "cpu_contender.py", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __enter__(self) -> Self:
        try:
            self._answer()
        except Failure:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **values: str) -> dict[str, Any]:
        """Its answer. Raises Failure where it has none."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Failure(self._last_words()) from error
        return self._answer()

    def call(self) -> None:
        begin = time.perf_counter_ns()
        ns = self.ask("call")["ns"]
        self.clock.away += time.perf_counter_ns() - begin - ns

    def feed(self, feeds: Feeds) -> None:
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, **feeds)
            file.flush()
            self.ask("feeds", file=file.name)

    def outputs(self) -> list[np.ndarray]:
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            self.ask("outputs", file=file.name)
            with np.load(file.name) as arrays:
                return [arrays[f"arr_{index}"] for index in range(len(arrays))]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failure(self._last_words())
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise Failure(said["error"])
        return said

    def _last_words(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return f"its process ended with code {code}: {' '.join(lines[-3:])}"


class Graphs:
    """Graphs and builds by contender, in `folder`: each made once for its makers' versions and code."""

    def __init__(self, folder: Path, peers: str) -> None:
        self.folder, self.peers = folder, peers
        folder.mkdir(parents=True, exist_ok=True)

    def versions(self) -> Mapping[str, str]:
        """Of the peers' packages."""
        return versions(self.peers)

    def source(self, contender: Contender, model: str, threads: int) -> str:
        """What its engine opens. Raises Failure where it cannot be made."""
        if not contender.graph:
            return model
        graph = self.graph(contender.graph, model)
        return str(self.build(contender, graph, model, threads) if contender.target else graph)

    def graph(self, way: str, model: str) -> Path:
        python = sys.executable if way in OURS else self.peers
        source = [self.graph(START[way], model)] if way in START else []
        code = digest(*HERE.glob("cpu_[gm]*s.py"), *(ours("export") if way in OURS else ()))
        path = self.folder / f"{model}-{way}-{digest(code, json.dumps(versions(python)))}.onnx"
        if not path.exists():
            made = path.with_suffix(".part")
            arguments: list[str | Path] = [way, model, made, *source]
            done = subprocess.run(
                [python, HERE / "cpu_graphs.py", *arguments], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Failure(" ".join(done.stderr.strip().splitlines()[-1:]) or f"exit {done.returncode}")
            made.rename(path)
        return path

    def build(self, contender: Contender, golden: Path, model: str, threads: int) -> Path:
        """graphwright's artifact for that many threads."""
        options = {**contender.options, "threads": threads}
        facts = json.dumps([contender.target, options, contender.tuned])
        code = digest(*ours("export", "passes", "runtimes"), golden.name, facts)
        folder = self.folder / f"{golden.stem}-{contender.target}-{code}"
        if not folder.exists():
            try:
                graph = gw.lift(golden)
                choices = tuned(graph, contender.target, options, model) if contender.tuned else {}
                made = gw.optimize(graph, contender.target, options=options, choices=choices)
                gw.build(made, folder)
            except gw.GraphwrightError as error:
                raise Failure(str(error)) from error
        return folder


def tuned(graph: Lifted, target: str, options: Mapping[str, Any], model: str) -> Mapping[str, str]:
    """The forms that are the fastest at all of the model's sizes of batch 1 together."""
    inputs = [MODELS[model].feeds(*shape) for shape in MODELS[model].shapes if shape[0] == 1]
    return tune(graph, target, inputs, options=options, budget=TUNING).choices


def ours(*parts: str) -> list[Path]:
    """The files of folders of graphwright, which decide what is made."""
    return sorted(path for part in parts for path in (HERE.parent / part).rglob("*.py"))


@cache
def versions(python: str) -> Mapping[str, str]:
    """The packages that make or run graphs, in the environment of that interpreter."""
    done = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def digest(*parts: str | Path) -> str:
    """Of texts and of the contents of files."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return hashed.hexdigest()[:12]
