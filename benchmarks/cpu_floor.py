"""The floor under a latency: the products with weights of a model alone, at its own sizes, and nothing between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from cpu_models import Feeds
from onnx import TensorProto, helper, numpy_helper

Product = tuple[int, int, int]  # m, k, n
LARGE: list[Product] = [(1024, 1024, 1024)]  # what the machine's own limit is measured with


def flops(products: Sequence[Product]) -> int:
    return sum(2 * m * k * n for m, k, n in products)


def graph(products: Sequence[Product], path: Path) -> Path:
    """Each product with weights of its own, in order, its rows dynamic; its input is the newest tensor that fits."""
    random, nodes, weights = np.random.default_rng(0), [], []
    inputs: dict[str, tuple[int, int]] = {}
    newest: dict[tuple[int, int], str] = {}
    unused: dict[str, int] = {}
    for index, (m, k, n) in enumerate(products):
        if (m, k) not in newest:
            newest[m, k] = f"x{len(inputs)}"
            inputs[newest[m, k]] = (m, k)
        source, out = newest[m, k], f"y{index}"
        matrix = random.standard_normal((k, n), np.float32) / np.float32(np.sqrt(k))
        weights.append(numpy_helper.from_array(matrix, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [out]))
        unused.pop(source, None)
        unused[out], newest[m, n] = n, out
    made = helper.make_graph(
        nodes,
        "products",
        [_value(name, f"{name}_rows", k) for name, (_, k) in inputs.items()],
        [_value(name, f"{name}_rows", n) for name, n in unused.items()],
        weights,
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def feeds(products: Sequence[Product]) -> Feeds:
    """The inputs of `graph(products)`."""
    found: Feeds = {}
    known: set[tuple[int, int]] = set()
    for m, k, n in products:
        if (m, k) not in known:
            found[f"x{len(found)}"] = np.random.default_rng(1).standard_normal((m, k), np.float32)
        known |= {(m, k), (m, n)}
    return found


def _value(name: str, rows: str, columns: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, columns])
