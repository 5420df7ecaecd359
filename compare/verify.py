"""verify: parity of an artifact, against the model itself or against what was recorded of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..artifact import Artifact
from ..errors import InputError
from ..export import load_source, open_reference
from ..export.onnx_file import read_onnx
from ..manifest import Verified
from ..spec import Feeds, ModelSpec
from .cases import Case, Reference, cases, replay
from .parity import check
from .undefined import UndefinedRows


def spec_cases(
    spec: ModelSpec, ranges: Mapping[str, tuple[int, int, int]], samples: Iterable[Feeds] | None = None
) -> list[Case]:
    """The cases of a spec: the grid of its dynamic dims, padded rows, and its calibration data."""
    return cases(example_feeds(spec), spec.dynamic, ranges, spec.samples() if samples is None else samples)


def verify(spec: ModelSpec | str | None, artifact: Artifact) -> Verified:
    """Parity of `artifact` over a grid of shapes and the spec's calibration data; `.passed` is None without a device.

    Without a spec the recorded inputs and outputs in the artifact's folder are used, and no torch. Raises InputError
    where there are none, or where a file of the artifact was changed.
    """
    reason = artifact.missing()
    if reason is not None:
        return Verified(verdict="no device here", reason=reason)
    if spec is None:
        return verify_recorded(artifact, recorded(artifact))
    spec = load_source(spec).spec
    ranges = {dim: (low, opt, high) for dim, (low, opt, high) in artifact.manifest.dynamic.items()}
    graph = read_onnx(artifact.folder / artifact.record.graph)
    with open_reference(spec) as reference, artifact.open() as session, UndefinedRows(graph) as undefined:

        def expected(case: Case) -> dict[str, np.ndarray]:
            return undefined.leave_out(case, reference.run(case.feeds))

        return check(expected, session, spec_cases(spec, ranges), artifact.job.precision, artifact.manifest.tolerances)


def recorded(artifact: Artifact) -> list[tuple[Case, dict[str, np.ndarray]]]:
    """The cases and reference outputs kept with an artifact."""
    if artifact.golden is None:
        raise InputError(
            f"{artifact.folder} holds no recorded inputs and outputs: verify it against its source, "
            "`graphwright verify DIR --source SOURCE`."
        )
    return replay(artifact.golden)


def verify_recorded(artifact: Artifact, pairs: list[tuple[Case, dict[str, np.ndarray]]]) -> Verified:
    """Parity of `artifact` with recorded outputs."""
    reason = artifact.missing()
    if reason is not None:
        return Verified(verdict="no device here", reason=reason)
    with artifact.open() as session:
        return check(
            replaying(pairs), session, [case for case, _ in pairs], artifact.job.precision, artifact.manifest.tolerances
        )


def replaying(pairs: list[tuple[Case, dict[str, np.ndarray]]]) -> Reference:
    """Recorded outputs as a reference."""
    outputs = {id(case): out for case, out in pairs}
    return lambda case: outputs[id(case)]


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
