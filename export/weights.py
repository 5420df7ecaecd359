"""Large weights of an ONNX file that stay on disk: read through the handle that was checked, never by a path.

Each is an `ir.LazyTensor`: passes hand it on, copies of the model share it, and `ir.save` writes it out one at a time.
The handle is of the file that was opened, whatever its name leads to later. The bytes are read, not mapped: a file that
was cut off or overwritten meanwhile gives an error, not a signal.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ..errors import InputError

ON_DISK = 1 << 20  # bytes of a tensor from which it stays on disk
FILES = 256  # that are kept open; the tensors of more than that are read at once


class DataFile:
    """An open file, by a handle of its own; `name` is for messages."""

    def __init__(self, handle: int, name: str) -> None:
        self.name = name
        self._handle = os.dup(handle)
        weakref.finalize(self, os.close, self._handle)

    def read(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes as uint8 that nobody else holds. Raises InputError where the file has less of them."""
        made = np.empty(size, np.uint8)
        view, done = made.data, 0
        while done < size:
            count = os.preadv(self._handle, [view[done:]], offset + done)
            if not count:
                raise InputError(f"the data file {self.name} changed while it was read. Try again.")
            done += count
        made.flags.writeable = False
        return made


@dataclass(frozen=True)
class OnDisk:
    """Where the bytes of a tensor are."""

    file: DataFile
    offset: int
    dtype: ir.DataType
    dims: tuple[int, ...]

    def load(self) -> ir.Tensor[np.ndarray]:
        """The tensor in memory."""
        dtype = self.dtype.numpy().newbyteorder("<")
        size = int(np.prod(self.dims, dtype=np.int64)) * dtype.itemsize
        return ir.Tensor(self.file.read(self.offset, size).view(dtype).reshape(self.dims), dtype=self.dtype)

    def tensor(self, name: str | None) -> ir.LazyTensor:
        """The tensor on disk."""
        return ir.LazyTensor(self.load, self.dtype, ir.Shape(self.dims), name=name)


def mark(tensor: onnx.TensorProto, index: int) -> None:
    """Give an empty tensor a location that no file can have and that `put` knows."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=f"{os.devnull}/{index}")


def put(model: ir.Model, found: Sequence[OnDisk]) -> None:
    """Every tensor of `model` that was marked is the one of `found` that it was marked with."""

    def of(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        return found[int(Path(tensor.location).name)].tensor(tensor.name)

    if not found:
        return
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in [graph for root in roots for graph in (root, *root.subgraphs())]:
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = of(value.const_value)
        for node in graph:
            _replace(node.attributes, of)
    for function in model.functions.values():
        _replace(function.attributes, of)


def _replace(attributes: MutableMapping[str, ir.Attr], of: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    for name, attribute in list(attributes.items()):
        if attribute.is_ref() or attribute.value is None:
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            attributes[name] = ir.AttrTensor(name, of(attribute.as_tensor()))
        elif attribute.type == ir.AttributeType.TENSORS:
            attributes[name] = ir.AttrTensors(name, [of(tensor) for tensor in attribute.as_tensors()])
