"""doctor: what this machine has, what it lacks for each target, and how to mend it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import GraphwrightError
from .passes.lower import TARGETS
from .runtimes import RUNTIMES, cpu, cuda
from .runtimes.ort_cpu import cores
from .store import Store, versions

PACKAGES = (
    *("graphwright", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "torch"),
    *("transformers", "polygraphy", "tensorrt", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
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
    lines += _cpu()
    lines += [Finding(name, "ok", version) for name, version in found.items()]
    if "onnxruntime" in found and "onnxruntime-gpu" in found:
        detail = "onnxruntime and onnxruntime-gpu share one folder: pip uninstall both, then install one"
        lines.append(Finding("onnxruntime twice", "problem", detail))
    if "tensorrt" not in found:
        lines.append(Finding("tensorrt", "absent", VENDOR))
    lines += _cuda()
    lines += [_target(name) for name in TARGETS]
    lines.append(_store())
    return lines


def _cpu() -> Iterator[Finding]:
    sets = ", ".join(cpu.instruction_sets()) or "this system does not list its instruction sets"
    yield Finding("cpu", "ok", f"{cpu.name()}: {sets}")
    quota, governor = cpu.quota(), cpu.governor()
    detail = f"{cores()} available to this process"
    if quota is not None:
        detail += f"; limited to the time of {quota:g} cores: more threads than that wait for each other"
    if governor is not None:
        detail += f"; clock governor {governor}"
    yield Finding("cores", "problem" if quota is not None and quota < cores() else "ok", detail)


def _cuda() -> Iterator[Finding]:
    """The driver, each device, and each library that ONNX Runtime's CUDA provider loads."""
    reason = cuda.cuda_missing()
    if reason is not None:
        yield Finding("cuda", "absent", reason)
    else:
        known = ", ".join(f"{name} {number}" for name, number in sorted(cuda.driver_versions().items(), reverse=True))
        yield Finding("cuda", "ok", f"{known} (the newest that the driver runs)")
    for device in cuda.devices():
        limits = "".join(f", {name} {number}" for name, number in cuda.limits(device.index).items())
        detail = f"{device.name}, {device.capability}, {device.memory / (1 << 30):.1f} GiB{limits}"
        yield Finding(f"cuda device {device.index}", "ok", detail)
    for library in cuda.LIBRARIES:
        where = cuda.locate(library, sys.path)
        use = "ort-cuda needs it" if library.needed else f"ort-cuda needs it for {library.use}"
        detail = f"in {where}" if where else f"{use}: `pip install {library.package}`"
        yield Finding(library.name, "ok" if where else "absent", detail)


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
