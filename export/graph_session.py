"""A graph in memory as a session of ONNX Runtime's CPU: as bytes, or through a file where it is larger than 2 GiB."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from ..runtimes.base import Session
from ..runtimes.ort_cpu import PROVIDER, OrtSession

IN_MEMORY = 1 << 30  # bytes of weights up to which a graph goes over as bytes: a protobuf ends at 2 GiB


def open_graph(model: ir.Model, in_memory: int = IN_MEMORY, optimize: bool = True, in_order: bool = False) -> Session:
    """`model`, unchanged, on the CPU. Raises BuildError where ONNX Runtime refuses it.

    Without `optimize` each node is run as it stands; with `in_order` one after the other as the graph lists them.
    """
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in weights) <= in_memory:
        return OrtSession(ir.to_proto(model).SerializeToString(), [PROVIDER], optimize=optimize, in_order=in_order)
    # ONNX Runtime maps the weights into memory, so that the files may go once the session stands
    with tempfile.TemporaryDirectory(prefix="graphwright-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        return OrtSession(path, [PROVIDER], optimize=optimize, in_order=in_order)
