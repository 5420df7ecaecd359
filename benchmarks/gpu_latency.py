"""Latency of four transformers on an NVIDIA GPU in float16: graphwright beside torch and plain ONNX Runtime.

    python benchmarks/gpu_latency.py [--models minilm ...] [--shapes 1x128 ...] [--budget 10] [--write docs/gpu.md]

Two tables, never mixed. *On the device*: inputs and outputs stay in the GPU's memory, and a call ends when the device
is done. *From the host*: numpy arrays go in and come out, copies and all. Contenders take turns in blocks with rests
between them; a ratio to torch is formed inside a round. None is timed whose outputs differ from float32 torch's by more
than half precision explains. `--budget` is in seconds for each model, size and table. Above the tables stands what this
GPU reaches at all: a large product, and a copy inside its memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from cpu_models import MODELS, Feeds, Model

import graphwright as gw
from graphwright.compare import latency
from graphwright.errors import GraphwrightError, UsageError
from graphwright.runtimes import RUNTIMES, cuda
from graphwright.runtimes.base import Session
from graphwright.runtimes.bound import BoundSession

DEFAULT = ("minilm", "bert-base", "vit-b16", "gpt2")
LIMIT = 0.05  # of the largest |a - b| over the largest |b| of an output; float16 stays below 0.02 in twelve layers
BASE = "torch"
START, END = "<!-- figures -->", "<!-- end of figures -->"

Call = Callable[[], object]


@dataclass(frozen=True)
class Machine:
    """What is measured on. The CPU is for the benchmark's own test: in float32, and no figures of a GPU."""

    device: str = "cuda"

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> str:
        return "float16" if self.is_gpu else "float32"

    @property
    def job(self) -> str:
        return "ort-cuda:fp16" if self.is_gpu else "ort-cpu:fp32"

    def synchronize(self) -> None:
        if self.is_gpu:
            import torch

            torch.cuda.synchronize()

    def open(self, graph: Path, **settings: Any) -> BoundSession:
        """A session of ONNX Runtime whose data stays on the device."""
        import onnxruntime as ort

        runtime = RUNTIMES["ort-cuda"]
        if not self.is_gpu:
            return BoundSession(ort.InferenceSession(graph, providers=["CPUExecutionProvider"]))
        session = runtime.open(graph, runtime.settings(**settings))
        assert isinstance(session, BoundSession)
        return session


class Torch:
    """The module itself, with torch's own attention, or compiled."""

    def __init__(self, module: Any, machine: Machine, compiled: bool = False) -> None:
        import torch

        self.machine, self.dtype = machine, getattr(torch, machine.dtype)
        self.module = module.to(machine.device, self.dtype)
        if compiled:
            self.module = torch.compile(self.module, mode="max-autotune-no-cudagraphs")

    def tensors(self, feeds: Feeds) -> dict[str, Any]:
        import torch

        moved = {name: torch.from_numpy(array).to(self.machine.device) for name, array in feeds.items()}
        return {name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor for name, tensor in moved.items()}

    def run(self, tensors: Mapping[str, Any]) -> Any:
        import torch

        with torch.inference_mode():
            return self.module(**tensors)

    def on_device(self, feeds: Feeds) -> Call:
        tensors = self.tensors(feeds)

        def call() -> None:
            self.run(tensors)
            self.machine.synchronize()

        return call

    def on_host(self, feeds: Feeds) -> Callable[[], dict[str, np.ndarray]]:
        from graphwright.runtimes.reference import name_outputs, to_array

        return lambda: {name: to_array(value) for name, value in name_outputs(self.run(self.tensors(feeds))).items()}


