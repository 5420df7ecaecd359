"""Recipe: the strict config of a whole run; and its plan: what will be done, and why, before it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from .availability import builder_missing, missing
from .errors import UsageError
from .manifest import Tolerances
from .passes.lower import TARGETS, parse_job
from .runtimes import RUNTIMES, Settings
from .runtimes.child import SECONDS, Limits
from .spec import Job, is_range
from .strict import Loc, Strict, invalid, sentences, why_not, wrong

Asked = str | tuple[str, Mapping[str, Any]] | Mapping[str, Any]  # a target as a user may give it
GB = 1e9
ERRORS = 10  # that are spelled out; the others are counted


def _range(value: Any) -> tuple[int, ...]:
    if not is_range(value):
        message = f"must be [min, opt, max], whole numbers with 1 <= min <= opt <= max, but is {str(value)[:60]}."
        raise invalid([wrong((), message)])
    return tuple(value)


def _entry(value: Any) -> Any:
    """A target is given as text, as a pair of text and options, or as a mapping of the two."""
    if isinstance(value, str):
        return {"target": value}
    if isinstance(value, tuple) and len(value) == 2:
        return {"target": value[0], "options": value[1]}
    return value


class RecipeTarget(Strict):
    """One target of a run, with what is set of it."""

    target: str = Field(description="target[@device][:precision]")
    options: dict[str, Any] = Field(default_factory=dict, description="the target's own options")

    @field_validator("target")
    @classmethod
    def _is_known(cls, target: str) -> str:
        try:
            parse_job(target)
        except UsageError as error:
            raise invalid([wrong((), str(error), target)]) from error
        return target

    @field_validator("options")
    @classmethod
    def _apply(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "target" in info.data:
            kind, name = settings_class(parse_job(info.data["target"])), info.data["target"]
            unknown = {key: why_not(f"option of {name}", key, kind.model_fields) for key in options}
            if any(unknown.values()):
                raise invalid(wrong((key,), why) for key, why in unknown.items() if why)
            kind.model_validate(options)
        return options

    @property
    def job(self) -> Job:
        """The target, parsed."""
        return parse_job(self.target)

    @property
    def settings(self) -> Settings:
        """The target's settings: what was given, and the defaults."""
        return settings_class(self.job).model_validate(self.options)


class Recipe(Strict):
    """A run: all that acts on it."""

    source: str = Field(description="file.py:name, package.module:name, Hugging Face folder, model.onnx or model.pt2")
    targets: tuple[Annotated[RecipeTarget, BeforeValidator(_entry)], ...] = Field(
        strict=False, json_schema_extra={"minItems": 1}, description="one folder and one row of the report each"
    )
    out: Path = Field(strict=False, description="output folder")
    opset: int = Field(default=23, ge=18, le=23, description="opset of the golden graph")
    ranges: dict[str, Annotated[tuple[int, int, int], BeforeValidator(_range)]] = Field(
        default_factory=dict, description="dynamic dim -> [min, opt, max], in place of the source's"
    )
    calibration: str | None = Field(
        default=None, description="real inputs: .npz or .safetensors file or folder, or file.py:function"
    )
    tolerances: Tolerances = Field(default_factory=Tolerances, description="what parity allows, in place of its table")
    budget: float = Field(default=20.0, ge=0, le=86400, description="seconds for measuring latency; 0: not measured")
    tune: bool = Field(default=False, description="choose among a target's forms by measuring them on this machine")
    tune_seconds: float = Field(default=60.0, gt=0, le=86400, description="for that, a target")
    build_seconds: float = Field(
        default=SECONDS, gt=0, description="that a target's builder, or its first run, may take"
    )
    build_memory_gb: float | None = Field(
        default=None, gt=0, description="memory that either may take, in 1e9 bytes; null: nine tenths of what is free"
    )
    require: bool = Field(default=False, description="a target that cannot run here is an error")
    allow_code: bool = Field(default=False, description="read a .pt2 program, which can run code that is in it")

    @field_validator("targets")
    @classmethod
    def _once(cls, targets: tuple[RecipeTarget, ...]) -> tuple[RecipeTarget, ...]:
        jobs = [str(entry.job) for entry in targets]
        if not jobs:
            raise invalid([wrong((), "name at least one target.")])
        double = [index for index, job in enumerate(jobs) if job in jobs[:index]]
        if double:
            raise invalid(wrong((index,), f"Target {jobs[index]} is asked for more than once.") for index in double)
        return targets

    @field_validator("tune")
    @classmethod
    def _has_forms(cls, tune: bool, info: ValidationInfo) -> bool:
        jobs = [entry.job for entry in info.data.get("targets", ())]
        if tune and jobs and all(TARGETS[job.target].alternatives is None for job in jobs):
            having = ", ".join(name for name, target in TARGETS.items() if target.alternatives is not None)
            raise invalid([wrong((), f"no target of this run has forms to choose among; {having} has.")])
        return tune

    @field_validator("tolerances")
    @classmethod
    def _apply(cls, tolerances: Tolerances, info: ValidationInfo) -> Tolerances:
        asked = {entry.job.precision for entry in info.data.get("targets", ())}
        idle = set(tolerances.precisions) - asked if asked else ()
        if idle:
            raise invalid(wrong(("precisions", each), "no target of this run is of this precision.") for each in idle)
        return tolerances

    @property
    def limits(self) -> Limits:
        """Of each process that builds or first runs an artifact."""
        return Limits(self.build_seconds, None if self.build_memory_gb is None else round(self.build_memory_gb * GB))

    @property
    def jobs(self) -> list[Job]:
        """The targets, parsed."""
        return [entry.job for entry in self.targets]

    @property
    def options(self) -> dict[Job, dict[str, Any]]:
        """What is set of each target."""
        return {entry.job: entry.options for entry in self.targets}


def settings_class(job: Job) -> type[Settings]:
    """What can be set of the job's target."""
    return RUNTIMES[TARGETS[job.target].runtime].settings


def make_recipe(given: Mapping[str, Any], where: Callable[[Loc], str] = lambda _: "") -> Recipe:
    """A recipe of what was given. Raises UsageError: a line for each thing that does not fit, after `where` of it."""
    try:
        return Recipe.model_validate(dict(given))
    except ValidationError as error:
        lines = sentences(error, where)
        more = [f"... and {len(lines) - ERRORS} more."] if len(lines) > ERRORS else []
        raise UsageError("\n".join([*lines[:ERRORS], *more])) from error


@dataclass(frozen=True)
class Step:
    """What will be done for one target, and why not more."""

    job: Job
    does: str
    why: str


def is_tuned(step: Step) -> bool:
    """Whether there is something to choose by measuring, and a device here to measure on."""
    return "measure" in step.does and TARGETS[step.job.target].alternatives is not None


def plan(jobs: list[Job]) -> list[Step]:
    """What this machine can do for each job."""
    steps = []
    for job in jobs:
        absent, builder = missing(job), builder_missing(job)
        if absent is None:
            steps.append(Step(job, "lower, build, verify, measure", "its runtime and device are here"))
        elif builder is None:
            steps.append(Step(job, "lower, build", f"{absent}; its builder needs no device"))
        else:
            steps.append(Step(job, "lower", absent))
    return steps
