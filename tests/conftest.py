"""No test reads or fills the user's own store. A model that is quick in all that is done with it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest


@pytest.fixture(scope="session", autouse=True)
def store_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHWRIGHT_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gelu(x @ weight) of x [batch, 16], as an ONNX file."""
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["h"]), onnx.helper.make_node("Gelu", ["h"], ["y"])],
        "small",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 16])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 16])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path
