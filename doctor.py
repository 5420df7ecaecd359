"""doctor: what this machine has, what it lacks for each target, and how to mend it."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from .errors import GraphwrightError
from .passes.lower import TARGETS
from .runtimes import RUNTIMES
from .runtimes.cuda import cuda_missing
from .runtimes.ort_cpu import cores
from .store import Store, versions

PACKAGES = (
    *("graphwright", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "torch"),
    *("openvino", "transformers", "polygraphy", "tensorrt", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
)
VENDOR = (
    "tensorrt is the vendor's package: pip fetches its libraries from the vendor's own index, so a machine that cannot "
    "reach that index cannot install it"
)


@dataclass(frozen=True)
class Finding:
    """One line: `state` is ok, absent or problem."""

    name: str
    state: str
    detail: str


def examine() -> list[Finding]:
    """All findings of this machine; nothing is changed."""
    found = versions(*PACKAGES)
    lines = [Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    lines.append(Finding("cores", "ok", f"{cores()} available to this process"))
    lines += [Finding(name, "ok", version) for name, version in found.items()]
    if "onnxruntime" in found and "onnxruntime-gpu" in found:
        detail = "onnxruntime and onnxruntime-gpu share one folder: pip uninstall both, then install one"
        lines.append(Finding("onnxruntime twice", "problem", detail))
    if "tensorrt" not in found:
        lines.append(Finding("tensorrt", "absent", VENDOR))
    reason = cuda_missing()
    lines.append(Finding("cuda", "absent" if reason else "ok", reason or "an NVIDIA driver with a device"))
    lines += [_target(name) for name in TARGETS]
    lines.append(_store())
    return lines


def _target(name: str) -> Finding:
    runtime = RUNTIMES[TARGETS[name].runtime]
    run, build = runtime.missing(), runtime.builder_missing()
    if run is None:
        return Finding(f"target {name}", "ok", "builds and runs here")
    if build is None:
        return Finding(f"target {name}", "absent", f"builds here, does not run: {run}")
    return Finding(f"target {name}", "absent", f"lowers only: {run}. It needs {TARGETS[name].needs}")


def _store() -> Finding:
    try:
        store = Store()
        count, size = store.size()
    except GraphwrightError as error:
        return Finding("store", "problem", str(error))
    return Finding("store", "ok", f"{store.root}: {count} stages, {size / 1e6:.1f} MB (`graphwright clean` empties it)")
