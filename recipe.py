"""Recipe: the strict config of a whole run; and its plan: what will be done, and why, before it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import UsageError
from .passes.lower import TARGETS, parse_job
from .runtimes import RUNTIMES
from .spec import Job


class Recipe(BaseModel):
    """A run. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: str
    targets: tuple[str, ...] = Field(min_length=1, description="target[@device][:precision]")
    out: Path = Field(strict=False)
    opset: int = Field(default=23, ge=18, le=23)
    budget: float = Field(default=20.0, ge=0, le=86400, description="seconds for measuring latency; 0: not measured")
    require: bool = Field(default=False, description="a target that cannot run here is an error")

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        jobs = [str(parse_job(text)) for text in targets]
        double = sorted({job for job in jobs if jobs.count(job) > 1})
        if double:
            raise UsageError(f"Target {', '.join(double)} is asked for more than once.")
        return targets

    @property
    def jobs(self) -> list[Job]:
        """The targets, parsed."""
        return [parse_job(text) for text in self.targets]


def make_recipe(**settings: Any) -> Recipe:
    """A recipe. Raises UsageError that names each setting that does not fit."""
    try:
        return Recipe(**settings)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}, but is {each['input']!r}" for each in error.errors()
        ]
        raise UsageError(f"{'; '.join(wrong)}.") from error


@dataclass(frozen=True)
class Step:
    """What will be done for one target, and why not more."""

    job: Job
    does: str
    why: str


def plan(jobs: list[Job]) -> list[Step]:
    """What this machine can do for each job."""
    steps = []
    for job in jobs:
        runtime = RUNTIMES[TARGETS[job.target].runtime]
        missing, builder = runtime.missing(), runtime.builder_missing()
        if missing is None:
            steps.append(Step(job, "lower, build, verify, measure", "its runtime and device are here"))
        elif builder is None:
            steps.append(Step(job, "lower, build", f"{missing}; its builder needs no device"))
        else:
            steps.append(Step(job, "lower", missing))
    return steps
