"""manifest.json: what was made, for which target, how it was proved and how fast it is. Strict, versioned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import InputError
from .spec import PRECISIONS, Precision
from .store import disk_errors
from .strict import Strict, invalid, why_not, wrong

VERSION: Literal[1] = 1
FILE = "manifest.json"

# simulated: a graph in half precision was in tolerance on the CPU; out of it, it has failed
Verdict = Literal["passed", "failed", "simulated", "no device here"]
Status = Literal["built", "lowered", "failed", "skipped"]


class Record(BaseModel):
    """Base of every object in the manifest: unknown keys are errors, and infinity and NaN, which JSON lacks."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SiteCount(Record):
    """How many sites of one kind the graph held, how many were lifted, and what they are in the target graph."""

    found: int
    lifted: int
    lowered_to: dict[str, int] = Field(default_factory=dict, description="op type -> count, in the target graph")


class SiteRecord(Record):
    """One site: an attention, a norm, a gelu."""

    kind: str
    path: str = Field(description="module path in the source model")
    status: Literal["lifted", "declined", "missed"]
    reason: str = ""
    spelling: str = Field(default="", description="how the exporter had written it")
    became: str = Field(default="", description="of a lifted one: the op that stands for it now")
    proof: str = Field(default="", description="of a rewritten one: what was seen to be equal")


class Worst(Record):
    """The largest difference over all parity cases."""

    output: str
    shape: list[int]
    case: str = ""
    max_abs: float
    max_rel: float
    cosine: float = Field(description="smallest cosine between a row of the output and the reference's")


class OutputParity(Record):
    """One output over all cases."""

    output: str
    verdict: Literal["passed", "failed"]
    max_abs: float
    max_rel: float
    cosine: float = Field(description="smallest row cosine")
    mean_cosine: float
    reason: str = ""


class Verified(Record):
    """The outcome of parity: the artifact's outputs against the reference's."""

    verdict: Verdict
    cases: int = 0
    rows: int = Field(default=0, description="rows (entries of the first axis) compared, over all cases")
    worst: Worst | None = None
    outputs: list[OutputParity] = Field(default_factory=list)
    tolerance: str = Field(default="", description="what was allowed, and why")
    reason: str = ""

    @property
    def passed(self) -> bool | None:
        """True or False where it was run; None where it could not be, or was only simulated."""
        return self.verdict == "passed" if self.verdict in ("passed", "failed") else None


class Latency(Record):
    """Wall time of one call, inputs and outputs on the host."""

    inputs: dict[str, list[int]]
    median_ms: float | None
    p90_ms: float | None = Field(description="null where there are too few samples for it")
    ratio_to_reference: float | None = Field(description="reference median / own median; above 1 is faster")
    samples: int
    verdict: str


class Build(Record):
    """How the artifact was built."""

    runtime: str
    versions: dict[str, str]
    options: dict[str, str | int | float | bool | list[str]] = Field(default_factory=dict)
    seconds: float = 0.0
    bytes: int = 0
    notes: list[str] = Field(default_factory=list)


class LintRecord(Record):
    """What one lint rule found in a target graph that this machine cannot run."""

    rule: str = Field(description="its id, of docs/lint.md")
    severity: Literal["error", "warning"] = Field(description="error: refused or wrong there; warning: slow there")
    count: int
    places: list[str] = Field(default_factory=list, description="module paths of the first few")
    message: str
    way_out: str


class TrialRecord(Record):
    """One form of a class of sites, measured against the best before it."""

    choice: str = Field(description="class of sites")
    form: str
    against: str
    ratio: float = Field(description="above 1 is faster")
    low: float = Field(description="low end of the 95% interval of the ratio")
    high: float
    rounds: int
    taken: bool
    reason: str = Field(default="", description="why it could not be measured, or not well enough")


class Tuning(Record):
    """What was chosen by measuring."""

    choices: dict[str, str] = Field(description="class of sites -> form")
    trials: list[TrialRecord]
    shapes: list[dict[str, list[int]]]
    machine: dict[str, str | int]
    stored: bool = Field(description="whether it was measured in an earlier run on this machine")


