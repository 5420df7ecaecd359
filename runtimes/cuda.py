"""What this machine has of CUDA, asked of the driver and the loader themselves: no package needed, no crash without."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import DeviceError

DRIVER = "libcuda.so.1"
MANAGEMENT = "libnvidia-ml.so.1"  # NVML: comes with the driver
SYSTEM = "the system"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...


@dataclass(frozen=True)
class Device:
    """One CUDA device, as the driver counts them; memory in bytes."""

    index: int
    name: str
    capability: str  # as in sm89
    memory: int


@dataclass(frozen=True)
class Library:
    """A library of CUDA 13 that ONNX Runtime's provider loads, and the package that brings it."""

    name: str
    package: str
    folder: str  # below site-packages, where the package puts it
    needed: bool = True  # whatever the model is
    use: str = ""  # of one that few models need: what for


# The provider links the first four and loads the others when a kernel asks: cuDNN for convolutions and reductions
LIBRARIES = (
    Library("libcudart.so.13", "nvidia-cuda-runtime", "nvidia/cu13/lib"),
    Library("libcublasLt.so.13", "nvidia-cublas", "nvidia/cu13/lib"),
    Library("libcublas.so.13", "nvidia-cublas", "nvidia/cu13/lib"),
    Library("libcurand.so.10", "nvidia-curand", "nvidia/cu13/lib"),
    Library("libcufft.so.12", "nvidia-cufft", "nvidia/cu13/lib", False, "Fourier transforms"),
    Library("libnvrtc.so.13", "nvidia-cuda-nvrtc", "nvidia/cu13/lib", False, "kernels that cuDNN makes as it runs"),
    Library("libcudnn.so.9", "nvidia-cudnn-cu13", "nvidia/cudnn/lib"),
)


@cache
def cuda_missing() -> str | None:
    """Why there is no usable CUDA device; None if there is one."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return f"no NVIDIA driver here ({DRIVER} cannot be loaded)"
    code = driver.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver does not start (cuInit gave {code})"
    return None if _number(driver.cuDeviceGetCount) > 0 else "the NVIDIA driver lists no device"


def devices() -> list[Device]:
    """The CUDA devices of this machine; none where `cuda_missing()` gives a reason."""
    if cuda_missing() is not None:
        return []
    driver = ctypes.CDLL(DRIVER)
    return [_device(driver, index) for index in range(_number(driver.cuDeviceGetCount))]


def compute_capability() -> str:
    """Compute capability of device 0 as `sm89`. Only where `cuda_missing()` is None."""
    return devices()[0].capability


def driver_versions() -> dict[str, str]:
    """Versions of the driver and of the newest CUDA that it runs; only where `cuda_missing()` is None."""
    newest = _number(ctypes.CDLL(DRIVER).cuDriverGetVersion)
    versions = {"CUDA": f"{newest // 1000}.{newest % 1000 // 10}"}
    with _management() as nvml:
        text = ctypes.create_string_buffer(96)
        if nvml is not None and nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))) == 0:
            versions["driver"] = text.value.decode(errors="replace")
    return versions


def limits(index: int) -> dict[str, int]:
    """Power limit in W and highest clocks in MHz of a device, as far as the driver's management library tells them.

    The library counts devices as the machine has them, without CUDA_VISIBLE_DEVICES.
    """
    found: dict[str, int] = {}
    with _management() as nvml:
        handle = ctypes.c_void_p()
        if nvml is None or nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
            return found
        number = ctypes.c_uint()
        if nvml.nvmlDeviceGetEnforcedPowerLimit(handle, ctypes.byref(number)) == 0:
            found["power limit W"] = number.value // 1000
        for name, kind in (("SM clock MHz", 1), ("memory clock MHz", 2)):  # NVML_CLOCK_SM, NVML_CLOCK_MEM
            if nvml.nvmlDeviceGetMaxClockInfo(handle, kind, ctypes.byref(number)) == 0:
                found[name] = number.value
    return found


def locate(library: Library, folders: Sequence[str]) -> str | None:
    """Where the loader finds a library: its path below one of `folders`, or "the system"; None if nowhere."""
    path = next((path for folder in folders if (path := Path(folder) / library.folder / library.name).is_file()), None)
    if path is not None:
        return str(path)
    try:
        ctypes.CDLL(library.name)
    except OSError:
        return None
    return SYSTEM


def libraries_missing() -> str | None:
    """Which libraries ONNX Runtime's CUDA provider needs and this machine lacks; None if none."""
    lacking = [library for library in LIBRARIES if library.needed and locate(library, sys.path) is None]
    if not lacking:
        return None
    names = ", ".join(library.name for library in lacking)
    wanted = " ".join(dict.fromkeys(library.package for library in lacking))
    return f"{names} cannot be loaded: `pip install {wanted}`"


def preload() -> None:
    """Load what pip put beside the packages, so that ONNX Runtime's provider, which looks in the system, finds it.

    As `onnxruntime.preload_dlls` does, which looks beside ONNX Runtime alone and prints. Raises DeviceError where a
    library is there but cannot be loaded.
    """
    for library in LIBRARIES:
        where = locate(library, sys.path)
        if where is None or where == SYSTEM:
            continue
        try:
            ctypes.CDLL(where)
        except OSError as error:
            raise DeviceError(f"{where} cannot be loaded: {error}. Install {library.package} again.") from error


def _device(driver: ctypes.CDLL, index: int) -> Device:
    handle, text, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(handle), ctypes.c_int(index))
    driver.cuDeviceGetName(text, ctypes.c_int(len(text)), handle)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    major, minor = (_number(driver.cuDeviceGetAttribute, ctypes.c_int(kind), handle) for kind in (_MAJOR, _MINOR))
    return Device(index, text.value.decode(errors="replace"), f"sm{major}{minor}", memory.value)


def _number(function: Any, *arguments: Any) -> int:
    """What a function of the driver writes to its first argument, an int."""
    number = ctypes.c_int()
    function(ctypes.byref(number), *arguments)
    return number.value


@contextmanager
def _management() -> Iterator[ctypes.CDLL | None]:
    """NVML, started; None where it is not here."""
    try:
        nvml = ctypes.CDLL(MANAGEMENT)
    except OSError:
        yield None
        return
    if nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()
