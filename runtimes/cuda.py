"""Whether this machine has a CUDA device, asked of the driver itself: no package needed, no crash without one."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def cuda_missing() -> str | None:
    """Why there is no usable CUDA device; None if there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver here (libcuda.so.1 cannot be loaded)"
    code = driver.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver does not start (cuInit gave {code})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value > 0 else "the NVIDIA driver lists no device"


def compute_capability() -> str:
    """Compute capability of device 0 as `sm89`. Only where `cuda_missing()` is None."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ..._MINOR
    return f"sm{major.value}{minor.value}"
