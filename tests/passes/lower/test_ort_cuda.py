"""The dialect of ort-cuda: real models in each of its precisions, and CUDA graphs for fixed shapes alone."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphwright.errors import UsageError
from graphwright.passes import optimize
from graphwright.passes.lower import lowering_of
from graphwright.runtimes.ort_cuda import CudaSettings
from graphwright.spec import Job


def make(dims: str) -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> g (float[{dims}] x) => (float[{dims}] y) {{ y = Relu(x) }}'
    )


def test_a_cuda_graph_of_fixed_shapes_is_taken_and_noted() -> None:
    done = optimize(make("2, 3"), "ort-cuda:fp16", options={"cuda_graph": True})
    assert isinstance(done.settings, CudaSettings)
    assert done.settings.cuda_graph
    assert "CheckFixedShapes" in [step.name for step in done.trail.steps]


def test_a_cuda_graph_of_dims_that_change_is_refused_before_any_build() -> None:
    with pytest.raises(UsageError, match=r"^option cuda_graph of ort-cuda: .* x has batch; y has batch\."):
        optimize(make("batch, 3"), "ort-cuda:fp16", options={"cuda_graph": True})


def test_without_it_any_shape_is_taken() -> None:
    done = optimize(make("batch, 3"), "ort-cuda:fp16", options={"cuda_graph": False})
    assert "CheckFixedShapes" not in [step.name for step in done.trail.steps]
    assert lowering_of(Job("ort-cuda")).settings == CudaSettings()
