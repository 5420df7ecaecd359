"""The graphs that the CPU benchmark runs, each made in a process of its own, by the interpreter that has the tool.

    python benchmarks/cpu_graphs.py WAY MODEL OUT [SOURCE]

SOURCE is what the way starts from: the raw export for the optimizers, the golden graph for graphwright.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpu_models import MODELS, Model

RAW_OPSET = 18


def _example(model: Model) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in model.feeds(*model.example).items()}


def raw(model: Model, out: Path, _: Path) -> None:
    """torch.onnx.export as it comes."""
    import torch

    program = torch.onnx.export(
        model.module(), (), kwargs=_example(model), dynamic_shapes=model.dynamic, opset_version=RAW_OPSET, dynamo=True
    )
    assert program is not None
    program.save(out)


def optimizer(model: Model, out: Path, source: Path) -> None:
    """ONNX Runtime's own tool for transformers, at its defaults for the kind of model."""
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(source), **model.optimizer).save_model_to_file(str(out))


def onnxscript(_: Model, out: Path, source: Path) -> None:
    """The fusions of onnxscript for ONNX Runtime."""
    import onnx_ir as ir
    from onnxscript import optimizer
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    made = ir.load(source)
    optimizer.optimize(made)
    ir.save(optimize_for_ort(made)[0], out)


def transformers(model: Model, out: Path, _: Path) -> None:
    """The exporter of transformers with its own fusions for ONNX Runtime's CPU."""
    import onnx_ir as ir
    from transformers.exporters import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic=True, ort_fusions="cpu")
    ir.save(OnnxExporter().export(model.module(), _example(model), config=config).program, out)


def golden(model: Model, out: Path, _: Path) -> None:
    """What graphwright starts from: its own export."""
    import onnx_ir as ir

    import graphwright as gw

    ir.save(gw.to_onnx(gw.ModelSpec(model.module(), _example(model), model.dynamic, name=out.stem)), out)


WAYS: dict[str, Callable[[Model, Path, Path], None]] = {
    "raw": raw,
    "optimizer": optimizer,
    "onnxscript": onnxscript,
    "transformers": transformers,
    "golden": golden,
}
START = {"optimizer": "raw", "onnxscript": "raw"}  # what a way starts from, where it is a graph
OURS = frozenset({"golden"})  # made by this interpreter, the others by that of the peers


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    WAYS[sys.argv[1]](MODELS[sys.argv[2]], Path(sys.argv[3]), Path(sys.argv[-1]))
