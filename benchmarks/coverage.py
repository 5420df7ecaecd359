"""How much of thirty architectures lift understands, beside raw export, ONNX Runtime's optimizer and onnxscript.

    python benchmarks/coverage.py [--opset 18 23] [--attention sdpa eager] [--model bert ...] [--write docs/coverage.md]

Each model is exported, lifted and lowered for ONNX Runtime's CPU, and run on the example's shapes, on batch 3 and on
batch 1 with a short length; its outputs are compared with torch, |a - b| / max(1, |b|). Rows of queries that no key is
allowed have no right value: they are left out and counted. The peers start from the same exported graph, in the same
process.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from architectures import ARCHITECTURES

import graphwright as gw
from graphwright.compare.undefined import UndefinedRows
from graphwright.export.graph_session import open_graph
from graphwright.passes.lift.fold import Fold
from graphwright.passes.lift.functions import inline
from graphwright.runtimes.reference import TorchSession, to_array

Arrays = dict[str, np.ndarray]
Pairs = list[tuple[Arrays, Arrays]]
FUSED = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention"})
LIMIT = 1e-4  # of |a - b| / max(1, |b|)


@dataclass(frozen=True)
class Peer:
    """What another tool makes of the exported graph."""

    attentions: int = 0
    worst: float = float("nan")
    error: str = ""


@dataclass
class Row:
    """One model, one opset, one attention implementation."""

    name: str
    opset: int
    attention: str
    sites: int
    lifted: int = 0
    missed: list[str] = field(default_factory=list)
    worst: float = float("nan")
    left_out: int = 0
    before: int = 0  # nodes of the golden graph, constants folded
    after: int = 0  # nodes of the lifted graph, functions inlined
    export_seconds: float = 0.0
    lift_seconds: float = 0.0
    error: str = ""
    peers: dict[str, Peer] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Exported, every site lifted, every output right, and a smaller graph."""
        return not self.error and self.lifted == self.sites and self.worst <= LIMIT and self.after < self.before


def measure(name: str, opset: int, attention: str, peers: bool = False) -> Row:
    """One row; what a tool cannot do is said in the row, not raised."""
    architecture = ARCHITECTURES[name]
    row = Row(name, opset, attention, architecture.sites)
    spec = architecture.spec(name, attention)
    start = time.perf_counter()
    try:
        golden = gw.to_onnx(spec, opset)
    except gw.GraphwrightError as error:
        row.error = str(error)
        return row
    row.export_seconds = time.perf_counter() - start
    with TorchSession(spec) as reference:
        pairs = [(feeds, reference.run(feeds)) for feeds in shapes(spec)]
    start = time.perf_counter()
    lifted = gw.lift(golden)
    row.lift_seconds = time.perf_counter() - start
    found = [site for site in lifted.log.sites if site.kind == "attention"]
    row.lifted = sum(site.status == "lifted" for site in found)
    row.missed = [f"{site.path}: {site.status}, {site.reason}" for site in found if site.status != "lifted"]
    row.before, row.after = _nodes(golden, Fold()), _nodes(lifted.model, None)
    with UndefinedRows(lifted.model) as undefined:
        row.worst, row.left_out = difference(gw.optimize(lifted, target="ort-cpu").model, pairs, undefined)
        if peers:
            row.peers = {peer: _peer(make, golden, pairs, undefined) for peer, make in PEERS.items()}
    return row


def shapes(spec: gw.ModelSpec) -> Iterator[Arrays]:
    """The example's inputs; batch 3 and other lengths, a row padded; batch 1 and short."""
    random = np.random.default_rng(1)
    example = {name: to_array(value) for name, value in spec.tensors.items()}
    yield example
    for sizes in ({"batch": 3, "sequence": 13, "target": 11}, {"batch": 1, "sequence": 7, "target": 5}):
        feeds = {}
        for name, array in example.items():
            dims = spec.dynamic.get(name, {})
            shape = [sizes.get(dims.get(axis, ""), size) for axis, size in enumerate(array.shape)]
            if "mask" in name:
                feeds[name] = np.ones(shape, array.dtype)
                feeds[name][1:2, -4:] = 0
            elif array.dtype.kind == "i":
                feeds[name] = random.integers(5, 512, shape, array.dtype)
            else:
                feeds[name] = random.standard_normal(shape).astype(array.dtype)
        yield feeds


def difference(model: ir.Model, pairs: Pairs, undefined: UndefinedRows) -> tuple[float, int]:
    """The largest |a - b| / max(1, |b|) over all outputs and shapes, and how many rows were left out."""
    worst, left_out = 0.0, 0
    with open_graph(model) as session:
        for feeds, outputs in pairs:
            got = session.run(feeds)
            rows = undefined.find(feeds)
            left_out += sum(int(each.sum()) for each in rows)
            for name, wanted in outputs.items():
                keep = np.ones(wanted.shape, bool)
                for each in rows:
                    if wanted.ndim > 1 and wanted.shape[1] == each.shape[1] and each.shape[0] in (1, wanted.shape[0]):
                        keep &= ~each.reshape(*each.shape, *[1] * (wanted.ndim - 2))
                if got[name].shape != wanted.shape or not np.isfinite(got[name][keep]).all():
                    return float("inf"), left_out
                apart = np.abs(got[name].astype(np.float64) - wanted) / np.maximum(1.0, np.abs(wanted))
                worst = max(worst, float(apart[keep].max(initial=0.0)))
    return worst, left_out


