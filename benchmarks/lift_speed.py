"""Time and memory of lift by the size of the graph, beside ONNX Runtime's optimizer and onnxscript's.

    python benchmarks/lift_speed.py [--layers 4,12,24,48] [--hidden 64,384] [--repeats 5] [--cache FOLDER]

The graphs are BERT encoders of random weights, exported at opset 18. All three start from the same graph in one
process, in turns; a time is the median of the repeats with the fastest and the slowest. Memory is the growth of the
peak resident memory of a child process that has imported all, holds the graph, and has warmed up on a small one.
lift proves its rewrites; the others do not.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

import graphwright as gw

HEAD, LENGTH, VOCABULARY = 32, 16, 512
SMALL = (4, 64)  # what is warmed up on


def export(layers: int, hidden: int, folder: Path) -> Path:
    """The golden graph of an encoder, as a file; made once for a folder."""
    path = folder / f"encoder-{layers}-{hidden}.onnx"
    if path.exists():
        return path
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // HEAD}
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, intermediate_size=4 * hidden, max_position_embeddings=64, **sizes
    )
    ids = torch.randint(5, VOCABULARY, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, -5:] = 0
    inputs, dims = {"input_ids": ids, "attention_mask": mask}, {0: "batch", 1: "sequence"}
    module = transformers.BertModel(config).eval()
    spec = gw.ModelSpec(module, inputs, dict.fromkeys(inputs, dims), name="encoder")
    ir.save(gw.to_onnx(spec, opset=18), path)
    return path


def lift(model: ir.Model) -> float:
    """Seconds of it spent on proofs."""
    return gw.lift(model).prover.seconds


def onnxruntime(model: ir.Model) -> None:
    """Every optimization, down to the optimized graph as a file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        data = ir.to_proto(model).SerializeToString()
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def onnxscript(model: ir.Model) -> None:
    """What onnxscript does for ONNX Runtime: its optimizer and fusions."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    optimize_for_ort(model.clone())


TOOLS: dict[str, Callable[[ir.Model], float | None]] = {
    "graphwright": lift,
    "ONNX Runtime": onnxruntime,
    "onnxscript": onnxscript,
}


def times(path: Path, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each tool, run in turns, and the median of those that lift spends on proofs."""
    model, seconds, proofs = ir.load(path), {name: list[float]() for name in TOOLS}, []
    for _ in range(repeats):
        for name, tool in TOOLS.items():
            start = time.perf_counter()
            spent = tool(model)
            seconds[name].append(time.perf_counter() - start)
            proofs += [spent] if spent is not None else []
    return seconds, statistics.median(proofs)


def memory(name: str, path: Path, small: Path) -> int:
    """MiB by which the tool lets the peak grow, in a process of its own."""
    command = [sys.executable, __file__, "--child", name, str(path), str(small)]
    return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def child(name: str, path: Path, small: Path) -> None:
    TOOLS[name](ir.load(small))
    model = ir.load(path)
    for value in model.graph.initializers.values():  # in memory, as it is where a graph was just made
        value.const_value = ir.tensor(value.const_value.numpy()) if value.const_value is not None else None
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is that of the tool (Linux)
    before = resident("VmRSS")
    TOOLS[name](model)
    print((resident("VmHWM") - before) // 1024)


def resident(line: str) -> int:
    """KiB of memory, now (VmRSS) or at the peak (VmHWM)."""
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0])


def show(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def measure(layers: list[int], hidden: list[int], repeats: int, folder: Path) -> None:
    small = export(*SMALL, folder)
    for tool in TOOLS.values():
        tool(ir.load(small))
    heads = [f"{name}, s" for name in TOOLS] + [f"{name}, MiB" for name in TOOLS]
    print("| hidden | layers | nodes | lifted | " + " | ".join([heads[0], "of it proofs", *heads[1:]]) + " |")
    print("|" + "--:|" * (5 + len(heads)))
    for width in hidden:
        for count in layers:
            path = export(count, width, folder)
            seconds, proofs = times(path, repeats)
            nodes = [len(ir.load(path).graph), len(gw.lift(ir.load(path)).model.graph)]
            cells = [show(values) for values in seconds.values()]
            peaks = [memory(name, path, small) for name in TOOLS]
            row = [width, count, *nodes, cells[0], f"{proofs:.2f}", *cells[1:], *peaks]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    logging.disable(logging.WARNING)
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=numbers, default=[4, 12, 24, 48])
    parser.add_argument("--hidden", type=numbers, default=[64, 384])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="where the exported graphs are kept; else they are made anew")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = asked.cache or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        measure(asked.layers, asked.hidden, asked.repeats, folder)


if __name__ == "__main__":
    main()
