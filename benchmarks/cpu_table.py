"""Who takes part in the CPU benchmark: one row a contender, and the limits that are measured beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """What runs (`engine` of cpu_contender.py) and what it runs: a graph of cpu_graphs.py, or a build of graphwright."""

    engine: str
    graph: str = ""  # the way in which the graph is made; none: the module itself
    target: str = ""  # of graphwright
    tune: bool = False
    ort: bool = False  # ONNX Runtime by other means than ours: the best of them is what ours is held against
    options: dict[str, Any] = field(default_factory=dict)  # of the target, beside the threads


CONTENDERS = {
    "torch": Contender("torch"),
    "torch.compile": Contender("torch.compile"),
    "raw": Contender("onnxruntime", "raw", ort=True),
    "raw again": Contender("onnxruntime", "raw"),  # the control: what differs here is noise
    "ORT optimizer": Contender("onnxruntime", "optimizer", ort=True),
    "onnxscript": Contender("onnxruntime", "onnxscript", ort=True),
    "transformers": Contender("onnxruntime", "transformers", ort=True),
    "OpenVINO": Contender("openvino", "raw"),
    "graphwright": Contender("graphwright", "golden", "ort-cpu"),
}
BASE = "raw"
LIMITS = {
    "products, MLAS": Contender("onnxruntime"),
    "products, OpenVINO": Contender("openvino"),
    "sgemm, MLAS": Contender("onnxruntime"),
    "sgemm, torch": Contender("torch"),
}
