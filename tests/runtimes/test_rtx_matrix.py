"""Builds for GPUs without one: every architecture of the coverage bench, and models of real size for three generations.

A small sample runs in `make test`; all of it in `make test-full`. docs/targets.md holds the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import graphwright as gw
from graphwright.errors import DeviceError
from graphwright.export import load_source
from graphwright.passes import Lifted
from graphwright.runtimes import RUNTIMES, BuildRequest
from graphwright.runtimes.child import build_in_child
from graphwright.stages import GRAPH, ranges_of, save_graph

ROOT = Path(__file__).parents[2]
PRECISIONS = ("fp16", "bf16", "fp32")
SAMPLE = {("mixtral", "fp16")}
DEVICES = ("sm86", "sm89", "sm120")
RTX = RUNTIMES["tensorrt-rtx"]


@pytest.fixture(scope="module", autouse=True)
def neighbours() -> Iterator[None]:
    """The table of architectures lies beside the benchmarks."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def names() -> list[str]:
    """The table's names, without importing torch for it."""
    text = (ROOT / "benchmarks" / "architectures.py").read_text()
    table = text[text.index("ARCHITECTURES = {") :]
    return [line.split('"')[1] for line in table.splitlines() if line.startswith('    "')]


def spec_of(name: str) -> gw.ModelSpec:
    """A row of the table, the example, or a model of the size that people use, with random weights."""
    import architectures
    import torch
    import transformers

    if name == "minilm":
        return load_source(f"{ROOT / 'examples' / 'minilm.py'}:spec").spec
    if name in architectures.ARCHITECTURES:
        spec: gw.ModelSpec = architectures.ARCHITECTURES[name].spec(name)
        return spec
    torch.manual_seed(0)
    if name == "vit-b-16":
        vit = transformers.ViTModel(transformers.ViTConfig()).eval()
        inputs: Any = {"pixel_values": torch.randn(2, 3, 224, 224)}
        return gw.ModelSpec(vit, inputs, {"pixel_values": {0: "batch"}}, {"batch": (1, 8, 16)}, name=name)
    bert = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False).eval()
    inputs = {key: torch.ones(2, 16, dtype=torch.int64) for key in ("input_ids", "attention_mask")}
    ranges = {"batch": (1, 8, 16), "sequence": (1, 128, 512)}
    return gw.ModelSpec(bert, inputs, dict.fromkeys(inputs, architectures.TEXT), ranges, name=name)


@cache
def lifted(name: str) -> tuple[Lifted, dict[str, tuple[int, int, int]]]:
    """The lifted graph with its ranges, made once for all precisions."""
    spec = spec_of(name)
    made = gw.lift(gw.to_onnx(spec))
    return made, ranges_of(made.model, spec)


def built(name: str, device: str, precision: str, folder: Path) -> dict[str, int] | None:
    """In which precisions the products are, of the engine that was built; None where nothing can build."""
    graph, ranges = lifted(name)
    done = gw.optimize(graph, f"tensorrt-rtx@{device}:{precision}")
    save_graph(done.model, folder / GRAPH)
    request = BuildRequest(folder / GRAPH, ranges, device, done.settings)
    if RTX.builder_missing() is not None:
        with pytest.raises(DeviceError, match=r"pip install graphwright\[rtx\]"):
            build_in_child("tensorrt-rtx", request)
        return None
    made = build_in_child("tensorrt-rtx", request)
    assert made.shortfall == []
    (folder / made.artifact).unlink()
    return made.precisions


def rows() -> list[Any]:
    return [
        pytest.param(name, precision, marks=[] if (name, precision) in SAMPLE else [pytest.mark.full])
        for name in names()
        for precision in PRECISIONS
    ]


@pytest.mark.parametrize(("name", "precision"), rows())
def test_every_architecture_builds_for_ada(name: str, precision: str, tmp_path: Path) -> None:
    found = built(name, "sm89", precision, tmp_path)
    assert found is None or max(found, key=lambda each: found[each]) == precision


@pytest.mark.full
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["minilm", "bert-base", "vit-b-16"])
def test_models_of_real_size_build_for_three_generations(
    name: str, precision: str, device: str, tmp_path: Path
) -> None:
    found = built(name, device, precision, tmp_path)
    # every product is in the precision that was asked: random and real weights alike fit into half
    assert found is None or set(found) == {precision}
