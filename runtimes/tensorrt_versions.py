"""What differs between the versions of TensorRT that one code serves: 10.3 on Jetson to 11."""

from __future__ import annotations

import re

Version = tuple[int, int]

NEWEST: Version = (11, 0)  # what is lowered for where no device says another
# The first version whose parser imports the op, by NVIDIA's changelog of TensorRT and onnx-tensorrt's docs/operators.md
OPS_SINCE: dict[str, Version] = {
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
    "Swish": (11, 0),
    "LinearAttention": (11, 0),
    "CausalConvWithState": (11, 0),
    "GroupNormalization": (10, 4),  # older ones know scales of groups, as before opset 21, and not of channels
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "STFT"), (10, 4)),
}
OPSET_BEFORE_11 = 20  # the newest that the parsers of 10.0 to 10.3 are documented to take


def version_of(text: str) -> Version:
    """Major and minor number of a version as packages write it."""
    numbers = [int(number) for number in re.findall(r"\d+", text)[:2]]
    return numbers[0], numbers[1]


def needs_typed_flag(version: Version) -> bool:
    """Whether a network must be asked to be strongly typed; from 11 on every network is, and the flag is deprecated."""
    return version < (11, 0)


def ops_of(version: Version, newest: frozenset[str]) -> frozenset[str]:
    """Those of the `newest` version's ops that `version` imports."""
    return frozenset(op for op in newest if OPS_SINCE.get(op, (0, 0)) <= version)
