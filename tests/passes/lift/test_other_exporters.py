"""Graphs as other exporters spell them (tf2onnx, keras2onnx, by hand): one self-attention with a residual and a norm.

Each is lifted from its own opset: its attention is found, and it computes on what it computed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift, optimize

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

WIDTH, HEADS, DEPTH = 16, 2, 8
# the weights that a graph below may read
SHAPES = {
    **{f"w{name}": (WIDTH, WIDTH) for name in "qkvo"},
    **{f"b{name}": (WIDTH,) for name in "qkvo"},
    **{f"e{name}": (WIDTH, HEADS, DEPTH) for name in "qkv"},
    **{f"c{name}": (HEADS, DEPTH) for name in "qkv"},
    "eo": (HEADS, DEPTH, WIDTH),
    "gamma": (WIDTH,),
    "beta": (WIDTH,),
}


def make(opset: int, body: str, functions: str = "", extra: str = "") -> ir.Model:
    """The graph x [B, S, 16], mask [B, S] (1 where a key counts) -> y [B, S, 16]; weights become initializers."""
    used = [name for name in SHAPES if f" {name}," in body or f" {name})" in body or f"({name}," in body]
    declared = "".join(f", float[{','.join(map(str, SHAPES[name]))}] {name}" for name in used)
    local = ', "local": 1' if functions else ""
    model = ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": {opset}{local}]>
        other (float[B, S, 16] x, int64[B, S] mask{extra}{declared}) => (float[B, S, 16] y) {{ {body} }}
        {functions}""")
    random = np.random.default_rng(0)
    for value in [value for value in model.graph.inputs if value.name in used]:
        model.graph.inputs.remove(value)
        array = random.standard_normal(SHAPES[str(value.name)]).astype(np.float32) / 4
        value.const_value = ir.tensor(array + (value.name == "gamma"), name=value.name)
        model.graph.register_initializer(value)
    return model


