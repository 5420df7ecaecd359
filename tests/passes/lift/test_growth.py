"""What lift costs grows linearly with the graph: counted in calls of functions, which no busy machine changes."""

from __future__ import annotations

import cProfile
import pstats

import numpy as np
import onnx_ir as ir

from graphwright.passes import lift

WIDTH, HEADS = 16, 2
# self-attention and a feed-forward part, each with its residual and LayerNorm, as exporters of opset 13 spell them
LAYER = """
    q0_{n} = MatMul({x}, wq_{n})  q1_{n} = Reshape(q0_{n}, split)  q_{n} = Transpose <perm = [0, 2, 1, 3]> (q1_{n})
    k0_{n} = MatMul({x}, wk_{n})  k1_{n} = Reshape(k0_{n}, split)  k_{n} = Transpose <perm = [0, 2, 3, 1]> (k1_{n})
    v0_{n} = MatMul({x}, wv_{n})  v1_{n} = Reshape(v0_{n}, split)  v_{n} = Transpose <perm = [0, 2, 1, 3]> (v1_{n})
    s0_{n} = MatMul(q_{n}, k_{n})  s1_{n} = Div(s0_{n}, root)  s2_{n} = Add(s1_{n}, bias)
    p_{n} = Softmax <axis = -1> (s2_{n})  c0_{n} = MatMul(p_{n}, v_{n})
    c1_{n} = Transpose <perm = [0, 2, 1, 3]> (c0_{n})  c_{n} = Reshape(c1_{n}, join)  r_{n} = Add(c_{n}, {x})
    m_{n} = ReduceMean <axes = [-1]> (r_{n})  d_{n} = Sub(r_{n}, m_{n})  e_{n} = Mul(d_{n}, d_{n})
    f_{n} = ReduceMean <axes = [-1]> (e_{n})  g_{n} = Add(f_{n}, eps)  h_{n} = Sqrt(g_{n})
    i_{n} = Div(d_{n}, h_{n})  j_{n} = Mul(i_{n}, gamma_{n})  l_{n} = Add(j_{n}, beta_{n})
    a0_{n} = MatMul(l_{n}, wo_{n})  a1_{n} = Div(a0_{n}, two)  a2_{n} = Erf(a1_{n})  a3_{n} = Add(a2_{n}, one)
    a4_{n} = Mul(a0_{n}, a3_{n})  a5_{n} = Mul(a4_{n}, half)  y_{n} = Add(a5_{n}, l_{n})"""
NUMBERS = {"root": 8.0**0.5, "eps": 1e-12, "two": 2.0**0.5, "one": 1.0, "half": 0.5}


def encoder(layers: int) -> ir.Model:
    body = "".join(LAYER.format(n=n, x=f"y_{n - 1}" if n else "x") for n in range(layers))
    model = ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": 13]>
        encoder (float[B, S, {WIDTH}] x, int64[B, S] mask) => (float[B, S, {WIDTH}] y_{layers - 1}) {{
            axes = Constant <value = int64[2] {{1, 2}}> ()  flags = Unsqueeze(mask, axes)  kept = Cast <to = 1> (flags)
            low = Constant <value = float {{-10000.0}}> ()  forbidden = Sub(one, kept)  bias = Mul(forbidden, low)
            {body} }}""")
    random = np.random.default_rng(0)
    arrays = {name: np.array(number, np.float32) for name, number in NUMBERS.items()}
    arrays |= {"split": np.array([0, 0, HEADS, WIDTH // HEADS]), "join": np.array([0, 0, WIDTH])}
    for name in [f"{name}_{n}" for n in range(layers) for name in ("wq", "wk", "wv", "wo")]:
        arrays[name] = random.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    for name in [f"{name}_{n}" for n in range(layers) for name in ("gamma", "beta")]:
        arrays[name] = random.standard_normal(WIDTH).astype(np.float32)
    read = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        read[name].const_value = ir.tensor(array, name=name)
        read[name].type, read[name].shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        model.graph.register_initializer(read[name])
    return model


def calls(layers: int) -> int:
    """Calls of functions in one lift."""
    model = encoder(layers)
    with cProfile.Profile() as profile:
        lifted = lift(model)
    assert sum(site.kind == "attention" for site in lifted.log.sites) == layers
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_four_times_the_layers_take_four_times_the_calls() -> None:
    calls(2)  # what is made once for a process
    few, many = calls(8), calls(32)
    assert many < 4.4 * few
