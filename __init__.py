"""graphwright: a transformer, to the fastest artifact a target can run, with proof that it still computes the same."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphwright.artifact import Artifact, load
    from graphwright.compare.latency import LatencyTable, bench
    from graphwright.compare.verify import verify
    from graphwright.errors import GraphwrightError
    from graphwright.export import to_onnx
    from graphwright.manifest import Manifest
    from graphwright.passes import Optimized, optimize
    from graphwright.passes.lift import Lifted, lift
    from graphwright.passes.lint import Lint, lint
    from graphwright.passes.sites import Site
    from graphwright.pipeline import Shipment, build, ship
    from graphwright.runtimes.child import Limits
    from graphwright.spec import Job, ModelSpec, Target

__version__ = "0.1.0"

# Absolute names, loaded on first use: `import graphwright` must load neither torch nor a backend, and pytest, which
# imports this file a second time under the checkout's name, must meet the same modules.
_WHERE = {
    "Artifact": "artifact",
    "GraphwrightError": "errors",
    "Job": "spec",
    "LatencyTable": "compare.latency",
    "Lifted": "passes.lift",
    "Limits": "runtimes.child",
    "Lint": "passes.lint",
    "Manifest": "manifest",
    "ModelSpec": "spec",
    "Optimized": "passes",
    "Shipment": "pipeline",
    "Site": "passes.sites",
    "Target": "spec",
    "bench": "compare.latency",
    "build": "pipeline",
    "lift": "passes.lift",
    "lint": "passes.lint",
    "load": "artifact",
    "optimize": "passes",
    "ship": "pipeline",
    "to_onnx": "export",
    "verify": "compare.verify",
}

__all__ = [
    "Artifact",
    "GraphwrightError",
    "Job",
    "LatencyTable",
    "Lifted",
    "Limits",
    "Lint",
    "Manifest",
    "ModelSpec",
    "Optimized",
    "Shipment",
    "Site",
    "Target",
    "__version__",
    "bench",
    "build",
    "lift",
    "lint",
    "load",
    "optimize",
    "ship",
    "to_onnx",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'graphwright' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graphwright.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