class TargetRecord(Record):
    """One target of a run."""

    target: str
    precision: Precision
    device: str = ""
    options: dict[str, Any] = Field(default_factory=dict, description="settings of the target, by name")
    status: Status
    reason: str = ""
    failure: Literal["", "build", "resources"] = Field(
        default="", description="what stopped a failed target: its backend, or a limit of time or memory"
    )
    artifact: str = Field(default="", description="file or folder, relative to the manifest")
    graph: str = Field(default="", description="target graph (ONNX), relative to the manifest")
    sha256: dict[str, str] = Field(default_factory=dict, description="file, relative to the manifest -> digest")
    sites: dict[str, SiteCount] = Field(default_factory=dict)
    precision_achieved: dict[str, int] = Field(default_factory=dict, description="type of the compute ops -> count")
    shortfall: list[str] = Field(default_factory=list, description="what was asked of the build and is not so in it")
    ops: dict[str, dict[str, int]] = Field(default_factory=dict, description="stage -> op type -> count")
    lint: list[LintRecord] = Field(default_factory=list, description="of a target that cannot run here: by rule")
    notes: list[str] = Field(default_factory=list, description="what the passes told: islands of float32, weights")
    tuning: Tuning | None = None
    build: Build | None = None
    verified: Verified
    latency: Latency | None = None

    @property
    def why(self) -> str:
        """Why it was not made; of what was made, what there is to say of its verdict."""
        made = self.status in ("built", "lowered")
        return (self.verified.reason if made else "") or self.reason or self.verified.reason

    def prefixed(self, folder: str) -> TargetRecord:
        """The same record as it stands one folder higher."""
        moved = self.model_copy(deep=True)
        moved.artifact = f"{folder}/{self.artifact}" if self.artifact else ""
        moved.graph = f"{folder}/{self.graph}" if self.graph else ""
        moved.sha256 = {f"{folder}/{name}": digest for name, digest in self.sha256.items()}
        return moved


class Reference(Record):
    """What the artifacts were compared with."""

    runtime: str
    precision: str
    version: str
    latency: Latency | None = None


class Allowed(Strict):
    """Limits of parity that the user set in place of those of a precision's tolerance."""

    absolute: float | None = Field(default=None, gt=0, description="largest difference / max(1, largest |reference|)")
    single: float | None = Field(default=None, gt=0, description="as absolute, for rows of one element; else the same")
    min_cosine: float | None = Field(default=None, ge=-1, lt=1, description="of each row")
    mean_cosine: float | None = Field(default=None, ge=-1, lt=1, description="over all rows")

    @property
    def limits(self) -> dict[str, float]:
        """What is set; an absolute limit holds for rows of one element too, if they have none of their own."""
        limits = self.model_dump(exclude_none=True)
        return {"single": self.absolute, **limits} if self.absolute is not None else limits

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.model_dump(exclude_none=True).items())


class Tolerances(Strict):
    """What parity allows where the user said so: by precision, and for single outputs, which count before."""

    precisions: dict[Precision, Allowed] = Field(default_factory=dict)
    outputs: dict[str, Allowed] = Field(default_factory=dict)

    @field_validator("precisions", mode="before")
    @classmethod
    def _are_known(cls, value: Any) -> Any:
        unknown = {key: why_not("precision", str(key), PRECISIONS) for key in value} if isinstance(value, dict) else {}
        if any(unknown.values()):
            raise invalid(wrong((key,), why) for key, why in unknown.items() if why)
        return value

    def places(self) -> list[tuple[str, Allowed]]:
        """What is set, with what it is for in words."""
        return [*self.precisions.items(), *((f"output {name!r}", each) for name, each in self.outputs.items())]


class Manifest(Record):
    """The whole run."""

    version: Literal[1] = VERSION
    source: dict[str, str]
    reference: Reference
    dynamic: dict[str, list[int]] = Field(default_factory=dict, description="dynamic dim -> min, opt, max")
    golden: str = Field(default="", description="inputs and reference outputs (safetensors), relative to the manifest")
    tolerances: Tolerances = Field(default_factory=Tolerances, description="what the user set in place of the table's")
    sites: list[SiteRecord] = Field(default_factory=list)
    targets: list[TargetRecord]


def read(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises InputError if there is none or it is not of this version's form."""
    path = folder / FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder} holds no readable {FILE} ({error.strerror}): give a folder that `graphwright ship` or "
            "`graphwright build` wrote."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise InputError(f"{path} is no manifest of version {VERSION}: {where}: {first['msg']}.") from error


def write(manifest: Manifest, folder: Path) -> None:
    """Write `folder`/manifest.json, whole or not at all. Raises ResourceError where the disk is full."""
    part = folder / f".{FILE}.part"
    with disk_errors(folder):
        try:
            part.write_text(manifest.model_dump_json(indent=2) + "\n")
            part.replace(folder / FILE)
        finally:
            part.unlink(missing_ok=True)
