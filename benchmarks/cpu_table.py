"""Who takes part in the CPU benchmark: one row a contender, and the limits that are measured beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """What runs (an engine of cpu_contender.py), and what it runs."""

    engine: str
    graph: str = ""  # the way of cpu_graphs.py in which the graph is made; none: the module itself
    target: str = ""  # of graphwright, which builds its artifact from the graph
    options: dict[str, Any] = field(default_factory=dict)  # of the target, beside the threads
    tuned: bool = False  # whether the target's forms are chosen by measuring, at the model's sizes together


CONTENDERS = {
    "torch": Contender("torch"),
    "torch.compile": Contender("torch.compile"),
    "torch.compile frozen": Contender("torch.compile frozen"),
    "raw": Contender("onnxruntime", "raw"),
    "raw again": Contender("onnxruntime", "raw"),  # the control: what differs here is noise
    "ORT optimizer": Contender("onnxruntime", "optimizer"),
    "onnxscript": Contender("onnxruntime", "onnxscript"),
    "transformers": Contender("onnxruntime", "transformers"),
    "OpenVINO": Contender("openvino", "raw"),
    "graphwright ort-cpu": Contender("graphwright", "golden", "ort-cpu"),
    "graphwright ort-cpu tuned": Contender("graphwright", "golden", "ort-cpu", tuned=True),
    "graphwright openvino": Contender("graphwright", "golden", "openvino"),
}
BASE = "raw"
PEERS = [name for name, contender in CONTENDERS.items() if not contender.target and name != "raw again"]
LIMITS = {
    "products, MLAS": Contender("onnxruntime"),
    "products, OpenVINO": Contender("openvino"),
    "sgemm, MLAS": Contender("onnxruntime"),
    "sgemm, torch": Contender("torch"),
}
