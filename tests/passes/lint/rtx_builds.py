"""In a process of its own: what TensorRT-RTX makes of many small graphs. Reads a list of requests, answers in JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from graphwright.errors import BuildError
from graphwright.runtimes import RUNTIMES, BuildRequest


def answer(request: dict[str, Any]) -> dict[str, Any]:
    runtime = RUNTIMES["tensorrt-rtx"]
    ranges = {name: tuple(bounds) for name, bounds in request["ranges"].items()}
    graph = Path(request["graph"])
    try:
        if request["how"] == "build":
            built = runtime.build(BuildRequest(graph, ranges, request["device"]))
            return {"error": "", "shapes": {name: text for name, text in built.options.items() if " / " in str(text)}}
        trt = runtime._load()  # type: ignore[attr-defined]
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        if not trt.OnnxParser(network, logger).parse(graph.read_bytes()):
            return {"error": "the parser refuses it"}
        if request["how"] == "layers":
            return {"error": "", "layers": [str(network.get_layer(i).type) for i in range(network.num_layers)]}
        # "raw": attention not decomposable, nothing checked
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, request["device"].upper()), 0)
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = [3 if size < 0 else size for size in tensor.shape]
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
        return {"error": "" if builder.build_serialized_network(network, config) else "the builder refuses it"}
    except BuildError as error:
        return {"error": str(error)}


def main() -> None:
    requests = json.load(sys.stdin)
    answers, out = {}, os.dup(1)
    for name, request in requests.items():
        with tempfile.TemporaryFile() as log:  # the reason is in what the backend prints
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            found = answer(request)
            log.seek(0)
            answers[name] = {**found, "log": log.read().decode(errors="replace")[-4000:]}
    os.write(out, json.dumps(answers).encode())


if __name__ == "__main__":
    main()
