"""The benchmark of latencies on the CPU: real processes, one product, and a contender that computes wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BUDGET = 5.0


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """benchmarks/cpu_latency.py, which imports its neighbours."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import cpu_latency

        yield cpu_latency
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def cell(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`sgemm` by ONNX Runtime, right, with one weight off, and from a file that is no graph."""
    import torch

    folder = tmp_path_factory.mktemp("graphs")
    weight = bench.MODELS["sgemm"].module().weight
    assert isinstance(weight, torch.Tensor)
    right = weight.detach().numpy()
    wrong = right.copy()
    wrong[0, 0] += 1
    for name, matrix in (("right", right), ("wrong", wrong)):
        path = bench.cpu_floor.graph(bench.cpu_floor.LARGE, folder / f"{name}.onnx")
        model = onnx.load(path)
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(matrix, "w0"))
        onnx.save(model, path)
    (folder / "broken.onnx").write_text("no graph")

    class Given(bench.Graphs):  # type: ignore[misc]
        def source(self, contender: Any, model: str, threads: int) -> str:
            return str(self.folder / f"{contender.graph}.onnx")

    ways = {"raw": "right", "onnxscript": "wrong", "OpenVINO": "broken"}
    contenders = {name: replace(bench.CONTENDERS[name], graph=way) for name, way in ways.items()}
    with bench.Bench("sgemm", 1, Given(folder, sys.executable), contenders) as opened:
        return opened.cell(1, 1024, BUDGET)


def test_a_right_contender_is_timed_beside_the_limits(cell: Any) -> None:
    row = cell.rows["raw"]
    assert not row.error
    assert row.difference < 1e-5
    assert row.rounds >= 1
    assert row.ratio[0] == 1
    assert row.shares["gemm"] > 0.5
    assert sum(row.shares.values()) == pytest.approx(1)
    assert cell.gflop == pytest.approx(2 * 1.024**3)
    assert set(cell.limits) == {"products, MLAS", "products, OpenVINO", "sgemm, MLAS", "sgemm, torch"}
    # the model is one large product: it runs at the machine's limit, whatever else runs here
    assert 0.3 < cell.share(row) < 2


def test_a_wrong_contender_is_told_and_not_timed(cell: Any) -> None:
    row = cell.rows["onnxscript"]
    assert "outputs are off torch's by" in row.error
    assert row.difference > 1e-3
    assert row.median_ms is None
    assert not row.samples


def test_a_contender_that_does_not_open_is_told(cell: Any) -> None:
    assert "broken.onnx" in cell.rows["OpenVINO"].error
    assert cell.rows["OpenVINO"].median_ms is None


def test_results_are_kept_and_written(bench: Any, cell: Any, tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    bench.cpu_report.keep([cell], results)
    bench.cpu_report.keep([replace(cell, threads=2), cell], results)
    kept = bench.cpu_report.read(results)
    assert [each.threads for each in kept] == [1, 2]
    assert kept[0].rows["raw"].median_ms == cell.rows["raw"].median_ms
    assert json.loads(results.read_text())[0]["limits"]["sgemm, torch"]["median_ms"] > 0
    page.write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    bench.cpu_report.write(page, kept)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| raw |" in text
    assert "- 1x1024, onnxscript: its outputs are off" in text


def test_the_page_holds_ours_against_the_best_peers(bench: Any) -> None:
    report = bench.cpu_report
    rows = {name: report.Row(10.0, ratio=(2.0, 1.9, 2.1)) for name in ("OpenVINO", "onnxscript", "graphwright ort-cpu")}
    rows["graphwright ort-cpu"].against = {"OpenVINO": (0.9, 0.8, 1.0), "onnxscript": (1.2, 1.1, 1.3)}
    text = report.markdown([report.Cell("minilm", 1, 1, 16, rows=rows), report.Cell("minilm", 1, 8, 128, rows=rows)])
    assert "| onnxscript | 10.0, 2.00 (1.90-2.10) | 10.0, 2.00 (1.90-2.10) | 2.00 |" in text
    ort, best = (f"{found} | {found}" for found in ("1.20 (1.10-1.30) onnxscript", "0.90 (0.80-1.00) OpenVINO"))
    assert f"| *ort-cpu to the best ONNX Runtime peer* | {ort} |" in text
    assert f"| *ort-cpu to the best peer* | {best} |" in text


def test_a_ratio_has_an_interval_only_where_there_are_rounds_enough(bench: Any) -> None:
    own, base = (bench.latency.Samples(((ns,) * 3,) * 6) for ns in (1000, 1500))
    few = [bench.latency.Samples(samples.blocks[:5]) for samples in (own, base)]
    assert bench.cpu_report.ratio(bench.ratio(own, base)) == "1.50 (1.50-1.50)"
    assert bench.cpu_report.ratio(bench.ratio(*few)) == "about 1.50"


def test_outputs_of_other_shapes_or_without_numbers_are_not_right(bench: Any) -> None:
    wanted = [np.ones((2, 3), np.float32)]
    assert bench.difference([wanted[0] * np.float32(1.5)], wanted) == pytest.approx(0.5)
    assert bench.difference([np.full((2, 3), np.nan, np.float32)], wanted) == float("inf")
    with pytest.raises(bench.Failure, match=r"its outputs are \[\(3, 2\)\]"):
        bench.difference([wanted[0].T], wanted)


def test_a_request_that_takes_long_on_its_way_is_not_part_of_a_call(bench: Any) -> None:
    clock = bench.Clock()
    before = clock()
    clock.away += 10**9
    assert clock() - before < 10**8 - 10**9
