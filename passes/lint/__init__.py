"""lint: would this graph be taken by that target, and what of it would be slow there? Without a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ...errors import UsageError
from ...runtimes.base import Ranges
from ...spec import RANGES, Job
from .. import Lifted, Optimized, optimize
from ..base import quiet
from ..lower import devices_of, legal_ops, parse_job
from ..sites import path_of
from . import attention, kernels, limits, quantized_ort, quantized_trt
from .base import Facts, Finding, Rule, Severity

RULES: dict[str, Rule] = {
    rule.id: rule for module in (limits, attention, kernels, quantized_ort, quantized_trt) for rule in module.RULES
}


PLACES = 3  # of a rule's findings that are named where they are told by rule


@dataclass(frozen=True)
class Lint:
    """What lint found of a graph for a job, errors first."""

    job: Job
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings say that the graph is refused or wrong there."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def passed(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return not self.errors


def lint(
    model: ir.Model | Lifted | Optimized | str | Path,
    target: str = "ort-cpu",
    precision: str = "",
    *,
    as_is: bool = False,
    ranges: Ranges | None = None,
) -> Lint:
    """Every rule on the graph that graphwright would build of `model` for `target`; with `as_is` on `model` itself.

    `model`: as `gw.optimize` takes, or what it gave, which is then linted for its own job. `ranges`: (min, opt, max) of
    dynamic dims; of a graph as it is, default: those that its export proved. Raises as `gw.optimize` does.
    """
    if isinstance(model, Optimized):
        return check(model.model, model.job, ranges=ranges)
    job = parse_job(f"{target}:{precision}" if precision else target)
    if not as_is:
        return check(optimize(model, str(job)).model, job, ranges=ranges)
    if isinstance(model, Lifted):
        raise UsageError("as_is is for an ONNX graph or file: give lifted.model, or leave as_is out.")
    return check(_read(model), job, as_is=True, ranges=ranges)


def check(model: ir.Model, job: Job, *, as_is: bool = False, ranges: Ranges | None = None) -> Lint:
    """Every rule that applies to the job's target, on a graph as it is. The graph is not changed."""
    model = model.clone()
    with quiet():
        ShapeInferencePass()(model)
    given = _ranges(model, as_is) if ranges is None else ranges
    facts = Facts(model, job, devices_of(job), as_is, given, legal_ops(job))
    found = [
        _finding(rule, node, what)
        for rule in RULES.values()
        if rule.applies(job.target)
        for node, what in rule.check(facts)
    ]
    return Lint(job, tuple(sorted(found, key=lambda finding: finding.severity)))


def _finding(rule: Rule, node: ir.Node | None, what: str) -> Finding:
    message = f"{what[0].upper()}{what[1:]}. {rule.why}."
    path, name = (path_of(node), node.name or "") if node is not None else ("", "")
    return Finding(rule.id, rule.severity, path, name, message, rule.way_out)


def _ranges(model: ir.Model, as_is: bool) -> Ranges:
    """Of a graph as it is, dims whose upper end the export proved; else all with a name: the build ranges them."""
    proved = json.loads(model.metadata_props.get(RANGES, "{}"))
    names = {d.value for value in model.graph.inputs for d in value.shape or () if not isinstance(d, int) and d.value}
    if not as_is:
        return {name: (1, 1, 1) for name in names if name}
    return {name: (low, high, high) for name, (low, high) in proved.items() if high is not None}


def _read(model: ir.Model | str | Path) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    from ...export.onnx_file import read_onnx

    return read_onnx(Path(model))


@dataclass(frozen=True)
class Group:
    """The findings of one rule in one graph: how many, the first places, and the message of the first."""

    rule: str
    severity: Severity
    count: int
    places: list[str]
    message: str
    way_out: str


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """Findings by rule, in their order."""
    rules = dict.fromkeys(finding.rule for finding in findings)
    return [_group([finding for finding in findings if finding.rule == name]) for name in rules]


def _group(found: Sequence[Finding]) -> Group:
    places = dict.fromkeys(finding.path for finding in found if finding.path)
    first = found[0]
    return Group(first.rule, first.severity, len(found), list(places)[:PLACES], first.message, first.way_out)


__all__ = ["RULES", "Facts", "Finding", "Group", "Lint", "Rule", "Severity", "check", "grouped", "lint"]
