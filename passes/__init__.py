"""passes: lift, quantize, lower; graph to graph, in memory."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..errors import UsageError
from ..runtimes import Settings
from ..spec import Calibration, Job
from .base import Trail
from .lift import Lifted, lift
from .lift.functions import inline
from .lower import TARGETS, lower, lowering_of, parse_job, settings_of
from .quantize import MEASURED, Sampled, quantize
from .sites import Site, SiteLog, lowered_to


@dataclass(frozen=True)
class Optimized:
    """A target graph: lifted, quantized and lowered for `job`; with the log of its sites and the lifted graph."""

    model: ir.Model
    log: SiteLog
    job: Job
    lifted: Lifted
    trail: Trail
    settings: Settings = field(default_factory=Settings)  # of the target, as the user set them


def optimize(
    golden: ir.Model | Lifted | str | Path,
    target: str = "ort-cpu",
    precision: str = "",
    calibration: Calibration | Sampled | None = None,
    options: Mapping[str, Any] | None = None,
    choices: Mapping[str, str] | None = None,
) -> Optimized:
    """Lift, quantize and lower a golden graph, an ONNX file, or a graph that is lifted already. Nothing is changed.

    `target` is `name[@device][:precision]`; `precision` may be given beside it instead. `calibration`: inputs by name,
    for precisions that look at values; fp16 and bf16 go by rules without it. `options` are the target's settings by
    name, `choices` what was measured to be the fastest (`tuning.tune`). Raises UsageError for unknown names and for an
    option that does not apply, BuildError if the target cannot say the graph.
    """
    if precision and ":" in target:
        raise UsageError(f"The precision is given twice: in target {target!r} and as {precision!r}. Give it once.")
    job = parse_job(f"{target}:{precision}" if precision else target)
    if calibration is not None and not is_measured(job):
        raise UsageError(f"{job} takes no calibration data: {job.precision} is not calibrated. Leave it out.")
    lowering = lowering_of(job, options, choices)
    lifted = golden if isinstance(golden, Lifted) else lift(golden)
    trail = Trail()
    model = lifted.model.clone()
    inline(model)  # no target has forms of its own for graphwright's functions yet
    hinted = job.precision in TARGETS[job.target].hinted
    precise = model if hinted else quantize(model, job.precision, trail, _sampled(calibration))
    return Optimized(lower(precise, lowering, trail), lifted.log, job, lifted, trail, lowering.settings)


def is_measured(job: Job) -> bool:
    """Whether the job's precision looks at values: it takes calibration data."""
    return job.precision in MEASURED and job.precision not in TARGETS[job.target].hinted


def _sampled(calibration: Calibration | Sampled | None) -> Sampled | None:
    if calibration is None or isinstance(calibration, Sampled):
        return calibration
    return Sampled(calibration if callable(calibration) else partial(iter, calibration))


def count_ops(model: ir.Model) -> dict[str, int]:
    """Op types of a graph with their counts, most frequent first."""
    counts = collections.Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.all_nodes()
    )
    return dict(counts.most_common())


def count_precisions(model: ir.Model) -> dict[str, int]:
    """In which type the products of a graph (linear layers, convolutions, attentions) compute -> how many."""
    products = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"}
    products |= {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
    integer = {"MatMulInteger", "ConvInteger", "QLinearMatMul"}
    names = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
    counts: collections.Counter[str] = collections.Counter()
    for node in model.graph.all_nodes():
        if node.op_type in integer:
            counts["int8"] += 1
        elif node.op_type in products:
            dtype = node.outputs[0].dtype
            counts["fp32" if dtype is None else names.get(dtype, dtype.name.lower())] += 1
    return dict(counts.most_common())


__all__ = [
    "TARGETS",
    "Lifted",
    "Optimized",
    "Sampled",
    "Site",
    "SiteLog",
    "count_ops",
    "count_precisions",
    "is_measured",
    "lift",
    "lowered_to",
    "optimize",
    "parse_job",
    "settings_of",
]
