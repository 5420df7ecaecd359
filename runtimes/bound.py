"""Sessions of ONNX Runtime whose inputs and outputs lie in the provider's own memory (IOBinding)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, ResourceError
from .base import Session, TensorInfo
from .ort_cpu import tensor_info

# what ONNX Runtime's arena, CUDA and cuBLAS say where memory ends; they have no error class of their own for it
_MEMORY = re.compile(r"out of memory|Failed to allocate memory|Available memory of|CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Place:
    """Where ONNX Runtime wants an input or has an output: `cpu`, or `cuda` and the index of the device."""

    device: str
    index: int

    def tensor(self, shape: Sequence[int], dtype: str) -> Any:
        """An OrtValue there; what is in it is undefined."""
        import onnxruntime as ort

        kind = np.dtype(dtype).type
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, self.device, self.index)


def places(session: Any) -> tuple[dict[str, Place], dict[str, Place]]:
    """The places of a session's inputs and of its outputs, by name.

    What the GPU computes on lies with it. An input that only the CPU reads, such as a length that a shape is made of,
    must lie with the CPU: on the GPU ONNX Runtime would copy it once, when it is bound, and never see a later change.
    """
    inputs = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    outputs = zip(session.get_outputs(), session.get_output_memory_infos(), strict=True)
    found = [
        {value.name: Place("cuda", info.device_id) if info.name == "Cuda" else Place("cpu", 0) for value, info in pairs}
        for pairs in (inputs, outputs)
    ]
    return found[0], found[1]


class Bound:
    """One set of inputs in the provider's memory, to be run again and again without a copy from or to the host.

    For one thread at a time. With `fixed` the outputs keep their place too, as a captured CUDA graph needs it: their
    shapes must then be known.
    """

    def __init__(
        self, session: Any, feeds: Mapping[str, np.ndarray], outputs: Sequence[TensorInfo], fixed: bool = False
    ) -> None:
        self.shapes = shapes_of(feeds)
        self._session, self._fixed = session, fixed
        inner, self._outputs = places(session)
        self._inputs = {name: inner[name].tensor(array.shape, str(array.dtype)) for name, array in feeds.items()}
        self.write(feeds)
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for info in outputs if fixed else ():
            value = self._outputs[info.name].tensor([int(size) for size in info.shape], info.dtype)
            self._binding.bind_ortvalue_output(info.name, value)

    def write(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Other numbers of the same shapes, copied over the old ones."""
        for name, array in feeds.items():
            # asarray keeps a number's rank of 0, ascontiguousarray would not
            self._inputs[name].update_inplace(np.asarray(array, order="C"))

    def run(self) -> None:
        """Run once, and wait until the device is done."""
        for name, place in () if self._fixed else self._outputs.items():
            # anew each time: an output whose size hangs on the numbers would not fit the place of the last one
            self._binding.bind_output(name, place.device, place.index)
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def read(self) -> dict[str, np.ndarray]:
        """The outputs of the last run, copied to the host."""
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def devices(self) -> dict[str, str]:
        """Where each input and each output of the last run lies, as ONNX Runtime says."""
        outputs = zip(self._outputs, self._binding.get_outputs(), strict=True)
        return {name: value.device_name() for name, value in (*self._inputs.items(), *outputs)}


class BoundSession(Session):
    """A session that runs on its provider's memory: what is fed is copied there once, the outputs back once.

    `session` is ONNX Runtime's, whose provider was proved. As long as the shapes stay the same, so do the inputs'
    places. For one thread at a time.
    """

    def __init__(self, session: Any, fixed: bool = False) -> None:
        self.provider = session.get_providers()[0]
        self.inputs = tuple(tensor_info(value) for value in session.get_inputs())
        self.outputs = tuple(tensor_info(value) for value in session.get_outputs())
        self._session, self._fixed = session, fixed
        self._bound: Bound | None = None

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Bound:
        """`feeds` in the provider's memory, to run on. With `fixed` there is one such place for the whole session.

        Raises InputError as `run` does.
        """
        if not self._open:
            raise InputError("This session is closed: open the artifact again.")
        self._check(feeds)
        with self._failures(feeds):
            return self._place(feeds) if self._fixed else self._new(feeds)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._failures(feeds):
            bound = self._place(feeds)
            bound.run()
            return bound.read()

    def _place(self, feeds: Mapping[str, np.ndarray]) -> Bound:
        if self._bound is None or self._bound.shapes != shapes_of(feeds):
            self._bound = None  # give its memory back first
            self._bound = self._new(feeds)
        else:
            self._bound.write(feeds)
        return self._bound

    def _new(self, feeds: Mapping[str, np.ndarray]) -> Bound:
        return Bound(self._session, feeds, self.outputs, self._fixed)

    @contextmanager
    def _failures(self, feeds: Mapping[str, np.ndarray]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            said = str(error).strip()
            if _MEMORY.search(said):
                raise ResourceError(
                    f"ONNX Runtime ({self.provider}) ran out of memory on {sizes}: take smaller batches, or another "
                    f"device. It says: {said}"
                ) from error
            raise InputError(f"ONNX Runtime ({self.provider}) failed on {sizes}: {said}") from error

    def _close(self) -> None:
        self._bound = None
        if self._fixed:
            self._session.release_captured_graph()
        del self._session


def shapes_of(feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: array.shape for name, array in feeds.items()}
