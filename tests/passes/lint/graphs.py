"""What an example of a lint rule is, and the texts that many graphs share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Graph:
    """A graph as ONNX text, and the target that it is linted for."""

    body: str
    inputs: str = "float[B, S, 32] x"
    outputs: str = "float[B, S, 32] y"
    constants: str = ""
    target: str = "ort-cpu"
    opset: int = 23
    ir_version: int = 10

    @property
    def model(self) -> ir.Model:
        return ir.from_onnx_text(f"""
            <ir_version: {self.ir_version}, opset_import: ["": {self.opset}, "com.microsoft": 1]>
            example ({self.inputs}) => ({self.outputs}) <{self.constants or "float unread = {1}"}> {{ {self.body} }}""")


@dataclass(frozen=True)
class Refused:
    """The runtime refuses the bad graph with this reason, and runs (or builds) the good one."""

    reason: str


@dataclass(frozen=True)
class Leaves:
    """Of the bad graph ONNX Runtime makes one that holds these ops, of the good one it does not."""

    ops: str


@dataclass(frozen=True)
class Wrong:
    """The runtime takes the bad graph and computes something else; the good one is right (within one step of a Q)."""


@dataclass(frozen=True)
class Raw:
    """The builder itself, without what graphwright sets and checks, refuses the bad graph with this reason."""

    reason: str


@dataclass(frozen=True)
class Ignored:
    """The parser makes the same network of the bad graph as of one without the attribute."""


@dataclass(frozen=True)
class Taken:
    """The runtime at hand takes both: what the rule knows is from elsewhere."""


@dataclass(frozen=True)
class Asked:
    """The builder asks for what the bad graph lacks, in these words; of the good one it is known."""

    words: str


@dataclass(frozen=True)
class Empty:
    """The engine of the bad graph takes tensors without elements alone."""


@dataclass(frozen=True)
class NoRuntime:
    """Nothing here can run or build it."""

    why: str


Proof = Refused | Leaves | Wrong | Raw | Ignored | Taken | Asked | Empty | NoRuntime


@dataclass(frozen=True)
class Example:
    bad: Graph
    good: Graph
    proof: Proof


def ones(text: str, count: int) -> str:
    """An initializer of `count` times the number that `text` ends in: `int8[4] w = 1`."""
    head, _, number = text.rpartition(" = ")
    return f"{head} = {{{', '.join([number] * count)}}}"


def pair(bad: Graph, proof: Proof, **good: str | int) -> Example:
    """The good graph differs from the bad one in what is named."""
    return Example(bad, replace(bad, **good), proof)  # type: ignore[arg-type]


RTX = "tensorrt-rtx@sm89"
QKV = "float16[B, 2, S, 16] q, float16[B, 2, T, 16] k, float16[B, 2, T, 16] v"
QKV32 = QKV.replace("float16", "float")
Y = "float16[B, 2, S, 16] y"
W = ones("int8[32, 32] w = 1", 1024)
SCALES = "float xs = {0.05}, float ws = {0.1}, uint8 z = {128}, int8 s = {0}"
QUANT = f"{W}, {SCALES}"
BIAS = ones("float[32] e = 1", 32)
MATRIX = ("float[B, 32] x", "float[B, 32] y")
STATIC = ("float[2, 4, 32] x", "float[2, 4, 32] y")
PRODUCT = (
    "a = QuantizeLinear(x, xs, {z}) b = DequantizeLinear(a, xs, {z}) "
    "c = DequantizeLinear(w, ws, s) {out} = MatMul(b, c)"
)
PAIR = "a = QuantizeLinear{attr}(x, xs, {z}) y = DequantizeLinear{attr}(a, xs, {z})"
GEMM = PRODUCT.format(z="z", out="y").replace("MatMul(b, c)", "Gemm(b, c{bias})")
U8, S8 = PRODUCT.format(z="z", out="y"), PRODUCT.format(z="s", out="y")


def attention(call: str, more: str = "", y: str = Y, target: str = RTX, opset: int = 23) -> Graph:
    inputs = QKV32 if target == "ort-cpu" else QKV
    return Graph(call, inputs + more, y.replace("float16", "float") if target == "ort-cpu" else y, "", target, opset)


def q_around(op: str, op_out: str = "c = {op}(b)") -> str:
    call = op_out.format(op=op)
    return (
        f"a = QuantizeLinear(x, xs, z) b = DequantizeLinear(a, xs, z) {call} d = QuantizeLinear(c, xs, z) "
        "y = DequantizeLinear(d, xs, z)"
    )


def trt(body: str, constants: str = "", inputs: str = "", outputs: str = "", target: str = RTX, **more: int) -> Graph:
    given = {"inputs": inputs, "outputs": outputs}
    return Graph(body, constants=constants, target=target, **{k: v for k, v in given.items() if v}, **more)  # type: ignore[arg-type]


def feeds(graph: Graph) -> dict[str, np.ndarray]:
    """Ones for each input; dims have different sizes."""
    sizes = {"B": 3, "S": 4, "T": 5, "N": 6}
    made = {}
    for value in graph.model.graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape or ()]
        assert value.dtype is not None
        made[str(value.name)] = np.ones(shape, value.dtype.numpy())
    return made
