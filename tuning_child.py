"""The process in which two forms of a model are measured against each other."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from .compare.latency import Samples, interval, measure
from .runtimes.child import runtime_of, serve


def compare(question: dict[str, Any]) -> dict[str, Any]:
    """Speed of the second of question["graphs"] over the first, on all of question["inputs"] together."""
    runtime, settings = runtime_of(question)
    inputs = [load_file(path) for path in question["inputs"]]
    with ExitStack() as stack:
        sessions = [stack.enter_context(runtime.open(Path(path), settings)) for path in question["graphs"]]
        calls = {
            f"{which} {number}": partial(session.run, feeds)
            for number, feeds in enumerate(inputs)
            for which, session in enumerate(sessions)
        }
        samples = measure(calls, question["seconds"])
    ratios = [_ratios(samples[f"0 {number}"], samples[f"1 {number}"]) for number in range(len(inputs))]
    rounds = min(map(len, ratios))
    if not rounds:
        return {"ratio": 1.0, "low": 1.0, "high": 1.0, "rounds": 0}
    together = np.exp(np.mean([np.log(own[:rounds]) for own in ratios], axis=0))
    low, high = interval(together)
    return {"ratio": float(np.median(together)), "low": low, "high": high, "rounds": rounds}


def _ratios(first: Samples, second: Samples) -> np.ndarray:
    """Median of the first over median of the second, round by round."""
    return np.array([np.median(a) / np.median(b) for a, b in zip(first.blocks, second.blocks, strict=True)])


if __name__ == "__main__":
    serve(compare)
