"""verify: parity of an artifact, against the model itself or against what was recorded of it.

An artifact is opened and run in a process of its own: an engine is native code, and may crash where it is first opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..artifact import Artifact
from ..errors import BuildError, InputError, ResourceError
from ..export import load_source, open_reference
from ..export.onnx_file import read_onnx
from ..manifest import Verified
from ..runtimes.child import NORMAL, PYTHON, Limits, about, ask, error_of, typed
from ..spec import Feeds, ModelSpec
from ..store import Store
from .cases import Case, cases, record, replay
from .undefined import UndefinedRows

CASES = "cases.safetensors"
COMMAND = (*PYTHON, "graphwright.compare.verify_child")


def spec_cases(
    spec: ModelSpec, ranges: Mapping[str, tuple[int, int, int]], samples: Iterable[Feeds] | None = None
) -> list[Case]:
    """The cases of a spec: the grid of its dynamic dims, padded rows, and its calibration data."""
    return cases(example_feeds(spec), spec.dynamic, ranges, spec.samples() if samples is None else samples)


def verify(spec: ModelSpec | str | None, artifact: Artifact, limits: Limits = NORMAL) -> Verified:
    """Parity of `artifact` over a grid of shapes and the spec's calibration data; `.passed` is None without a device.

    Without a device a graph in half precision is simulated on the CPU. Without a spec the recorded inputs and outputs
    in the artifact's folder are used, and no torch. `limits` are those of the process that runs the artifact. Raises
    InputError where nothing is recorded, or where a file of the artifact was changed, else what `verify_recorded`
    raises.
    """
    reason = artifact.missing()
    if reason is not None and not (_is_half(artifact) and (spec is not None or artifact.golden is not None)):
        return Verified(verdict="no device here", reason=reason)
    if spec is None:
        return verify_recorded(artifact, golden_of(artifact), limits)
    spec = load_source(spec).spec
    ranges = {dim: (low, opt, high) for dim, (low, opt, high) in artifact.manifest.dynamic.items()}
    graph = read_onnx(artifact.folder / artifact.record.graph)
    with Store().scratch() as folder:
        with open_reference(spec) as reference, UndefinedRows(graph) as undefined:

            def expected(case: Case) -> dict[str, np.ndarray]:
                return undefined.leave_out(case, reference.run(case.feeds))

            record(expected, spec_cases(spec, ranges), folder / CASES)
        return verify_recorded(artifact, folder / CASES, limits)


def recorded(artifact: Artifact) -> list[tuple[Case, dict[str, np.ndarray]]]:
    """The cases and reference outputs kept with an artifact."""
    return replay(golden_of(artifact))


def golden_of(artifact: Artifact) -> Path:
    """The file of the cases and reference outputs kept with an artifact. Raises InputError where there is none."""
    if artifact.golden is None:
        raise InputError(
            f"{artifact.folder} holds no recorded inputs and outputs: verify it against its source, "
            "`graphwright verify DIR --source SOURCE`."
        )
    return artifact.golden


def verify_recorded(
    artifact: Artifact, cases_file: Path, limits: Limits = NORMAL, command: Sequence[str] = COMMAND, absent: str = ""
) -> Verified:
    """Parity of `artifact` with the outputs that `record` wrote into `cases_file`, found in a process of its own.

    Where it cannot be run, for the reason `absent` or since `missing` says so, a graph in half precision is simulated.
    Raises BuildError where that process died or the artifact cannot be opened, ResourceError where it went beyond
    `limits`, DeviceError where the device that is here cannot be used, InputError where a file was changed.
    """
    absent = absent or artifact.missing() or ""
    if absent and not _is_half(artifact):
        return Verified(verdict="no device here", reason=absent)
    artifact.check_files()
    who = f"The run of {artifact.label}"
    opened = artifact.folder / artifact.record.graph if absent else artifact.path
    question = {
        **about(artifact.runtime, artifact.settings()),
        "artifact": str(opened.absolute()),
        "absent": absent,
        "cases": str(cases_file.absolute()),
        "precision": artifact.job.precision,
        "tolerances": artifact.manifest.tolerances.model_dump(mode="json"),
    }
    try:
        answer, _ = ask(command, who, question, limits)
    except (BuildError, ResourceError) as error:
        if not absent:
            raise
        return Verified(verdict="no device here", reason=f"{absent}; and not simulated on the CPU: {error}")
    if "error" in answer:
        raise error_of(answer, answer["message"])
    return typed(Verified, answer, who)


def _is_half(artifact: Artifact) -> bool:
    """Whether its graph is there, in half precision."""
    return artifact.job.precision in ("fp16", "bf16") and artifact.record.status in ("built", "lowered")


def example_feeds(spec: ModelSpec) -> dict[str, np.ndarray]:
    """The example inputs as arrays, without importing torch."""
    return {name: _array(value) for name, value in spec.tensors.items()}


def _array(value: object) -> np.ndarray:
    detach = getattr(value, "detach", None)
    return np.asarray(detach().cpu().numpy() if detach is not None else value)


def typical_feeds(pairs: list[tuple[Case, dict[str, np.ndarray]]]) -> Feeds:
    """What to measure on: the first real sample, else the largest of the cases made from the example."""
    real = [case for case, _ in pairs if case.real]
    return (
        real[0].feeds
        if real
        else max((c for c, _ in pairs), key=lambda c: sum(a.nbytes for a in c.feeds.values())).feeds
    )