class Opened:
    """A session; what has no way to keep its data on the device is measured from the host alone."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def typed(self, feeds: Feeds) -> Feeds:
        return {info.name: feeds[info.name].astype(info.dtype) for info in self.session.inputs}

    def on_device(self, feeds: Feeds) -> Call | None:
        return self.session.bind(self.typed(feeds)).run if isinstance(self.session, BoundSession) else None

    def on_host(self, feeds: Feeds) -> Callable[[], dict[str, np.ndarray]]:
        return partial(self.session.run, self.typed(feeds))


Contender = Torch | Opened


class Bench:
    """The contenders of one model. Use it in a `with` block."""

    def __init__(self, name: str, machine: Machine, folder: Path) -> None:
        self.name, self.model, self.machine, self.folder = name, MODELS[name], machine, folder
        self.stack, self.failed = ExitStack(), dict[str, str]()
        self.contenders: dict[str, Contender] = {}

    def __enter__(self) -> Bench:
        self.reference = Torch(self.model.module(), Machine("cpu"))
        self.golden = gw.to_onnx(self.spec(self.model.module()))
        makers: dict[str, Callable[[], Contender]] = {
            BASE: lambda: Torch(self.model.module(), self.machine),
            "ONNX Runtime, raw export": self.raw,
            f"graphwright {self.machine.job}": self.lowered,
        }
        if self.machine.is_gpu:
            makers["torch.compile"] = lambda: Torch(self.model.module(), self.machine, compiled=True)
        if self.machine.is_gpu and RUNTIMES["tensorrt"].missing() is None:
            makers["graphwright tensorrt:fp16"] = self.tensorrt
        for name, make in makers.items():
            with self.noting(name):
                self.contenders[name] = make()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """What a contender raises is kept as its reason; the others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - another project's tool may raise anything
            self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            say(f"{self.name}, {name}: {self.failed[name]}")

    def spec(self, module: Any, dtype: str = "float32") -> gw.ModelSpec:
        import torch

        feeds = {name: torch.from_numpy(array) for name, array in self.model.feeds(*self.model.example).items()}
        kind = getattr(torch, dtype)
        inputs = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in feeds.items()}
        return gw.ModelSpec(module.to(kind), inputs, self.model.dynamic, name=self.name)

    def raw(self) -> Opened:
        """The float16 module as it is exported at opset 18; ONNX Runtime fuses what it knows."""
        path = self.folder / f"{self.name}.raw.onnx"
        ir.save(gw.to_onnx(self.spec(self.model.module(), self.machine.dtype), opset=18), path)
        return Opened(self.stack.enter_context(self.machine.open(path)))

    def lowered(self) -> Opened:
        path = self.folder / f"{self.name}.onnx"
        ir.save(gw.optimize(self.golden, self.machine.job).model, path)
        return Opened(self.stack.enter_context(self.machine.open(path)))

    def tensorrt(self) -> Opened:
        artifact = gw.build(self.golden, self.folder / f"{self.name}.trt", target="tensorrt:fp16")
        return Opened(self.stack.enter_context(artifact.open()))

    def captured(self, feeds: Feeds, outputs: Mapping[str, np.ndarray], stack: ExitStack) -> Opened:
        """The same for these shapes alone, its run captured as a CUDA graph."""
        path = self.folder / f"{self.name}.fixed.onnx"
        model = fixed(self.golden, feeds, outputs)
        options = {"cuda_graph": True} if self.machine.is_gpu else {}
        ir.save(gw.optimize(model, self.machine.job, options=options).model, path)
        return Opened(stack.enter_context(self.machine.open(path, **options)))

    def measure(self, shape: tuple[int, int], budget: float) -> dict[str, dict[str, str]]:
        """Table -> contender -> its cell, at one size."""
        feeds = self.model.feeds(*shape)
        wanted = self.reference.on_host(feeds)()
        with ExitStack() as stack:
            found, failed = dict(self.contenders), dict(self.failed)
            with self.noting("graphwright, CUDA graph"):
                found["graphwright, CUDA graph"] = self.captured(feeds, wanted, stack)
            for name in list(found):
                with self.noting(name):
                    check(found[name].on_host(feeds)(), wanted)
                if name in self.failed:
                    found.pop(name, None)
            say(f"{self.name} {shape[0]}x{shape[1]}")
            inside = {name: call for name, one in found.items() if (call := one.on_device(feeds)) is not None}
            outside: dict[str, Call] = {name: one.on_host(feeds) for name, one in found.items()}
            cells = {
                "device": told(latency.measure(inside, budget), self.flop(shape)),
                "host": told(latency.measure(outside, budget)),
            }
            for table in cells.values():
                table.update(dict.fromkeys(self.failed, "failed"))
        self.failed = failed  # what fails at one size may run at the next
        return cells

    def flop(self, shape: tuple[int, int]) -> float:
        """FLOP of the products with weights at one size."""
        return float(self.model.flops * shape[0] * shape[1])