def cases(**more: np.ndarray) -> list[Arrays]:
    random = np.random.default_rng(1)
    made: list[Arrays] = []
    for batch, length in ((2, 6), (1, 1), (3, 9)):
        mask = np.ones((batch, length), np.int64)
        mask[-1, length // 2 + 1 :] = 0
        made.append({"x": random.standard_normal((batch, length, WIDTH)).astype(np.float32), "mask": mask, **more})
    return made


# --- the parts, as exporters spell them

# sizes at run time, in 32 bits as TensorFlow counts them
SIZES = """
    shape = Shape(x)  shape32 = Cast <to = 6> (shape)
    batch = Slice <starts = [0], ends = [1]> (shape32)  length = Slice <starts = [1], ends = [2]> (shape32)
    two = Constant <value = int32[1] {2}> ()  eight = Constant <value = int32[1] {8}> ()
    wide = Constant <value = int32[1] {16}> ()
    split32 = Concat <axis = 0> (batch, length, two, eight)  split = Cast <to = 7> (split32)
    whole32 = Concat <axis = 0> (batch, length, wide)  whole = Cast <to = 7> (whole32)
    flat = Constant <value = int64[2] {-1, 16}> ()"""
# TensorFlow's dense layers work on two axes
DENSE = """
    x2 = Reshape(x, flat)
    q0 = MatMul(x2, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, split)
    k0 = MatMul(x2, wk)  k1 = Add(k0, bk)  k2 = Reshape(k1, split)
    v0 = MatMul(x2, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, split)"""
HEADS_OUT = """
    back = Transpose <perm = [0, 2, 1, 3]> (context)  rows = Reshape(back, flat)
    o0 = MatMul(rows, wo)  o1 = Add(o0, bo)  o2 = Reshape(o1, whole)  r = Add(o2, x)"""
# (1 - mask) * -10000
MASK = """
    m0 = Cast <to = 1> (mask)  m1 = Unsqueeze <axes = [1, 2]> (m0)
    one = Constant <value = float {1.0}> ()  low = Constant <value = float {-10000.0}> ()
    m2 = Sub(one, m1)  bias = Mul(m2, low)"""
# tf.nn.moments and tf.nn.batch_normalization over the last axis
MOMENTS = """
    mean = ReduceMean <axes = [-1]> (r)  d = Sub(r, mean)  sq = Mul(d, d)  var = ReduceMean <axes = [-1]> (sq)
    eps = Constant <value = float {0.001}> ()  ve = Add(var, eps)  sd = Sqrt(ve)  inv = Reciprocal(sd)
    scale = Mul(inv, gamma)  a = Mul(r, scale)  c = Mul(mean, scale)  shift = Sub(beta, c)  y = Add(a, shift)"""

TF2ONNX = f"""{SIZES} {DENSE} {MASK}
    q = Transpose <perm = [0, 2, 1, 3]> (q2)  k = Transpose <perm = [0, 2, 1, 3]> (k2)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)  s0 = MatMul(q, kt)
    root = Constant <value = float {{0.35355338}}> ()  s1 = Mul(s0, root)  s2 = Add(s1, bias)
    p = Softmax <axis = 3> (s2)  context = MatMul(p, v)
    {HEADS_OUT} {MOMENTS}"""

# heads folded into the batch, keys transposed at once, scale divided over queries and keys, softmax by hand
BATCHED = f"""{SIZES} {DENSE} {MASK}
    heads = Constant <value = int64[3] {{0, 0, 0}}> ()
    q3 = Transpose <perm = [0, 2, 1, 3]> (q2)  k3 = Transpose <perm = [0, 2, 3, 1]> (k2)
    v3 = Transpose <perm = [0, 2, 1, 3]> (v2)
    bh = Mul(batch, two)
    rows3 = Concat <axis = 0> (bh, length, eight)  cols3 = Concat <axis = 0> (bh, eight, length)
    rows64 = Cast <to = 7> (rows3)  cols64 = Cast <to = 7> (cols3)
    q4 = Reshape(q3, rows64)  k4 = Reshape(k3, cols64)  v4 = Reshape(v3, rows64)
    fourth = Constant <value = float {{0.59460354}}> ()
    q = Mul(q4, fourth)  k = Mul(k4, fourth)  s0 = MatMul(q, k)
    four32 = Concat <axis = 0> (batch, two, length, length)  four = Cast <to = 7> (four32)
    s1 = Reshape(s0, four)  s2 = Add(bias, s1)
    top = ReduceMax <axes = [3]> (s2)  s3 = Sub(s2, top)  e = Exp(s3)  total = ReduceSum <axes = [3]> (e)
    p0 = Div(e, total)
    scores32 = Concat <axis = 0> (bh, length, length)  scores = Cast <to = 7> (scores32)
    p = Reshape(p0, scores)  c0 = MatMul(p, v4)
    made32 = Concat <axis = 0> (batch, two, length, eight)  made = Cast <to = 7> (made32)
    context = Reshape(c0, made)
    {HEADS_OUT} {MOMENTS}"""

# keras.layers.MultiHeadAttention: projections, scores and sums are Einsum; heads stay behind the length
EINSUM = """
    q0 = Einsum <equation = "abc,cde->abde"> (x, eq)  q1 = Add(q0, cq)
    k0 = Einsum <equation = "abc,cde->abde"> (x, ek)  k1 = Add(k0, ck)
    v0 = Einsum <equation = "abc,cde->abde"> (x, ev)  v1 = Add(v0, cv)
    root = Constant <value = float {0.35355338}> ()  q2 = Mul(q1, root)
    s0 = Einsum <equation = "aecd,abcd->acbe"> (k1, q2)
    m0 = Cast <to = 9> (mask)  m1 = Cast <to = 1> (m0)  MASK_AXES
    one = Constant <value = float {1.0}> ()  low = Constant <value = float {-1000000000.0}> ()
    m3 = Sub(one, m2)  bias = Mul(m3, low)  s1 = Add(s0, bias)
    p = Softmax <axis = -1> (s1)
    c0 = Einsum <equation = "acbe,aecd->abcd"> (p, v1)
    o0 = Einsum <equation = "abcd,cde->abe"> (c0, eo)  o1 = Add(o0, bo)  r = Add(x, o1)"""
OLD_AXES = "m2 = Unsqueeze <axes = [1, 2]> (m1)"
NEW_AXES = "axes = Constant <value = int64[2] {1, 2}> ()  m2 = Unsqueeze(m1, axes)"
LAYER_NORM = "y = LayerNormalization <axis = -1, epsilon = 0.001> (r, gamma, beta)"

# scores and softmax alone: q, k, v [B, H, S, D] and bias from around it
CORE = """
    kt = Transpose <perm = [0, 1, 3, 2]> (k)  s0 = MatMul(q, kt)  root = Constant <value = float {2.828427}> ()
    s1 = Div(s0, root)  s2 = Add(s1, bias)  p = Softmax <axis = -1> (s2)  context = MatMul(p, v)"""
AROUND = f"""{SIZES} {DENSE} {MASK}
    q = Transpose <perm = [0, 2, 1, 3]> (q2)  k = Transpose <perm = [0, 2, 1, 3]> (k2)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)"""
# from opset 13 on axes and bounds are inputs
RENEWED = {
    "Slice <starts = [0], ends = [1]> (shape32)": "Slice(shape32, zero, first)",
    "Slice <starts = [1], ends = [2]> (shape32)": "Slice(shape32, first, second)",
    "Unsqueeze <axes = [1, 2]> (m0)": "Unsqueeze(m0, both)",
}


def renewed(body: str, *ops: str) -> str:
    """`body` of opset 13; or with `ops` alone renewed."""
    for old, new in RENEWED.items():
        if not ops or old.startswith(ops):
            body = body.replace(old, new)
    return f"""zero = Constant <value = int64[1] {{0}}> ()  first = Constant <value = int64[1] {{1}}> ()
        second = Constant <value = int64[1] {{2}}> ()  both = Constant <value = int64[2] {{1, 2}}> () {body}"""


IN_BRANCH = f"""{AROUND}
    context = If (flag) <
        then_branch = masked () => (float[B, 2, S, 8] a) {{ {CORE.replace("context", "a")} }},
        else_branch = open () => (float[B, 2, S, 8] b) {{
            {CORE.replace("s2 = Add(s1, bias)", "").replace("(s2)", "(s1)").replace("context", "b")} }}>
    {HEADS_OUT} {MOMENTS}"""
IN_LOOP = f"""{AROUND}
    twice = Constant <value = int64 {{2}}> ()  yes = Constant <value = bool {{1}}> ()
    context = Loop (twice, yes, q) <
        body = step (int64 i, bool go, float[B, 2, S, 8] q) => (bool on, float[B, 2, S, 8] context) {{
            {CORE} on = Identity(go) }}>
    {HEADS_OUT} {MOMENTS}"""
IN_FUNCTION = f"""{AROUND} context = local.attend <root = 2.828427> (q, k, v, bias) {HEADS_OUT} {MOMENTS}"""
FUNCTION = """
    <domain: "local", opset_import: ["": {opset}]> attend <root> (q, k, v, bias) => (context) {{
        kt = Transpose <perm = [0, 1, 3, 2]> (k)  s0 = MatMul(q, kt)
        root = Constant <value_float: float = @root> ()  s1 = Div(s0, root)  s2 = Add(s1, bias)
        p = Softmax <axis = {axis}> (s2)  context = MatMul(p, v) }}"""

FLAG = ", bool flag"
SPELLINGS: dict[str, Callable[[], ir.Model]] = {
    "tf2onnx-9": lambda: make(9, TF2ONNX),
    "tf2onnx-11": lambda: make(11, renewed(TF2ONNX.replace("<axes = [-1]>", "<axes = [2], keepdims = 1>"), "Slice")),
    "tf2onnx-13": lambda: make(13, renewed(TF2ONNX)),
    "batched-9": lambda: make(9, BATCHED),
    "batched-13": lambda: make(
        13,
        renewed(
            BATCHED.replace("ReduceSum <axes = [3]> (e)", "ReduceSum(e, third)").replace(
                "top =", "third = Constant <value = int64[1] {3}> ()  top ="
            )
        ),
    ),
    "einsum-12": lambda: make(12, EINSUM.replace("MASK_AXES", OLD_AXES).replace("axis = -1", "axis = 3") + MOMENTS),
    "einsum-17": lambda: make(17, EINSUM.replace("MASK_AXES", NEW_AXES) + LAYER_NORM),
    "branch-13": lambda: make(13, renewed(IN_BRANCH), extra=FLAG),
    "loop-13": lambda: make(13, renewed(IN_LOOP)),
    "function-15": lambda: make(15, renewed(IN_FUNCTION), FUNCTION.format(opset=15, axis=-1)),
    "function-of-another-opset": lambda: make(15, renewed(IN_FUNCTION), FUNCTION.format(opset=12, axis=3)),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_another_spelling_is_lifted_and_computes_the_same(name: str, compare: Compare) -> None:
    model = SPELLINGS[name]()
    flags = [{"flag": np.array(value)} for value in (True, False)] if "branch" in name else [{}]
    feeds = [case for flag in flags for case in cases(**flag)]
    lifted = lift(model)
    assert lifted.model.opset_imports[""] == 23
    statuses = [site.status for site in lifted.log.sites if site.kind == "attention"]
    assert statuses == ["lifted"] * (2 if "branch" in name else 1), lifted.log.sites
    reference = model
    if name == "function-of-another-opset":  # ONNX Runtime reads functions by the model's opset
        reference = SPELLINGS["function-15"]()
    compare(reference, lifted.model, feeds, 1e-4, 1e-5)  # float32: sums in another order, behind a norm
    compare(reference, optimize(lifted, target="ort-cpu").model, feeds, 1e-4, 1e-5)
