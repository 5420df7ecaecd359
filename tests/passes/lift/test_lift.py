"""lift as a whole: real exports of three opsets, module paths, an input that stays as it was, and a second lift."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.export import ExportedProgram
from torch.nn import functional

from graphwright.export.trace import convert, trace
from graphwright.passes import lift
from graphwright.runtimes.reference import TorchSession
from graphwright.spec import PATH, SITE, ModelSpec

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# float32, outputs of size 1 to 4: linear layers of 16 terms and an attention over at most 7 keys, in another order
RTOL, ATOL = 1e-5, 5e-6
SCALE = 8**-0.5


class Attend(torch.nn.Module):
    """Projections to two heads of 8, then one spelling of attention."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.q, self.k, self.v = (torch.nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        allowed = mask[:, None, None, :]
        added = torch.where(allowed, 0.0, torch.finfo(x.dtype).min)
        sdpa = functional.scaled_dot_product_attention
        match self.spelling:
            case "sdpa_bool":
                return sdpa(q, k, v, attn_mask=allowed)
            case "sdpa_float":
                return sdpa(q, k, v, attn_mask=added)
            case "sdpa_none":
                return sdpa(q, k, v)
            case "sdpa_causal":
                return sdpa(q, k, v, is_causal=True)
            case "scaled_q":
                scores = (q * SCALE) @ k.transpose(-1, -2) + added
            case "scaled_k":
                scores = added + q @ (k * SCALE).transpose(-1, -2)
            case "by_mul":
                scores = (q @ k.transpose(-1, -2)) * SCALE + added
            case "by_div":
                scores = (q @ k.transpose(-1, -2) / SCALE**-1).masked_fill(~allowed, -torch.inf)
        mixed: torch.Tensor = scores.softmax(-1) @ v
        return mixed