def _nodes(model: ir.Model, fold: Fold | None) -> int:
    copy = model.clone()
    if fold is not None:
        fold(copy)
    inline(copy)
    return sum(node.op_type != "Constant" for node in copy.graph.all_nodes())


def _raw(golden: ir.Model) -> ir.Model:
    return golden


def _onnxruntime(golden: ir.Model) -> ir.Model:
    """The graph as ONNX Runtime's optimizer leaves it."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(
            ir.to_proto(golden).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return ir.from_proto(onnx.load(options.optimized_model_filepath))


def _onnxscript(golden: ir.Model) -> ir.Model:
    from onnxscript import optimizer
    from onnxscript.rewriter.ort_fusions._core import optimize_for_ort

    made = golden.clone()
    optimizer.optimize(made)
    return optimize_for_ort(made)[0]


PEERS: dict[str, Callable[[ir.Model], ir.Model]] = {
    "raw": _raw,
    "onnxruntime": _onnxruntime,
    "onnxscript": _onnxscript,
}


def _peer(make: Callable[[ir.Model], ir.Model], golden: ir.Model, pairs: Pairs, undefined: UndefinedRows) -> Peer:
    count = 0
    try:
        model = make(golden)
        count = sum(node.op_type in FUSED for node in model.graph.all_nodes())
        return Peer(count, difference(model, pairs, undefined)[0])
    except Exception as error:  # noqa: BLE001 - what another tool cannot do is the measurement
        return Peer(count, error=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")


def table(rows: list[Row]) -> str:
    """The rows as Markdown, with a line of totals for each opset and implementation."""
    lines = [
        "| model | opset | attention | sites lifted | worst difference | left out | nodes | export s | lift s |"
        " raw | ONNX Runtime | onnxscript |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|---|---|---|",
    ]
    lines += map(_line, rows)
    for opset, attention in dict.fromkeys((row.opset, row.attention) for row in rows):
        lines.append(_total([row for row in rows if (row.opset, row.attention) == (opset, attention)]))
    return "\n".join(lines)


def _line(row: Row) -> str:
    cells = [row.name, str(row.opset), row.attention]
    if row.error:
        return "| " + " | ".join([*cells, f"0 of {row.sites}", row.error, *[""] * 7]) + " |"
    numbers = [f"{row.lifted} of {row.sites}", f"{row.worst:.1e}", str(row.left_out), f"{row.before} -> {row.after}"]
    seconds = [f"{row.export_seconds:.1f}", f"{row.lift_seconds:.2f}"]
    peers = [_cell(row.peers.get(name), row.sites) for name in PEERS]
    return "| " + " | ".join([*cells, *numbers, *seconds, *peers]) + " |"


def _cell(peer: Peer | None, sites: int) -> str:
    if peer is None:
        return ""
    outcome = "fails" if peer.error else "agrees" if peer.worst <= LIMIT else f"off by {peer.worst:.0e}"
    return f"{peer.attentions} of {sites}, {outcome}"


def _total(rows: list[Row]) -> str:
    sites = sum(row.sites for row in rows)
    cells = [f"**all {len(rows)}**", str(rows[0].opset), rows[0].attention]
    cells += [f"**{sum(row.lifted for row in rows)} of {sites}**"]
    cells += [f"{max((row.worst for row in rows if not row.error), default=0):.1e}"]
    cells += [str(sum(row.left_out for row in rows)), f"{sum(r.before for r in rows)} -> {sum(r.after for r in rows)}"]
    cells += [f"{sum(row.export_seconds for row in rows):.0f}", f"{sum(row.lift_seconds for row in rows):.1f}"]
    for name in PEERS:
        peers = [row.peers[name] for row in rows if name in row.peers]
        agree = sum(not peer.error and peer.worst <= LIMIT for peer in peers)
        cells.append(f"{sum(p.attentions for p in peers)} of {sites}, {agree} agree" if peers else "")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opset", type=int, nargs="+", default=[18, 23])
    parser.add_argument("--attention", nargs="+", default=["sdpa", "eager"], choices=["sdpa", "eager"])
    parser.add_argument("--model", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--write", type=Path, help="replace the table between the markers of this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = []
    for opset in arguments.opset:
        for attention in arguments.attention:
            for name in arguments.model:
                rows.append(measure(name, opset, attention, peers=True))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
                for missed in rows[-1].missed:
                    print(f"    {missed}", file=sys.stderr)
    print(table(rows))
    if arguments.write:
        write(arguments.write, table(rows))
    sys.exit(0 if all(row.holds for row in rows) else 1)


def write(path: Path, text: str) -> None:
    """Put `text` between the two markers of `path`."""
    start, end = "<!-- table -->", "<!-- end of table -->"
    before, _, rest = path.read_text().partition(start)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{start}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
