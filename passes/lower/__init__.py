"""lower: the precise graph in a target's own dialect, and nothing else in it than the target's table allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass
from pydantic import ValidationError

from ...devices import Device, check_device, check_precision, named
from ...errors import BuildError, UsageError
from ...runtimes import RUNTIMES, Settings
from ...runtimes.tensorrt_versions import ops_of
from ...spec import PRECISIONS, Job, Lowering, Precision, Target, pick
from ..base import Trail, run
from ..sites import path_of
from . import openvino, ort_cpu, ort_cuda, tensorrt, tensorrt_rtx

TARGETS: dict[str, Target] = {
    module.TARGET.name: module.TARGET for module in (ort_cpu, ort_cuda, openvino, tensorrt, tensorrt_rtx)
}


def parse_job(text: str) -> Job:
    """`target[@device][:precision]` -> Job; several devices joined by +.

    Raises UsageError that lists what is allowed and suggests the nearest, or says what the device lacks.
    """
    head, _, asked = text.partition(":")
    name, _, device = head.partition("@")
    target = TARGETS[pick("target", name, TARGETS)]
    precision: Precision = "fp32"
    if asked:
        pick("precision", asked, PRECISIONS)
        precision = next(known for known in PRECISIONS if known == asked)
    parts = device.split("+") if device else []
    if len(parts) > 1 and not target.joins:
        raise UsageError(f"{name} makes one artifact for one device, but came {device!r}: name one of {parts}.")
    for part in parts:
        check_device(part, name, target.devices)
    job = Job(name, precision, device)
    check_precision(job)
    if precision not in target.precisions:
        if why := target.refused.get(precision):
            raise UsageError(f"{precision} on {name}: {why}. Allowed: {', '.join(sorted(target.precisions))}.")
        pick(f"precision for {name}", precision, target.precisions)
    return job


def devices_of(job: Job) -> tuple[Device, ...]:
    """The devices that the job is for; none where it is for this machine's own."""
    return named(job.device or TARGETS[job.target].devices[0])


def settings_of(job: Job, options: Mapping[str, Any]) -> Settings:
    """The settings of the job's target with `options` in place of the defaults.

    Raises UsageError that names each option that the target does not have (with the nearest) or that does not fit.
    """
    kind = RUNTIMES[TARGETS[job.target].runtime].settings
    for name in options:
        pick(f"option for {job.target}", name, kind.model_fields)
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        wrong = [
            f"option {'.'.join(map(str, each['loc']))} of {job.target}: {each['msg']}, but is {each['input']!r}"
            for each in error.errors()
        ]
        raise UsageError(f"{'; '.join(wrong)}.") from error


def lowering_of(
    job: Job, options: Mapping[str, Any] | None = None, choices: Mapping[str, str] | None = None
) -> Lowering:
    """The lowering for `job`, with `options` in place of the target's defaults. Raises UsageError as `settings_of`."""
    return Lowering(job, settings_of(job, options or {}), choices or {})


def lower(model: ir.Model, lowering: Lowering, trail: Trail | None = None) -> ir.Model:
    """`model` in the dialect of the job's target, changed in place. Raises BuildError for an op that it cannot say."""
    target = TARGETS[lowering.job.target]
    # last: weights that quantization replaced must not travel on, and what was made in a body gets a name of its own
    run(model, [*target.lower(lowering), RemoveUnusedNodesPass(), NameFixPass()], trail)
    check_legal(model, replace(target, legal=legal_ops(lowering.job)))
    return model


def legal_ops(job: Job) -> Mapping[str, frozenset[str] | None]:
    """Domain -> op types that the job's target takes on its device; None: all."""
    legal = dict(TARGETS[job.target].legal)
    for device in devices_of(job):
        standard = legal.get("")
        if device.tensorrt and standard is not None:
            legal[""] = ops_of(device.tensorrt, standard)
    return legal


def check_legal(model: ir.Model, target: Target) -> None:
    """Raise BuildError naming the nodes whose op is not in the target's table."""
    wrong = []
    for node in model.graph.all_nodes():
        ops = target.legal.get(node.domain, frozenset())
        if ops is not None and node.op_type not in ops:
            wrong.append(f"{node.domain + '.' if node.domain else ''}{node.op_type} at {path_of(node)}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BuildError(f"{target.name} has no form for {'; '.join(wrong[:3])}{more}.")


__all__ = ["TARGETS", "check_legal", "devices_of", "legal_ops", "lower", "lowering_of", "parse_job", "settings_of"]