class MultiHead(torch.nn.Module):
    """torch's own layer; with weights it takes the batched form of rank 3."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights = weights
        self.layer = torch.nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x, x, need_weights=self.weights, key_padding_mask=~mask)[0]  # type: ignore[no-any-return]


class Norm(torch.nn.Module):
    """LayerNorm by hand, with torch's var or in full."""

    def __init__(self, var: bool) -> None:
        super().__init__()
        self.var = var
        self.scale, self.bias = (torch.nn.Parameter(torch.randn(16)) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        if self.var:
            variance = x.var(-1, unbiased=False, keepdim=True)
            return (x - mean) * torch.rsqrt(variance + 1e-5) * self.scale + self.bias
        return self.scale * (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5) + self.bias


class Gelu(torch.nn.GELU):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


SPELLINGS = (
    *("sdpa_bool", "sdpa_float", "sdpa_none", "sdpa_causal"),
    *("scaled_q", "scaled_k", "by_mul", "by_div"),
)


class Zoo(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleDict({name: Attend(name) for name in SPELLINGS})
        self.parts.update({"mha": MultiHead(weights=False), "mha_weights": MultiHead(weights=True)})
        self.parts.update({"gelu": Gelu(), "gelu_tanh": Gelu("tanh")})
        self.parts.update({"norm": Norm(var=False), "norm_var": Norm(var=True)})

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: part(x, mask) for name, part in self.parts.items()}


def feeds(batch: int, length: int) -> Arrays:
    random = np.random.default_rng(batch * length)
    mask = random.random((batch, length)) < 0.6
    mask[:, 0] = True
    return {"x": random.standard_normal((batch, length, 16)).astype(np.float32), "mask": mask}


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    torch.manual_seed(0)
    dims = {0: "batch", 1: "sequence"}
    inputs = {name: torch.from_numpy(array) for name, array in feeds(2, 5).items()}
    return ModelSpec(Zoo(), inputs, dynamic={"x": dims, "mask": dims}, name="zoo")


@pytest.fixture(scope="module")
def program(spec: ModelSpec) -> ExportedProgram:
    return trace(spec)


@pytest.fixture(scope="module", params=[18, 20, 23])
def golden(request: pytest.FixtureRequest, spec: ModelSpec, program: ExportedProgram) -> ir.Model:
    return convert(spec, program, request.param)


EAGER = {"scaled_q": "added mask, scaled Q, K", "scaled_k": "added mask", "by_mul": "scaled scores, added mask"}
EAGER |= {"by_div": "scaled scores, Where mask"}
SDPA = {"sdpa_bool": "added mask, scaled Q, K, NaN guard", "sdpa_float": "added mask, scaled Q, K"}
SDPA |= {"sdpa_none": "scaled Q, K", "sdpa_causal": "added mask, scaled Q, K", "mha.layer": "added mask, scaled Q, K"}


def expected_sites(opset: int) -> dict[str, tuple[str, str, str, str]]:
    """Module path -> kind, status, spelling, reason."""
    ready, exact = opset >= 23, opset >= 20
    sites = {name: ("attention", "lifted", f"softmax(QK)V, {how}", "") for name, how in EAGER.items()}
    for name, how in SDPA.items():
        sites[name] = ("attention", "lifted", "Attention" if ready else f"softmax(QK)V, {how}", "")
    sites["mha_weights.layer"] = ("attention", "lifted", "softmax(QK)V, added mask, scaled Q, K, regrouped axes", "")
    sites["gelu"] = ("gelu", "lifted", "Gelu" if exact else "Erf form", "")
    sites["gelu_tanh"] = ("gelu", "lifted", "Gelu" if exact else "Tanh form", "")
    sites |= dict.fromkeys(("norm", "norm_var"), ("layer_norm", "lifted", "primitives", ""))
    return {f"parts.{name}": site for name, site in sites.items()}


def test_an_export_is_lifted(golden: ir.Model, spec: ModelSpec, run: Run) -> None:
    lifted = lift(golden)
    sites = {site.path: (site.kind, site.status, site.spelling, site.reason) for site in lifted.log.sites}
    assert len(sites) == len(lifted.log.sites)
    assert sites == expected_sites(golden.opset_imports[""])
    assert lifted.model.opset_imports == {"": 23}
    with TorchSession(spec) as reference:
        for case in (feeds(1, 1), feeds(1, 6), feeds(3, 7)):
            wanted, got = reference.run(case), run(lifted.model, case)
            for name, array in wanted.items():
                np.testing.assert_allclose(got[name], array, rtol=RTOL, atol=ATOL, err_msg=name)


def test_the_core_of_a_site_bears_its_kind_and_path(golden: ir.Model) -> None:
    model = lift(golden).model
    cores = {node.metadata_props[PATH]: node for node in model.graph if SITE in node.metadata_props}
    ops = {"attention": "Attention", "gelu": "Gelu", "layer_norm": "LayerNormalization"}
    wanted = {path: site[0] for path, site in expected_sites(23).items() if site[1] == "lifted"}
    assert {path: (node.op_type, node.metadata_props[SITE]) for path, node in cores.items()} == {
        path: (ops[kind], kind) for path, kind in wanted.items()
    }
    # what the module returns is what its core gives: nothing of the spelling is left behind it
    for value in model.graph.outputs:
        path = f"parts.{value.name}"
        assert path not in cores or value.producer() is cores[path]
    # only sizes that several modules share belong to none of them
    without = {node.op_type for node in model.graph if PATH not in node.metadata_props}
    assert without <= {"Shape", "Squeeze", "Concat"}
    assert all(not node.metadata_props.get(PATH, "").startswith("_") for node in model.graph)


def test_one_mask_serves_all_that_mean_the_same(golden: ir.Model) -> None:
    cores = {node.metadata_props[PATH]: node for node in lift(golden).model.graph if SITE in node.metadata_props}
    shared = {cores[f"parts.{name}"].inputs[3] for name in ("sdpa_bool", "sdpa_float", *EAGER)}
    assert len(shared) == 1
    (mask,) = shared
    assert mask is not None
    assert mask.dtype == ir.DataType.BOOL
    assert str(mask.shape) == "[batch,1,sequence,sequence]"


def content(model: ir.Model) -> bytes:
    """The graph as bytes, without what is known of the shapes inside it: a second inference may know more."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString(deterministic=True))


def test_the_input_stays_as_it_was(golden: ir.Model) -> None:
    before = ir.to_proto(golden).SerializeToString(deterministic=True)
    lift(golden)
    assert ir.to_proto(golden).SerializeToString(deterministic=True) == before


def test_a_second_lift_changes_nothing_and_logs_the_sites_again(golden: ir.Model) -> None:
    once = lift(golden)
    twice = lift(once.model)
    assert content(twice.model) == content(once.model)
    first, second = ({site.path: site for site in log.sites} for log in (once.log, twice.log))
    assert first.keys() == second.keys()
    for path, site in second.items():
        assert (site.kind, site.status, site.reason) == (first[path].kind, first[path].status, first[path].reason)
        ready = {"attention": "Attention", "gelu": "Gelu", "layer_norm": "LayerNormalization"}[site.kind]
        assert site.spelling == (ready if site.status == "lifted" else first[path].spelling)


@pytest.mark.parametrize("first", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("masked", ["Where(drop, low, p{0})", "Add(p{0}, bias)"])
def test_sites_in_the_body_of_an_if_are_lifted_there(masked: str, first: bool, compare: Compare) -> None:
    attend = f"p{{0}} = MatMul(q, kt) s{{0}} = {masked} w{{0}} = Softmax(s{{0}}) {{0}} = MatMul(w{{0}}, v)"
    norm = "m = ReduceMean(v, last) d = Sub(v, m) dd = Mul(d, d) t = ReduceMean(dd, last) e = Add(t, eps) r = Sqrt(e)"
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        branches (bool flag, float[B, 2, S, 8] q, float[B, 2, 8, S] kt, float[B, 2, S, 8] v, bool[B, 1, 1, S] drop,
            float[B, 1, 1, S] bias)
            => (float[B, 2, S, 8] y, float[B, 2, S, 8] c)
        <float low = {{-inf}}, int64[1] last = {{-1}}, float eps = {{1e-3}}, float root = {{1.4142135}},
         float one = {{1}}, float half = {{0.5}}> {{
            {attend.format("c") if first else ""}
            y = If (flag) <
                then_branch = then () => (float[B, 2, S, 8] a) {{ {attend.format("a")} }},
                else_branch = other () => (float[B, 2, S, 8] b) {{
                    {norm} n = Div(d, r) u = Div(n, root) f = Erf(u) g = Add(f, one) h = Mul(n, g) b = Mul(h, half) }}
            >
            {"" if first else attend.format("c")}
        }}""")
    lifted = lift(model)
    assert sorted((site.kind, site.status) for site in lifted.log.sites) == [
        ("attention", "lifted"),
        ("attention", "lifted"),
        ("gelu", "lifted"),
        ("layer_norm", "lifted"),
    ]
    (branch,) = [node for node in lifted.model.graph if node.op_type == "If"]
    bodies = [branch.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    assert [node.op_type for node in bodies[0]][-1] == "Attention"
    assert [node.op_type for node in bodies[1]] == ["LayerNormalization", "Gelu"]
    random = np.random.default_rng(0)
    for batch, length, flag in ((1, 1, True), (1, 6, True), (2, 5, True), (2, 5, False)):
        shapes = {"q": (batch, 2, length, 8), "kt": (batch, 2, 8, length), "v": (batch, 2, length, 8)}
        case: Arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        case["drop"] = random.random((batch, 1, 1, length)) < 0.4
        case["drop"][..., 0] = False
        case["bias"] = random.standard_normal((batch, 1, 1, length)).astype(np.float32)
        compare(model, lifted.model, [case | {"flag": np.array(flag)}], RTOL, ATOL)
