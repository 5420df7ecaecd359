"""What this machine can do for a job, and why not more: its runtime and builder, and the device that it is for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .devices import DEVICES
from .passes.lower import TARGETS, devices_of
from .runtimes import RUNTIMES, Runtime
from .runtimes.machine import device_missing
from .spec import Job, Precision, Target, pick

Does = Literal["runs", "builds", "lowers"]


def missing(job: Job) -> str | None:
    """Why this machine cannot run what is made for `job`; None if it can."""
    return _runtime(job).missing() or _device_missing(job)


def builder_missing(job: Job) -> str | None:
    """Why this machine cannot build it; None if it can."""
    runtime = _runtime(job)
    return runtime.builder_missing() or (None if runtime.builds_for_others else _device_missing(job))


def _runtime(job: Job) -> Runtime:
    return RUNTIMES[TARGETS[pick("target", job.target, TARGETS)].runtime]  # a manifest may name any


def _device_missing(job: Job) -> str | None:
    reasons = [device_missing(device, job.precision) for device in devices_of(job)]
    return next((reason for reason in reasons if reason), None) if all(reasons) else None


@dataclass(frozen=True)
class Profile:
    """A device of a target: what it is, which precisions it has, and what this machine does for it."""

    name: str
    what: str
    kind: str
    compute_capability: str  # as in 8.9; empty for a CPU
    memory_gib: int  # 0: it depends
    tensorrt: str  # the version that its software has, where that is fixed
    precisions: list[Precision]
    lacks: dict[Precision, str]  # of the target's precisions those that it has not, and why
    does: Does
    why: str  # not more


@dataclass(frozen=True)
class Available:
    """A target, and what this machine does for it and for each of its devices."""

    name: str
    precisions: list[Precision]
    needs: str
    does: Does
    why: str
    profiles: list[Profile]

    def as_json(self) -> dict[str, Any]:
        """As `graphwright targets --json` has it: with the devices' names, and what it does in words."""
        names = [profile.name for profile in self.profiles]
        return {**asdict(self), "devices": names, "here": in_words(self.does, self.why)}


def in_words(does: Does, why: str) -> str:
    """`runs`, or less, with the reason."""
    return f"{does} ({why})" if why else does


def survey() -> list[Available]:
    """Every target with its devices, and what this machine does for them."""
    return [_available(target) for target in TARGETS.values()]


def _available(target: Target) -> Available:
    profiles = [_profile(target, name) for name in target.devices if name]
    return Available(target.name, list(target.precisions), target.needs, *_does(Job(target.name)), profiles)


def _profile(target: Target, name: str) -> Profile:
    device = DEVICES[name]
    lacks = {precision: device.lacks(precision) for precision in target.precisions}
    return Profile(
        name,
        device.what,
        device.kind,
        f"{device.sm // 10}.{device.sm % 10}" if device.sm else "",
        device.memory,
        ".".join(map(str, device.tensorrt or ())),
        [precision for precision, reason in lacks.items() if not reason],
        {precision: reason for precision, reason in lacks.items() if reason},
        *_does(Job(target.name, device=name)),
    )


def _does(job: Job) -> tuple[Does, str]:
    absent = missing(job)
    if absent is None:
        return "runs", ""
    return ("builds", absent) if builder_missing(job) is None else ("lowers", absent)
