"""finish: on the device, build what was only lowered elsewhere, and verify all of a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .artifact import Artifact, load_all
from .availability import builder_missing
from .compare.verify import verify
from .devices import build_name
from .errors import BuildError, DeviceError, Exit, GraphwrightError, ResourceError, worst
from .manifest import Manifest, TargetRecord, Verified, read, write
from .passes import TARGETS
from .records import digests, enter_build
from .runtimes import RUNTIMES, BuildRequest
from .runtimes.child import NORMAL, Limits, build_in_child
from .scratch import remove
from .spec import ModelSpec


def finish(
    folder: Path,
    spec: ModelSpec | None,
    *,
    require: bool = False,
    limits: Limits = NORMAL,
    progress: Callable[[str], None],
) -> tuple[Manifest, Exit]:
    """Build and verify every target in `folder` that this machine can, against `spec` or the recorded outputs.

    Both are done in processes with `limits`. The manifests in `folder` are updated. The exit code is 1 where a verdict
    is failed or a build falls short of what was asked, 4 where a backend fails or crashes, 6 where it goes beyond the
    limits, and with `require` 5 where a target still has no verdict. Raises InputError for a folder that is no
    artifact, or whose files were changed.
    """
    codes = []
    manifest = read(folder)
    for artifact in load_all(folder):
        record = artifact.record
        progress(f"{artifact.label} ...")
        try:
            if record.status == "lowered":
                _build(artifact, limits)
            record.verified = verify(spec, artifact, limits)
        except (BuildError, ResourceError) as error:  # it costs this target alone
            record.verified = Verified(verdict="failed", reason=str(error))
            codes.append(error.code)
        except DeviceError as error:  # a device is here, but cannot be used; the other targets go on
            record.verified = Verified(verdict="no device here", reason=str(error))
        write(artifact.manifest, artifact.folder)
        _enter(record, artifact, manifest, folder)
        progress(f"{artifact.label}: {record.status}, {record.verified.verdict}")
        if record.verified.verdict == "failed" or record.shortfall:
            codes.append(Exit.VERIFICATION)
        if record.verified.passed is None and require:
            codes.append(Exit.DEVICE)
    write(manifest, folder)
    return manifest, worst(codes)


def _build(artifact: Artifact, limits: Limits) -> None:
    """Build a lowered graph, if this machine can."""
    record, target = artifact.record, TARGETS[artifact.record.target]
    runtime = RUNTIMES[target.runtime]
    if builder_missing(artifact.job) is not None:
        return
    artifact.check_files()
    ranges = {dim: (low, opt, high) for dim, (low, opt, high) in artifact.manifest.dynamic.items()}
    start, before = time.perf_counter(), set(artifact.folder.iterdir())
    request = BuildRequest(
        artifact.folder / record.graph, ranges, build_name(record.device or target.devices[0]), artifact.settings()
    )
    try:
        result = build_in_child(runtime.name, request, limits)
    except GraphwrightError:
        for left in set(artifact.folder.iterdir()) - before:  # half written
            remove(left)
        raise
    record.sha256 = {name: digest for name, digest in digests(artifact.folder).items() if name.startswith("model.")}
    enter_build(record, result, runtime.name, artifact.folder, time.perf_counter() - start, [])


def _enter(record: TargetRecord, artifact: Artifact, manifest: Manifest, folder: Path) -> None:
    """Put an artifact's record into the manifest of the run that it belongs to."""
    for index, known in enumerate(manifest.targets):
        if (known.target, known.precision, known.device) == (record.target, record.precision, record.device):
            inside = artifact.folder != folder
            manifest.targets[index] = record.prefixed(artifact.folder.name) if inside else record
