"""One contender of the CPU benchmark: a process that holds a model, calls it when asked and times the calls itself.

    python benchmarks/cpu_contender.py '{"engine": "onnxruntime", "source": "model.onnx", "threads": 1}'

A request is a line of JSON on stdin, its answer a line on stdout:

    {"do": "feeds", "file": "inputs.npz"}      the inputs of the calls from now on
    {"do": "call"}                             one call -> {"ns": its wall time}
    {"do": "outputs", "file": "outputs.npz"}   one call, its outputs written in order
    {"do": "profile"}                          {"profile": where the time of a call goes, or null}

A request that fails answers {"error": why}. Only what the engine needs is imported, so that a peer can be run by the
interpreter of another environment.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import cpu_profile
import numpy as np
from cpu_models import MODELS, Feeds


class Engine(ABC):
    """Something that holds a model and runs it on `threads` threads; inputs and outputs on the host, float32."""

    feeds: Any = None

    @abstractmethod
    def __init__(self, source: str, threads: int, fetch: int | None) -> None:
        """`fetch`: how many outputs a call gives back, None for all; the rest are computed all the same."""

    @abstractmethod
    def call(self) -> list[np.ndarray]:
        """The outputs in order."""

    def feed(self, feeds: Feeds) -> None:
        self.feeds = feeds

    def profile(self) -> cpu_profile.Profile | None:
        """Where the time goes; None where the engine does not tell."""
        return None


class Torch(Engine):
    """torch as it is, eager; `source` is the model's name."""

    def __init__(self, source: str, threads: int, fetch: int | None) -> None:  # noqa: ARG002
        import torch

        torch.set_num_threads(threads)
        self.module: Callable[..., Any] = MODELS[source].module()

    def feed(self, feeds: Feeds) -> None:
        import torch

        self.feeds = {name: torch.from_numpy(array) for name, array in feeds.items()}

    def call(self) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            outputs = self.module(**self.feeds)
        values = [outputs] if isinstance(outputs, torch.Tensor) else outputs.values()
        return [value.numpy() for value in values if isinstance(value, torch.Tensor)]


class TorchCompile(Torch):
    """torch.compile as it comes, but for a compilation for each shape."""

    freezing = False

    def __init__(self, source: str, threads: int, fetch: int | None) -> None:
        super().__init__(source, threads, fetch)
        import torch
        import torch._inductor.config

        torch._inductor.config.freezing = self.freezing
        self.module = torch.compile(self.module, dynamic=False)


class TorchFrozen(TorchCompile):
    """torch.compile with weights as constants, laid out anew for the products."""

    freezing = True


class OnnxRuntime(Engine):
    """ONNX Runtime at its defaults, but for the threads."""

    def __init__(self, source: str, threads: int, fetch: int | None) -> None:
        import onnxruntime as ort

        self.source, self.options = source, ort.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.log_severity_level = 4
        self.session = ort.InferenceSession(source, self.options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()][:fetch]

    def feed(self, feeds: Feeds) -> None:
        known = {value.name for value in self.session.get_inputs()}
        self.feeds = {name: array for name, array in feeds.items() if name in known}

    def call(self) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session.run(self.names, self.feeds)
        return outputs

    def profile(self) -> cpu_profile.Profile:
        return cpu_profile.onnxruntime(self.source, self.options, self.feeds)


def latency_options(threads: int) -> dict[str, str | int]:
    """Of OpenVINO: for latency, in float32; on a CPU that has bfloat16 its default is to compute in that."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }


class OpenVino(Engine):
    """OpenVINO as it is, with `latency_options`."""

    def __init__(self, source: str, threads: int, fetch: int | None) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import would report itself
        import openvino as ov

        self.source, self.fetch, self.options = source, fetch, latency_options(threads)
        self.request = ov.Core().compile_model(source, "CPU", self.options).create_infer_request()

    def call(self) -> list[np.ndarray]:
        if self.fetch is None:
            return list(self.request.infer(self.feeds, share_inputs=True).values())
        self.request.infer(self.feeds, share_inputs=True, share_outputs=True)
        return []

    def profile(self) -> cpu_profile.Profile:
        return cpu_profile.openvino(self.source, self.options, self.feeds)


class Graphwright(Engine):
    """An artifact of graphwright, opened as its users open it; `source` is its folder."""

    def __init__(self, source: str, threads: int, fetch: int | None) -> None:  # noqa: ARG002
        import graphwright as gw

        self.artifact, self.threads = gw.load(source), threads
        self.session = self.artifact.open()

    def call(self) -> list[np.ndarray]:
        return list(self.session.run(self.feeds).values())

    def profile(self) -> cpu_profile.Profile | None:
        path = str(self.artifact.path)
        if self.artifact.job.target == "openvino":
            return cpu_profile.openvino(path, latency_options(self.threads), self.feeds)
        from graphwright.runtimes.ort_cpu import PROVIDER, OrtCpuSettings, session_options

        settings = self.artifact.settings()
        assert isinstance(settings, OrtCpuSettings)
        return cpu_profile.onnxruntime(path, session_options(PROVIDER, settings), self.feeds)


ENGINES: dict[str, type[Engine]] = {
    "torch": Torch,
    "torch.compile": TorchCompile,
    "torch.compile frozen": TorchFrozen,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "graphwright": Graphwright,
}


class Server:
    """Answers requests for one engine."""

    verbs: ClassVar = ("feeds", "call", "outputs", "profile")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def answer(self, request: dict[str, str]) -> dict[str, Any]:
        if request["do"] not in self.verbs:
            return {"error": f"The requests are {', '.join(self.verbs)}; came {request['do']!r}."}
        return getattr(self, request["do"])(**{key: value for key, value in request.items() if key != "do"}) or {}

    def feeds(self, file: str) -> None:
        with np.load(file) as arrays:
            self.engine.feed(dict(arrays))

    def call(self) -> dict[str, Any]:
        begin = time.perf_counter_ns()
        self.engine.call()
        return {"ns": time.perf_counter_ns() - begin}

    def outputs(self, file: str) -> None:
        np.savez(file, *self.engine.call())

    def profile(self) -> dict[str, Any]:
        found = self.engine.profile()
        return {"profile": found and found._asdict()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    asked = json.loads(sys.argv[1])
    try:
        server = Server(ENGINES[asked["engine"]](asked["source"], asked["threads"], asked.get("fetch")))
        said: dict[str, Any] = {}
    except Exception as error:  # noqa: BLE001 - the parent says which contender cannot be opened, and why
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), file=answers, flush=True)
    for line in sys.stdin if not said else ():
        try:
            said = server.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