def fixed(golden: ir.Model, feeds: Feeds, outputs: Mapping[str, np.ndarray]) -> ir.Model:
    """A golden graph for one size alone: every dim that an input names is that input's number."""
    model = golden.clone()
    graph, sizes = model.graph, dict[str, int]()
    for value in graph.inputs:
        for dim, size in zip(value.shape or (), feeds[str(value.name)].shape, strict=True):
            if not isinstance(dim, int) and dim.value is not None:
                sizes[dim.value] = size
    for value in (*graph.inputs, *(out for node in graph.all_nodes() for out in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(
                [dim if isinstance(dim, int) else sizes.get(str(dim.value), dim) for dim in value.shape]
            )
    for value in graph.outputs:
        value.shape = ir.Shape(outputs[str(value.name)].shape)
    return model


def check(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Raise UsageError where an output is not what float32 torch gives, in half precision."""
    for name, array in wanted.items():
        made = found[name].astype(np.float32)
        off = np.abs(made - array).max() / np.abs(array).max()
        if not off <= LIMIT:
            raise UsageError(f"{name} differs from torch's by {off:.3g} of its largest number")


def told(samples: Mapping[str, latency.Samples], flop: float | None = None) -> dict[str, str]:
    """Median in ms, how many times faster than torch, and TFLOP/s where the work is known."""
    rows = latency.summarize(samples, BASE if BASE in samples else None, {})
    cells = {}
    for name, row in rows.items():
        text = latency.milliseconds(row.median_ms)
        if row.ratio_to_reference is not None and name != BASE:
            same = "=" if row.verdict.startswith("no difference") else ""
            text += f" ({row.ratio_to_reference:.2f}x{same})"
        if flop is not None and row.median_ms:
            text += f" {flop / row.median_ms / 1e9:.1f} TF/s"
        cells[name] = text
    return cells


def peaks(machine: Machine) -> tuple[float, float]:
    """TFLOP/s of a large product and GB/s of a copy in memory (read and write counted), medians of ten."""
    import torch

    size, count = (8192, 1 << 29) if machine.is_gpu else (256, 1 << 20)
    kind = getattr(torch, machine.dtype)
    one, other = (torch.randn(size, size, device=machine.device, dtype=kind) for _ in range(2))
    product = torch.empty_like(one)
    source = torch.ones(count, device=machine.device, dtype=torch.float32)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(13):
            machine.synchronize()
            start = time.perf_counter()
            work()
            machine.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[3:])

    flops = 2 * size**3 / seconds(lambda: torch.matmul(one, other, out=product))
    copied = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    return flops / 1e12, copied / 1e9


def about(machine: Machine) -> list[str]:
    """What was measured on, in Markdown."""
    flops, copied = peaks(machine)
    facts = latency.machine()
    lines = [f"{name} {facts[name]}" for name in ("python", "torch", "onnxruntime-gpu", "tensorrt") if name in facts]
    named = f"the CPU ({facts['cpu']}), for the benchmark's own test"
    if machine.is_gpu:
        device = cuda.devices()[0]
        versions = [f"{name} {number}" for name, number in cuda.driver_versions().items()]
        limits = [f"{name} {number}" for name, number in cuda.limits(0).items()]
        named = ", ".join([f"{device.name} ({device.capability}, {device.memory / 2**30:.0f} GiB)", *versions, *limits])
    return [
        f"On {named}; {', '.join(lines)}.",
        "",
        f"Its own limits, measured in the same run: {flops:.3g} TFLOP/s in {machine.dtype} products of large matrices, "
        f"{copied:.3g} GB/s in a copy inside its memory.",
    ]


def tables(results: Mapping[tuple[str, str], Mapping[str, Mapping[str, str]]]) -> list[str]:
    """Both tables in Markdown: a row for each model and size, a column for each contender."""
    titles = {
        "device": "On the device: ms (times faster than torch, = where no difference is shown), TFLOP/s in products",
        "host": "From the host and back: ms (times faster than torch, = where no difference is shown)",
    }
    lines = []
    for table, title in titles.items():
        names = list(dict.fromkeys(name for cells in results.values() for name in cells[table]))
        lines += [
            "",
            f"**{title}**",
            "",
            f"| model | size | {' | '.join(names)} |",
            f"| --- | --- |{' --- |' * len(names)}",
        ]
        for (model, size), cells in results.items():
            row = " | ".join(cells[table].get(name, latency.NONE) for name in names)
            lines.append(f"| {model} | {size} | {row} |")
    return lines


def write(text: str, path: Path) -> None:
    """Put the figures into a document, between its two marks."""
    before, found, rest = path.read_text().partition(START)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise UsageError(f"{path} has no place for figures: the lines {START} and {END}.")
    path.write_text(f"{before}{START}\n{text}\n{END}{after}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(DEFAULT))
    parser.add_argument("--shapes", nargs="+", metavar="BATCHxLENGTH", help="in place of each model's own")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each model, size and table")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the benchmark's own test")
    parser.add_argument("--write", type=Path, help="a document with a place for figures")
    asked = parser.parse_args(arguments)
    machine = Machine(asked.device)
    reason = RUNTIMES["ort-cuda"].missing() if machine.is_gpu else None
    if reason is not None:
        say(f"Nothing to measure here: {reason}.")
        return
    results: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    lines = about(machine)
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.models:
            with Bench(name, machine, Path(folder)) as bench:
                for size in asked.shapes or sizes(MODELS[name]):
                    batch, _, length = size.partition("x")
                    results[name, size] = bench.measure((int(batch), int(length)), asked.budget)
    text = "\n".join([*lines, *tables(results)])
    print(text)
    if asked.write:
        write(text, asked.write)


def sizes(model: Model) -> list[str]:
    return [f"{batch}x{length}" for batch, length in model.shapes]


if __name__ == "__main__":
    try:
        main()
    except GraphwrightError as error:
        say(f"error: {error}")
        sys.exit(error.code)
