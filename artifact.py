"""An artifact: a built thing and its manifest in one folder; open it and run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from .errors import DeviceError, InputError, UsageError
from .manifest import FILE, Manifest, TargetRecord, read
from .spec import Job, pick
from .store import hash_file

if TYPE_CHECKING:
    from .runtimes.base import Runtime, Session, Settings


@dataclass(frozen=True)
class Artifact:
    """One target's result in `folder`. `record` is its entry in the manifest."""

    folder: Path
    manifest: Manifest
    record: TargetRecord

    @property
    def job(self) -> Job:
        """Target, device profile and precision."""
        return Job(self.record.target, self.record.precision, self.record.device)

    @property
    def label(self) -> str:
        """`target[@device]:precision`, as in tables."""
        return str(self.job)

    @property
    def runtime(self) -> Runtime:
        """What builds and opens it."""
        from .passes.lower import TARGETS
        from .runtimes import RUNTIMES

        return RUNTIMES[TARGETS[pick("target", self.record.target, TARGETS)].runtime]

    @property
    def path(self) -> Path:
        """The built file; of a target that was only lowered, its graph."""
        return self.folder / (self.record.artifact or self.record.graph)

    @property
    def golden(self) -> Path | None:
        """Inputs and reference outputs kept with the artifact, if any."""
        name = self.manifest.golden
        if Path(name).name != name or name == "..":
            raise InputError(f"{self.folder}: its manifest names {name!r} as recorded inputs, outside of its folder.")
        return self.folder / name if name else None

    def settings(self) -> Settings:
        """What was set of the target. Raises InputError where the manifest's options are not the target's."""
        try:
            return self.runtime.settings.model_validate_json(json.dumps(self.record.options))
        except ValidationError as error:
            raise InputError(
                f"The options of {self.label} in {self.folder} are not of this version: {error}"
            ) from error

    def missing(self) -> str | None:
        """Why it cannot be run here; None if it can."""
        if self.record.status in ("failed", "skipped"):
            return f"{self.record.status}: {self.record.reason}"
        from .availability import missing

        return missing(self.job) or (
            "lowered, not built: `graphwright verify` builds it on this machine"
            if self.record.status == "lowered"
            else None
        )

    def open(self) -> Session:
        """An open session. Raises DeviceError if it cannot run here, InputError if a file of it was changed."""
        reason = self.missing()
        if reason is not None:
            raise DeviceError(f"{self.label} in {self.folder} cannot run here: {reason}.")
        self.check_files()
        return self.runtime.open(self.path, self.settings())

    def check_files(self) -> None:
        """Raise InputError if a file is missing or not what the manifest says: an engine is native code."""
        opened = self.record.artifact or self.record.graph
        if opened not in self.record.sha256:
            raise InputError(f"The manifest in {self.folder} has no SHA-256 of {opened!r}: build it again.")
        for name, digest in self.record.sha256.items():
            file = self.folder / name
            if Path(name).name != name or not file.is_file():
                raise InputError(f"{self.folder} lacks {name!r}, which its manifest lists: build it again.")
            if hash_file(file) != digest:
                raise InputError(f"{file} was changed since it was built (its SHA-256 differs): build it again.")


def load(folder: str | Path) -> Artifact:
    """The artifact in a folder that `build` wrote, or of one target that `ship` wrote.

    Raises InputError if the folder holds none, UsageError if it holds several.
    """
    folder = Path(folder)
    manifest = read(folder)
    names = [f"{folder / Job(r.target, r.precision, r.device).folder}" for r in manifest.targets]
    if not names:
        raise InputError(f"{folder} holds a {FILE} without a target: build it again.")
    first = manifest.targets[0]
    if len(names) > 1 or "/" in first.artifact + first.graph or Path(names[0]).is_dir():
        raise UsageError(f"{folder} holds what was shipped; name one artifact of it: {', '.join(names)}.")
    return Artifact(folder, manifest, manifest.targets[0])


def load_all(folder: str | Path) -> list[Artifact]:
    """The artifacts in a folder: the one that `build` wrote, or all that `ship` wrote."""
    folder = Path(folder)
    manifest = read(folder)
    folders = [folder / Job(r.target, r.precision, r.device).folder for r in manifest.targets]
    shipped = [part for part in folders if part.is_dir()]
    return [load(part) for part in shipped] if shipped else [load(folder)]
