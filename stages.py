"""The stages of the route, each taken from the store where it was made before from the same things."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .compare.cases import Case, record, replay
from .compare.verify import spec_cases
from .devices import build_name
from .export import onnx_graph, open_reference
from .passes import TARGETS, Lifted, Optimized, Sampled, is_measured, lift, optimize, parse_job
from .runtimes import RUNTIMES, BuildRequest, BuildResult
from .runtimes.child import NORMAL, Limits, build_in_child
from .runtimes.cpu import instruction_sets
from .runtimes.ort_cpu import cores
from .spec import RANGES, ModelSpec, parts_of, size_of
from .store import Store, hash_file, key, own_digest, versions

GRAPH = "model.onnx"
GOLDEN = "golden.safetensors"
BUILD = "build.json"
EXTERNAL_ABOVE = 1 << 30  # bytes of weights from which they stand beside the graph: a protobuf ends at 2 GiB
HASHED_ABOVE = 1 << 20  # bytes of a weight from which it counts by its hash where a graph is identified

Ranges = dict[str, tuple[int, int, int]]
Recorded = list[tuple[Case, dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Golden:
    """The golden graph of a spec, what identifies it, and whether it came from the store."""

    model: ir.Model
    digest: str
    stored: bool


def export_stage(spec: ModelSpec, opset: int, store: Store) -> Golden:
    """The golden graph. A torch module is traced each time: that tells what it computes; the rest is stored."""
    graph = onnx_graph(spec, opset)
    if graph is not None:
        model = graph.clone()
        return Golden(model, digest_of(model), stored=False)
    from .export.prove import prove_dynamic
    from .export.trace import convert, digest, trace

    program = trace(spec)
    acting = versions("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu")
    stage = key("export", program=digest(spec, program), opset=opset, versions=acting, own=own_digest())

    def write(folder: Path) -> None:
        golden = convert(spec, program, opset)
        prove_dynamic(spec, golden)
        save_graph(golden, folder / GRAPH)

    folder, stored = store.take(stage, write)
    return Golden(ir.load(folder / GRAPH), stage.digest, stored)


def reference_stage(spec: ModelSpec, golden: Golden, cases: list[Case], store: Store) -> tuple[Recorded, bool]:
    """The reference's outputs in every case, and whether they came from the store."""
    acting = versions("torch", "transformers", "onnxruntime", "onnxruntime-gpu")
    inputs = [[case.name, {name: _hash(array) for name, array in case.feeds.items()}] for case in cases]
    stage = key("reference", golden=golden.digest, cases=inputs, versions=acting)

    def write(folder: Path) -> None:
        with open_reference(spec) as reference:
            record(lambda case: reference.run(case.feeds), cases, folder / GOLDEN)

    folder, stored = store.take(stage, write)
    return replay(folder / GOLDEN), stored


def sampled(cases: list[Case]) -> Sampled:
    """The inputs of `cases` for precisions that look at values: real ones first, then the largest."""
    ordered = sorted(cases, key=lambda case: (not case.real, -sum(array.size for array in case.feeds.values())))
    return Sampled(lambda: [case.feeds for case in ordered])


def optimize_for(
    spec: ModelSpec | None,
    graph: Lifted | ir.Model | str | Path,
    target: str,
    precision: str = "",
    options: Mapping[str, Any] | None = None,
) -> Optimized:
    """As `optimize`; a precision that looks at values sees them on the inputs of `spec`, if there is one."""
    job = parse_job(f"{target}:{precision}" if precision and ":" not in target else target)
    lifted = graph if isinstance(graph, Lifted) else lift(graph)
    data = None
    if spec is not None and is_measured(job):
        data = sampled(spec_cases(spec, ranges_of(lifted.model, spec)))
    return optimize(lifted, target, precision, data, options)


def build_stage(
    optimized: Optimized, ranges: Ranges, folder: Path, store: Store, limits: Limits = NORMAL
) -> tuple[BuildResult, bool]:
    """Build the target graph, which lies in `folder`, in a child process; the built files come into `folder`."""
    job = optimized.job
    target = TARGETS[job.target]
    runtime, device = RUNTIMES[target.runtime], build_name(job.device or target.devices[0])
    graph = {file.name: hash_file(file) for file in sorted(folder.iterdir())}
    acting = versions(
        *("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-libs", "polygraphy")
    )
    settings = optimized.settings.model_dump(mode="json")
    request = {"job": str(job), "device": device, "graph": graph, "ranges": ranges, "settings": settings}
    stage = key("build", **request, versions=acting, machine=_machine(), own=own_digest())

    def write(temp: Path) -> None:
        result = build_in_child(runtime.name, BuildRequest(folder / GRAPH, ranges, device, optimized.settings), limits)
        for file in folder.iterdir():
            if file.name not in graph:
                copy_file(file, temp / file.name)
        (temp / BUILD).write_text(json.dumps(asdict(result)))

    built, stored = store.take(stage, write)
    for file in built.iterdir() if stored else ():
        if file.name not in (BUILD, "object.json"):
            copy_file(file, folder / file.name)
    result = json.loads((built / BUILD).read_text())
    return BuildResult(**{**result, "notes": tuple(result["notes"])}), stored


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph; large weights go into one file beside it."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > EXTERNAL_ABOVE else None)


def copy_file(source: Path, target: Path) -> None:
    """A copy, never a link: loaders refuse linked weights, and the store must not change with the output."""
    shutil.copyfile(source, target)


def ranges_of(golden: ir.Model, spec: ModelSpec | None = None) -> Ranges:
    """(min, opt, max) of every dynamic dim: the user's, else what the export proved, around the example's size.

    Where the export proved no upper end, 32 for a first axis and 512 for any other are taken, or the example's size if
    that is larger: an engine must be built for some end.
    """
    proved = json.loads(golden.metadata_props.get(RANGES, "{}"))
    sizes, given = (spec.sizes, spec.ranges) if spec else ({}, {})
    ranges: Ranges = {}
    for value in golden.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            name = None if isinstance(dim, int) else dim.value
            if name is None or name in ranges:
                continue
            low, high = proved.get(name, (1, None))
            size = sizes.get(name, 128 if axis else 8)
            high = high or max(512 if axis else 32, size)
            ranges[name] = given.get(name, (low, min(size, high), high))
    return {dim: _of_sum(dim, ranges) for dim in ranges}


def _of_sum(dim: str, ranges: Ranges) -> tuple[int, int, int]:
    """The range of a dim that may be the sum of others."""
    if not all(part.isdecimal() or part in ranges for part in parts_of(dim)):
        return ranges[dim]
    low, opt, high = (size_of(dim, {name: bounds[which] for name, bounds in ranges.items()}) for which in range(3))
    return low, opt, high


def _machine() -> Mapping[str, int | str | list[str]]:
    """What of the machine a build depends on: what is built for bfloat16 is refused on a processor without it."""
    facts: dict[str, int | str] = {"arch": platform.machine(), "system": platform.system(), "cores": cores()}
    return {**facts, "instructions": instruction_sets()}


def _hash(array: np.ndarray) -> str:
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def digest_of(model: ir.Model) -> str:
    """SHA-256 of the graph. Large weights count by hashes of their own: a protobuf ends at 2 GiB."""
    model = model.clone()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= HASHED_ABOVE:
            content = hashlib.sha256(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data).hexdigest()
            value.const_value = ir.ExternalTensor(
                content, None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=str(value.name)
            )
    return hashlib.sha256(ir.to_proto(model).SerializeToString()).hexdigest()
