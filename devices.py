"""Device profiles: what a device has and lacks, as data, so that a graph can be made for it on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .errors import UsageError
from .spec import Job, Precision, pick

Kind = Literal["nvidia", "x86-64", "arm64"]

# NVIDIA: the first compute capability whose tensor cores multiply the type, as sm numbers.
# Sources: support matrix of TensorRT-RTX 1.7 (bf16 and int4 not on 7.5, fp8 from 8.9, fp4 from 12.0) and of TensorRT
# (fp4 from 10.0); the builder of TensorRT-RTX 1.7 refuses the same.
SINCE: Mapping[Precision, int] = {"int8": 61, "bf16": 80, "int4": 80, "fp8": 89, "nvfp4": 100}
# CPU: what must be in the CPU's flags for products of a type; a profile promises no more flags than it names
CPU_HALF: Mapping[Precision, str] = {"bf16": "avx512_bf16, amx_bf16 or bf16", "fp16": "avx512_fp16 or asimdhp"}


@dataclass(frozen=True)
class Device:
    """One device, or one class of them.

    `sm`: compute capability, as in 87; 0 for a CPU. `tensorrt`: the version that its software has, where that is fixed;
    `opset`, `ir_version`: the newest of an ONNX file that this version's parser is made for. `flags`: CPU features that
    must be there (`a|b`: one of them). `arithmetic`: features with which integer products give other numbers: a CPU
    that has one is not this device where a graph is int8. `memory`: GiB, where all devices of the name have the same.
    """

    name: str
    kind: Kind
    what: str
    targets: tuple[str, ...]
    sm: int = 0
    memory: int = 0
    tensorrt: tuple[int, int] | None = None
    opset: int | None = None
    ir_version: int | None = None
    flags: tuple[str, ...] = ()
    arithmetic: tuple[str, ...] = ()

    def lacks(self, precision: Precision) -> str:
        """Why the device has no products in `precision`; empty if it has them, or if the name leaves it open."""
        since = SINCE.get(precision, 0)
        if self.kind == "nvidia" and self.sm < since:
            return f"SM{self.sm} has no {precision} products; they came with SM{since}"
        if self.kind != "nvidia" and precision in ("fp8", "nvfp4"):
            return f"no CPU has {precision} products"
        if self.kind != "nvidia" and precision in CPU_HALF:
            return f"the name promises no {precision} products ({CPU_HALF[precision]} among the CPU's features)"
        return ""

    @property
    def build_name(self) -> str:
        """What a builder calls it: the compute capability of a GPU, as in sm87, else its name."""
        return f"sm{self.sm}" if self.sm else self.name


_GPU = ("tensorrt", "ort-cuda")
_CPU = ("ort-cpu", "openvino")

_TABLE = (
    # What TensorRT-RTX 1.7 builds for: its enum ComputeCapability. The first is its default.
    *(
        Device(f"sm{sm}", "nvidia", f"any GPU of compute capability {sm // 10}.{sm % 10}", ("tensorrt-rtx",), sm)
        for sm in (89, 75, 80, 86, 120, 121)
    ),
    # JetPack 6.2 holds TensorRT 10.3.0 and CUDA 12.6 (its release notes; TensorRT 11 starts with JetPack 7.2).
    # onnx-tensorrt's docs/operators.md of 10.0, and its changelog for 10.1 to 10.3: opset 9 to 20, no Attention,
    # RMSNormalization or RotaryEmbedding; built on ONNX 1.16, whose IR version is 10. Memory is 8 to 64 GiB by module,
    # shared with the CPU.
    Device(
        "jetson-orin",
        "nvidia",
        "Jetson Orin, JetPack 6",
        ("tensorrt",),
        87,
        tensorrt=(10, 3),
        opset=20,
        ir_version=10,
    ),
    # compute capability and memory: the vendor's tables of CUDA GPUs
    Device("rtx-4090", "nvidia", "GeForce RTX 4090", (*_GPU, "tensorrt-rtx"), 89, 24),
    Device("rtx-5090", "nvidia", "GeForce RTX 5090", (*_GPU, "tensorrt-rtx"), 120, 32),
    Device("l4", "nvidia", "L4", (*_GPU, "tensorrt-rtx"), 89, 24),
    # 9.0 is not among TensorRT-RTX's compute capabilities
    Device("h100", "nvidia", "H100", _GPU, 90, 80),
    # Features as Linux writes them into /proc/cpuinfo. vpmaddubsw of AVX2 adds pairs of int8 products up in 16 bits
    # and saturates; VNNI adds up in 32.
    Device(
        "x86-avx2",
        "x86-64",
        "x86 with AVX2, no VNNI",
        _CPU,
        flags=("avx2", "fma"),
        arithmetic=("avx_vnni", "avx512_vnni", "amx_int8"),
    ),
    Device("x86-vnni", "x86-64", "x86 with VNNI", _CPU, flags=("avx2", "fma", "avx_vnni|avx512_vnni")),
    Device("arm64-dotprod", "arm64", "Arm with dot products (ARMv8.2)", ("ort-cpu",), flags=("asimd", "asimddp")),
)
DEVICES: dict[str, Device] = {device.name: device for device in _TABLE}


def names(target: str) -> tuple[str, ...]:
    """The devices that a target can make for, the default first."""
    return tuple(device.name for device in DEVICES.values() if target in device.targets)


def named(text: str) -> tuple[Device, ...]:
    """The devices of a job's `device`: none for the empty text, several where they are joined by +."""
    return tuple(DEVICES[pick("device", name, DEVICES)] for name in text.split("+")) if text else ()


def build_name(text: str) -> str:
    """A job's `device` as a builder is told it: `rtx-4090+sm120` -> `sm89+sm120`."""
    return "+".join(dict.fromkeys(device.build_name for device in named(text)))


def check_device(name: str, target: str, allowed: tuple[str, ...]) -> None:
    """Raise UsageError if `target` cannot make for the device `name`, with the reason where the device is known."""
    device = DEVICES.get(name)
    if name in allowed or device is None:
        pick(f"device for {target}", name, [known for known in allowed if known])
        return
    makers = ", ".join(f"{maker}@{name}" for maker in device.targets)
    why = f"It is {device.what}"
    if device.sm:
        why += f", compute capability {device.sm // 10}.{device.sm % 10}"
    raise UsageError(f"{target} makes nothing for {name!r}. {why}: for it there is {makers}.")


def check_precision(job: Job) -> None:
    """Raise UsageError if a device of the job has no products in its precision."""
    for device in named(job.device):
        if reason := device.lacks(job.precision):
            raise UsageError(
                f"{job.precision} on {device.name}: {reason}. Ask for another precision, as in "
                f"{job.target}@{job.device}:fp32, or for another device."
            )
