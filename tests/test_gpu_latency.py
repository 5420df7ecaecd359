"""The GPU's benchmark: its lines run here on the CPU, and where there is no GPU it says so and makes no figures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphwright.errors import UsageError
from graphwright.runtimes.cuda import cuda_missing

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """benchmarks/gpu_latency.py, which imports its neighbour."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import gpu_latency

        yield gpu_latency
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_without_a_gpu_it_says_so_in_one_line(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reason = cuda_missing()
    if reason is not None:
        benchmark.main([])
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", f"Nothing to measure here: {reason}.\n")


@pytest.mark.full
def test_its_lines_run_on_the_cpu(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cpu_models import BOTH, Model, random_weights, text

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = random_weights("BertModel", "BertConfig", **sizes, intermediate_size=64, max_position_embeddings=64)
    monkeypatch.setitem(benchmark.MODELS, "tiny", Model(module, text(64), BOTH, ((2, 8),), 2e4))
    page = tmp_path / "page.md"
    page.write_text(f"# Head\n\n{benchmark.START}\nold\n{benchmark.END}\n\ntail\n")
    benchmark.main(["--device", "cpu", "--models", "tiny", "--budget", "4", "--write", str(page)])
    written = page.read_text()
    assert written.startswith(f"# Head\n\n{benchmark.START}\nOn the CPU (")
    assert written.endswith(f"{benchmark.END}\n\ntail\n")
    assert "old" not in written
    rows = [line for line in written.splitlines() if line.startswith("| tiny | 2x8 |")]
    headings = [line.split(" | ") for line in written.splitlines() if line.startswith("| model | size |")]
    assert len(rows) == len(headings) == 2, "on the device, and from the host"
    for row, heading in zip(rows, headings, strict=True):
        assert {"torch", "ONNX Runtime, raw export", "graphwright ort-cpu:fp32"} <= set(heading)
        assert len(row.split(" | ")) == len(heading)
        assert "failed" not in row
    assert " TF/s" in rows[0]
    assert " TF/s" not in rows[1]
    assert capsys.readouterr().out.strip() in written


def test_what_is_off_is_not_timed(benchmark: Any) -> None:
    wanted = {"y": np.array([1.0, -2.0], np.float32)}
    benchmark.check({"y": np.array([1.0, -2.05], np.float16)}, wanted)
    for wrong in (np.array([1.0, -2.2]), np.array([1.0, np.nan])):
        with pytest.raises(UsageError, match="y differs from torch's by"):
            benchmark.check({"y": wrong}, wanted)


def test_a_page_without_a_place_is_left_alone(benchmark: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(UsageError, match="has no place for figures"):
        benchmark.write("text", page)
    assert page.read_text() == "nothing\n"


def test_the_document_has_a_place_for_the_figures(benchmark: Any) -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    assert text.index(benchmark.START) < text.index(benchmark.END)
