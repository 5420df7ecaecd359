"""Proof that a golden graph's dynamic dims are dynamic: it runs at other sizes and agrees with torch there."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import onnx_ir as ir

from ..errors import BuildError, GraphwrightError, InputError
from ..runtimes.base import Session
from ..runtimes.reference import TorchSession, to_array
from ..spec import RANGES, ModelSpec, size_of
from .graph_session import open_graph

_log = logging.getLogger(__name__)

# A specialised dim gives a wrong shape or unrelated numbers; parity proper is checked later, with tight tolerances.
TOLERANCE = 1e-3


def prove_dynamic(spec: ModelSpec, golden: ir.Model) -> list[str]:
    """Run `golden` with each dynamic dim at two other sizes; return what was proved, a line a dim.

    Raises InputError naming the dim where the graph fails or differs from torch, BuildError where it does so at the
    example's own sizes.
    """
    if not spec.sizes:
        return []
    lines = []
    with TorchSession(spec) as reference, contextlib.closing(_Golden(golden)) as graph:
        feeds = {name: to_array(value) for name, value in spec.tensors.items()}
        if wrong := graph.wrong(feeds, reference.run(feeds)):
            raise BuildError(f"The graph of {spec.name!r} is not what torch computes: {'; '.join(wrong)}.")
        for dim in spec.sizes:
            sizes = _other_sizes(spec, golden, dim)
            proved = list(islice((s for s in sizes if _agrees(spec, dim, s, reference, graph)), 2))
            if len(proved) < 2:
                raise InputError(
                    f"Dynamic dim {dim!r} cannot be proved: torch itself takes only the sizes {proved} of those tried. "
                    f"Give ModelSpec.ranges[{dim!r}] as (min, opt, max) of sizes that the model takes; where another "
                    "dim grows with it, name that one as the sum that it is, as in 'past + sequence'."
                )
            lines.append(f"{dim}: agrees with torch at {proved[0]} and {proved[1]}")
    return lines


def resized(spec: ModelSpec, dim: str, size: int) -> dict[str, np.ndarray]:
    """The example inputs with `dim` at `size`, by repeating or cropping along its axes."""
    feeds = {name: to_array(value) for name, value in spec.tensors.items()}
    for name, axes in spec.dynamic.items():
        for axis, named in axes.items():
            wanted = size_of(named, {**spec.sizes, dim: size})
            if wanted != feeds[name].shape[axis]:
                places = np.arange(wanted) % feeds[name].shape[axis]
                feeds[name] = np.ascontiguousarray(np.take(feeds[name], places, axis))
    return feeds


class _Golden:
    """The golden graph on ONNX Runtime; from where that first fails, on the reference evaluator of onnx.

    The evaluator is slow but exact. ONNX Runtime refuses some legal opset-23 graphs (masks broadcast over the queries,
    position ids over the batch), and some at a few sizes only; later passes rewrite these, but the golden graph is
    proved as it is.
    """

    def __init__(self, golden: ir.Model) -> None:
        self._model = golden
        self._session: Session | None = None
        self._exact = False

    def wrong(self, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> list[str]:
        """What sets the graph's outputs apart from `expected`, in words; nothing where they agree."""
        wrong = self._compare(feeds, expected)
        if wrong and not self._exact:
            _log.info("the golden graph is proved by the reference evaluator of onnx: %s", wrong[0])
            self.close()
            self._exact = True
            wrong = self._compare(feeds, expected)
        return wrong

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def _compare(self, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> list[str]:
        try:
            if self._session is None:
                self._session = self._open()
            outputs = self._session.run(feeds)
        except GraphwrightError as error:
            return [f"the graph fails: {error}"]
        return [text for name, wanted in expected.items() if (text := _difference(name, outputs[name], wanted, feeds))]

    def _open(self) -> Session:
        if not self._exact:
            return open_graph(self._model)
        from ..runtimes.onnx_reference import OnnxReferenceSession

        return OnnxReferenceSession(ir.to_proto(self._model))


def _other_sizes(spec: ModelSpec, golden: ir.Model, dim: str) -> Iterator[int]:
    """Sizes to try, near the example's first; two that torch takes are enough."""
    low, high = json.loads(golden.metadata_props[RANGES])[dim]
    example = spec.sizes[dim]
    candidates = [example + 1, example * 2, example + 2, example - 1, example // 2, low, high or example * 4]
    legal = [size for size in dict.fromkeys(candidates) if size >= low and (high is None or size <= high)]
    yield from (size for size in legal if size != example)


def _agrees(spec: ModelSpec, dim: str, size: int, reference: Session, graph: _Golden) -> bool:
    """Whether torch takes the size; a graph that then fails or differs is an error."""
    feeds = resized(spec, dim, size)
    try:
        expected = reference.run(feeds)
    except InputError:
        return False
    if wrong := graph.wrong(feeds, expected):
        raise InputError(
            f"Dynamic dim {dim!r} is not dynamic: at size {size} {'; '.join(wrong)}. The model computes with a size "
            "that was fixed at export: a constant, a buffer, an int() or .item() of a shape."
        )
    return True


def _difference(name: str, got: np.ndarray, wanted: np.ndarray, feeds: Mapping[str, np.ndarray]) -> str:
    """What sets the two arrays apart, in words; '' if nothing does.

    Rows of padding may be queries that no key is allowed (in a window of padding alone, say), which have no right
    value: torch and the exporter's spelling of a mask differ there. Where all other rows agree, nothing is specialised.
    """
    if got.shape != wanted.shape:
        return f"output {name!r} has shape {list(got.shape)}, but torch gives {list(wanted.shape)}"
    if got.dtype != wanted.dtype:
        return f"output {name!r} is {got.dtype}, but torch gives {wanted.dtype}"
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    allowed = TOLERANCE * max(1.0, float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b))))
    for rows in [np.ones(wanted.shape[:2], bool), *_counted(wanted.shape, feeds)]:
        if (rows.any() or not rows.size) and np.allclose(a[rows], b[rows], rtol=0.0, atol=allowed, equal_nan=True):
            return ""
    apart = np.abs(np.nan_to_num(a) - np.nan_to_num(b)).max()
    return f"output {name!r} differs from torch by {apart:.3g} (allowed {allowed:.3g})"


def _counted(shape: tuple[int, ...], feeds: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """For each mask of an output's rows, [batch, length]: the rows that count, as an index of the output."""
    for name, mask in feeds.items():
        fits = "mask" in name.lower() and mask.ndim == 2 and mask.shape == shape[:2] and mask.dtype.kind in "biu"
        if fits and not mask.all():
            yield mask != 0
