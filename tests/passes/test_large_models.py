"""Models whose weights are larger than a protobuf, or than memory, can be: lift leaves the weights on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphwright import stages
from graphwright.export import weights
from graphwright.passes import lift
from graphwright.runtimes.ort_cpu import PROVIDER, OrtSession

GIB = 1 << 30

# what one layer computes at opset 12: a product, a bias, Gelu and a Softmax over the last axis
LAYER: list[tuple[str, list[str], str, dict[str, Any]]] = [
    ("MatMul", ["x", "w"], "m", {}),
    ("Add", ["m", "b"], "a", {}),
    ("Div", ["a", "root"], "d", {}),
    ("Erf", ["d"], "e", {}),
    ("Add", ["e", "one"], "f", {}),
    ("Mul", ["a", "f"], "g", {}),
    ("Mul", ["g", "half"], "h", {}),
    ("Softmax", ["h"], "s", {"axis": 2}),
    ("ReduceMean", ["s"], "r", {"axes": [-1]}),
    ("Sub", ["s", "r"], "y", {}),
]


def save(folder: Path, layers: int, width: int) -> Path:
    """A model of opset 12 whose weights are beside it: holes, so that the disk holds nothing of them."""
    nodes, initializers = [], []
    for name, number in (("root", 2**0.5), ("one", 1.0), ("half", 0.5)):
        initializers.append(helper.make_tensor(name, TensorProto.FLOAT, [], [number]))
    size = width * width * 4
    for layer in range(layers):
        names = {"x": f"y{layer - 1}" if layer else "x", "root": "root", "one": "one", "half": "half"}
        for op_type, inputs, output, attributes in LAYER:
            read = [names.get(name, f"{name}{layer}") for name in inputs]
            nodes.append(helper.make_node(op_type, read, [f"{output}{layer}"], **attributes))
        weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "model.data", "offset": layer * size, "length": size}.items():
            weight.external_data.add(key=key, value=str(value))
        initializers.append(weight)
        initializers.append(helper.make_tensor(f"b{layer}", TensorProto.FLOAT, [width], np.linspace(-1, 1, width)))
    nodes[-1].output[0] = "y"
    shape: list[str | int | None] = ["batch", "sequence", width]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.data").touch()
    os.truncate(folder / "model.data", layers * size)
    return folder / "model.onnx"


MEASURE = """
import sys
from pathlib import Path
from graphwright.passes import lift
from graphwright.stages import digest_of

def resident(line):
    return int(Path("/proc/self/status").read_text().split(line + ":")[1].split()[0]) * 1024

lift(sys.argv[1])  # a small one of the same ops: what is imported and warmed up does not count
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = resident("VmRSS")
lifted = lift(sys.argv[2])
print(resident("VmHWM") - before)
assert [site.status for site in lifted.log.sites] == ["lifted"] * int(sys.argv[3]), lifted.log.sites
assert len(digest_of(lifted.model)) == 64
"""


def growth(folder: Path, layers: int, width: int) -> int:
    """Bytes by which a process's resident memory grows at its peak (Linux's VmHWM) while it lifts the model."""
    (folder / "small").mkdir()
    (folder / "large").mkdir()
    small, large = save(folder / "small", 2, 16), save(folder / "large", layers, width)
    command = [sys.executable, "-c", MEASURE, str(small), str(large), str(layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return int(done.stdout)


@pytest.mark.full
def test_lifting_three_gigabytes_takes_less_than_one(tmp_path: Path) -> None:
    assert growth(tmp_path, layers=48, width=4096) < GIB  # 48 weights of 64 MiB


def test_weights_are_not_in_memory(tmp_path: Path) -> None:
    assert growth(tmp_path, layers=24, width=2048) < 128 << 20  # 24 weights of 16 MiB


def test_what_is_lifted_from_disk_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 2, 16)
    random = np.random.default_rng(0)
    (tmp_path / "model.data").write_bytes(random.standard_normal(2 * 16 * 16).astype(np.float32).tobytes())
    monkeypatch.setattr(weights, "ON_DISK", 0)
    lifted = lift(path).model
    assert sum(isinstance(value.const_value, ir.LazyTensor) for value in lifted.graph.initializers.values()) == 2
    feeds = {"x": random.standard_normal((2, 3, 16)).astype(np.float32)}
    with OrtSession(path, [PROVIDER]) as session:
        wanted = session.run(feeds)["y"]
    with OrtSession(ir.to_proto(lifted).SerializeToString(), [PROVIDER]) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], wanted, rtol=1e-5, atol=1e-6)
    assert onnx.load(path).opset_import[0].version == 12


def test_a_large_weight_counts_in_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "HASHED_ABOVE", 0)
    path = save(tmp_path, 2, 16)
    zeros = stages.digest_of(lift(path).model)
    assert zeros == stages.digest_of(lift(path).model)
    with (tmp_path / "model.data").open("r+b") as file:
        file.seek(1500)
        file.write(b"\1")
    assert stages.digest_of(lift(path).model) != zeros
