"""TensorRT on the GPU: engines are built, opened and run here, and give what torch gives. TensorRT-RTX likewise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import graphwright as gw
from graphwright.passes import TARGETS
from graphwright.runtimes import RUNTIMES
from graphwright.runtimes.cuda import compute_capability

HERE = compute_capability()
RTX = RUNTIMES["tensorrt-rtx"].missing() is None and HERE in TARGETS["tensorrt-rtx"].devices
JOBS = ["tensorrt:fp16", "tensorrt:bf16", "tensorrt:fp32", *[f"tensorrt-rtx@{HERE}:fp16"] * RTX]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_an_engine_gives_what_torch_gives(name: str, job: str, architectures: Any, tmp_path: Path) -> None:
    spec = architectures[name].spec(name)
    # one process cannot hold both kinds of TensorRT: each engine is built, opened and compared in a process of its own
    shipped = gw.ship(spec, [job], tmp_path / "out", budget=0, require=True)
    (record,) = shipped.manifest.targets
    assert (record.status, record.verified.verdict) == ("built", "passed"), (record.reason, record.verified)
    assert record.precision_achieved
