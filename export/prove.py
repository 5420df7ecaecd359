"""Proof that a golden graph's dynamic dims are dynamic: it runs at other sizes and agrees with torch there."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import onnx_ir as ir

from ..errors import GraphwrightError, InputError
from ..runtimes.base import Session
from ..runtimes.ort_cpu import PROVIDER, OrtSession
from ..runtimes.reference import TorchSession, to_array
from ..spec import RANGES, ModelSpec

_log = logging.getLogger(__name__)

# A specialised dim gives a wrong shape or unrelated numbers; parity proper is checked later, with tight tolerances.
TOLERANCE = 1e-3


def prove_dynamic(spec: ModelSpec, golden: ir.Model) -> list[str]:
    """Run `golden` with each dynamic dim at two other sizes; return what was proved, a line a dim.

    Raises InputError naming the dim where the graph fails or differs from torch.
    """
    if not spec.sizes:
        return []
    feeds = {name: to_array(value) for name, value in spec.tensors.items()}
    proto = ir.to_proto(golden).SerializeToString()
    lines = []
    with TorchSession(spec) as reference, _open(proto, feeds) as session:
        for dim in spec.sizes:
            sizes = _other_sizes(spec, golden, dim)
            proved = list(islice((s for s in sizes if _agrees(spec, dim, s, reference, session)), 2))
            if len(proved) < 2:
                raise InputError(
                    f"Dynamic dim {dim!r} cannot be proved: torch itself takes only the sizes {proved} of those tried. "
                    f"Give ModelSpec.ranges[{dim!r}] as (min, opt, max) of sizes that the model takes."
                )
            lines.append(f"{dim}: agrees with torch at {proved[0]} and {proved[1]}")
    return lines


def resized(spec: ModelSpec, dim: str, size: int) -> dict[str, np.ndarray]:
    """The example inputs with `dim` at `size`, by repeating or cropping along its axes."""
    feeds = {name: to_array(value) for name, value in spec.tensors.items()}
    for name, axes in spec.dynamic.items():
        for axis in (axis for axis, named in axes.items() if named == dim):
            feeds[name] = np.ascontiguousarray(np.take(feeds[name], np.arange(size) % feeds[name].shape[axis], axis))
    return feeds


def _open(proto: bytes, feeds: Mapping[str, np.ndarray]) -> Session:
    """ONNX Runtime, if it runs the raw export at all; else the reference evaluator of onnx, which is slow but exact.

    ONNX Runtime refuses some legal opset-23 graphs at every size (masks broadcast over the queries, position ids over
    the batch); later passes rewrite these, but the golden graph is proved as it is.
    """
    try:
        session = OrtSession(proto, [PROVIDER])
        session.run(feeds)
    except GraphwrightError as error:
        from ..runtimes.onnx_reference import OnnxReferenceSession

        _log.info("the golden graph is proved by the reference evaluator of onnx: %s", error)
        return OnnxReferenceSession(proto)
    return session


def _other_sizes(spec: ModelSpec, golden: ir.Model, dim: str) -> Iterator[int]:
    """Sizes to try, near the example's first; two that torch takes are enough."""
    low, high = json.loads(golden.metadata_props[RANGES])[dim]
    example = spec.sizes[dim]
    candidates = [example + 1, example * 2, example + 2, example - 1, example // 2, low, high or example * 4]
    legal = [size for size in dict.fromkeys(candidates) if size >= low and (high is None or size <= high)]
    yield from (size for size in legal if size != example)


def _agrees(spec: ModelSpec, dim: str, size: int, reference: Session, session: Session) -> bool:
    """Whether torch takes the size; a graph that then fails or differs is an error."""
    feeds = resized(spec, dim, size)
    try:
        expected = reference.run(feeds)
    except InputError:
        return False
    try:
        outputs = session.run(feeds)
        wrong = [text for name, wanted in expected.items() if (text := _difference(name, outputs[name], wanted))]
    except GraphwrightError as error:
        wrong = [f"the graph fails: {error}"]
    if wrong:
        raise InputError(
            f"Dynamic dim {dim!r} is not dynamic: at size {size} {'; '.join(wrong)}. The model computes with a size "
            "that was fixed at export: a constant, a buffer, an int() or .item() of a shape."
        )
    return True


def _difference(name: str, got: np.ndarray, wanted: np.ndarray) -> str:
    """What sets the two arrays apart, in words; '' if nothing does."""
    if got.shape != wanted.shape:
        return f"output {name!r} has shape {list(got.shape)}, but torch gives {list(wanted.shape)}"
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    allowed = TOLERANCE * max(1.0, float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b))))
    if np.allclose(a, b, rtol=0.0, atol=allowed, equal_nan=True):
        return ""
    return f"output {name!r} differs from torch by {np.nanmax(np.abs(a - b)):.3g} (allowed {allowed:.3g})"
