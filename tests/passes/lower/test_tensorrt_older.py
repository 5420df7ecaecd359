"""For TensorRT 10.3 a graph holds no op that its parser lacks, and computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.errors import BuildError
from graphwright.passes import lowered_to, optimize
from graphwright.passes.lower.tensorrt_older import SayInOlderOps
from graphwright.runtimes.tensorrt_versions import OPS_SINCE, needs_typed_flag, ops_of, version_of
from graphwright.spec import PATH, SITE

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
JETSON = (10, 3)
CACHES = "float[B, S, {r}] c, float[B, S, {r}] s"


def make(inputs: str, body: str, y: str, site: str) -> ir.Model:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]> g ({inputs}) => (float[{y}] y) {{ {body} }}""")
    model.graph.node(0).metadata_props.update({SITE: site, PATH: "block"})
    return model


FLAT, WHOLE = "float[B, S, 32] x", "float[B, 4, S, 8] x"
MODELS = {
    "norm": make("float[B, S, 32] x, float[32] w", "y = RMSNormalization <epsilon = 1e-2> (x, w)", "B, S, 32", "norm"),
    "norm, axis by number": make(
        "float[B, S, 32] x, float[32] w", "y = RMSNormalization <axis = 2> (x, w)", "B, S, 32", "n"
    ),
    "halves": make(f"{WHOLE}, {CACHES.format(r=4)}", "y = RotaryEmbedding (x, c, s)", "B, 4, S, 8", "rotary"),
    "neighbours": make(
        f"{WHOLE}, {CACHES.format(r=4)}", "y = RotaryEmbedding <interleaved = 1> (x, c, s)", "B, 4, S, 8", "rotary"
    ),
    "first columns": make(
        f"{WHOLE}, {CACHES.format(r=3)}", "y = RotaryEmbedding <rotary_embedding_dim = 6> (x, c, s)", "B, 4, S, 8", "r"
    ),
    "neighbours of the first columns": make(
        f"{WHOLE}, {CACHES.format(r=2)}",
        "y = RotaryEmbedding <rotary_embedding_dim = 4, interleaved = 1> (x, c, s)",
        "B, 4, S, 8",
        "r",
    ),
    "flat": make(f"{FLAT}, {CACHES.format(r=4)}", "y = RotaryEmbedding <num_heads = 4> (x, c, s)", "B, S, 32", "r"),
    "groups": make(
        "float[B, 6, S, 5] x, float[6] w, float[6] b",
        "y = GroupNormalization <num_groups = 3, epsilon = 1e-2> (x, w, b)",
        "B, 6, S, 5",
        "norm",
    ),
    "positions": make(
        f"{WHOLE}, float[9, 4] c, float[9, 4] s, int64[B, S] p", "y = RotaryEmbedding (x, c, s, p)", "B, 4, S, 8", "r"
    ),
}


def cases(model: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for sizes in ({"B": 1, "S": 1}, {"B": 2, "S": 5}, {"B": 3, "S": 8}):
        feeds = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape or ()]
            ids = value.dtype == ir.DataType.INT64
            feeds[str(value.name)] = random.integers(0, 9, shape) if ids else random.standard_normal(shape, np.float32)
        yield feeds


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same(name: str, compare: Compare) -> None:
    model, after = MODELS[name], MODELS[name].clone()
    assert SayInOlderOps(JETSON)(after).modified
    assert {node.op_type for node in after.graph}.isdisjoint(OPS_SINCE)
    assert after.opset_imports[""] == 20
    assert sum(lowered_to(after, model.graph.node(0).metadata_props[SITE]).values()) == 1
    assert not SayInOlderOps(JETSON)(after).modified
    compare(model, after, cases(model), 1e-6, 1e-6)  # float32, one product and one sum


def test_a_version_that_has_the_ops_keeps_them() -> None:
    model = MODELS["halves"].clone()
    for version in ((11, 0), (10, 15)):
        assert not SayInOlderOps(version)(model).modified
    assert SayInOlderOps((10, 14))(model).modified


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "n = Constant <value_int = 8> () h = HannWindow(n) y = Mul(x, h)",
            r"^TensorRT 10\.3 has no form for HannWindow at ",
        ),
        ("y = RMSNormalization <axis = 1> (x, v)", r"RMSNormalization at block: not over its last axis\.$"),
    ],
)
def test_what_has_no_form_is_named(body: str, message: str) -> None:
    model = make("float[B, 4, 8] x, float[4] w, float[4, 8] v", body, "B, 4, 8", "norm")
    with pytest.raises(BuildError, match=message):
        SayInOlderOps(JETSON)(model)


def test_a_newer_op_keeps_its_opset() -> None:
    model = make("float[B, 4, 8] x", 'y = Cast <to = 1, round_mode = "up"> (x)', "B, 4, 8", "cast")
    model.opset_imports[""] = 24
    assert not SayInOlderOps(JETSON)(model).modified
    assert model.opset_imports[""] == 24


def test_a_jetson_gets_primitives_where_others_get_attention() -> None:
    text = "y = Attention <scale = 0.5> (x, k, k)"
    model = make(f"{WHOLE}, float[B, 4, S, 8] k", text, "B, 4, S, 8", "attention")
    here, jetson = optimize(model, "tensorrt:fp32").model, optimize(model, "tensorrt@jetson-orin:fp32").model
    assert lowered_to(here, "attention") == {"Attention": 1}
    assert lowered_to(jetson, "attention") == {"Softmax": 1}
    assert (here.opset_imports[""], jetson.opset_imports[""]) == (23, 20)


@pytest.mark.parametrize(
    ("text", "version", "typed", "attention"),
    [
        ("10.3.0", (10, 3), True, False),
        ("10.14.1.48", (10, 14), True, True),
        ("11.4.0.106", (11, 4), False, True),
    ],
)
def test_what_differs_between_versions(text: str, version: tuple[int, int], typed: bool, attention: bool) -> None:
    assert version_of(text) == version
    assert needs_typed_flag(version) == typed
    assert ("Attention" in ops_of(version, frozenset({"Attention", "Add"}))) == attention
    assert "Add" in ops_of(version, frozenset({"Attention", "Add"}))
