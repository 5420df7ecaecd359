"""Tracing: names, dims, ranges, opsets and paths of the golden graph; and what is said of a dim that is not dynamic."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

import graphwright as gw
from graphwright.errors import BuildError, Exit, InputError, UsageError
from graphwright.export.trace import digest, trace
from graphwright.spec import PATH, RANGES, ModelSpec

BOTH = {0: "batch", 1: "sequence"}

MakeSpec = Callable[..., ModelSpec]
Result = Callable[["Small", torch.Tensor, torch.Tensor], Any]


class Small(torch.nn.Module):
    """One linear layer over x [batch, sequence, 4] and, where given, other; what it returns is the test's."""

    positions: torch.Tensor

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("positions", torch.randn(64, 4))
        self.result = result

    def forward(self, x: torch.Tensor, other: Any = None) -> Any:
        return self.result(self, x, other)


def small(result: Result, x: tuple[int, ...] = (2, 6, 4), **changed: Any) -> ModelSpec:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"inputs": {"x": torch.randn(*x)}, "dynamic": {"x": BOTH}, "name": "small"}
    return ModelSpec(Small(result).eval(), **{**fields, **changed})


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {value.name: [dim if isinstance(dim, int) else dim.value for dim in value.shape] for value in values}


def dims(model: ir.Model) -> set[str]:
    """The symbols in all shapes of a graph, those in formulas too."""
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    texts = [str(dim) for value in values for dim in value.shape or () if not isinstance(dim, int)]
    return {word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text)}


@pytest.fixture(scope="module")
def golden(make_spec: MakeSpec) -> ir.Model:
    return gw.to_onnx(make_spec())


def test_inputs_and_outputs_bear_the_users_names_and_dims(golden: ir.Model) -> None:
    both: list[int | str] = ["batch", "sequence"]
    assert shapes(golden.graph.inputs) == {"input_ids": both, "attention_mask": both}
    assert shapes(golden.graph.outputs) == {"embedding": ["batch", 16], "tokens": [*both, 16]}
    assert dims(golden) <= {"batch", "sequence", "max", "min"}
    onnx.checker.check_model(ir.to_proto(golden), full_check=True)


def test_the_graph_is_standard_and_says_what_was_proved(golden: ir.Model) -> None:
    assert golden.opset_imports == {"": 23}
    assert golden.ir_version == 10
    assert golden.graph.name == "tiny"
    assert not golden.functions
    assert {node.domain for node in golden.graph.all_nodes()} == {""}
    assert dict(golden.metadata_props) == {RANGES: '{"batch": [1, null], "sequence": [1, null]}'}


def test_every_node_of_a_module_keeps_its_path_and_nothing_else(golden: ir.Model) -> None:
    paths = {node.op_type: node.metadata_props.get(PATH) for node in golden.graph}
    assert paths["Attention"] == "layers.1"
    assert paths["LayerNormalization"] == "layers.1.norm"
    assert {key for node in golden.graph.all_nodes() for key in node.metadata_props} == {PATH}


@pytest.mark.parametrize("opset", [18, 20])
def test_older_opsets(make_spec: MakeSpec, golden: ir.Model, opset: int) -> None:
    model = gw.to_onnx(make_spec(), opset)
    assert model.opset_imports == {"": opset}
    assert shapes(model.graph.outputs) == shapes(golden.graph.outputs)
    assert "Attention" not in {node.op_type for node in model.graph}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("opset", [17, 24])
def test_other_opsets_are_refused(make_spec: MakeSpec, opset: int) -> None:
    with pytest.raises(UsageError, match=f"Opset {opset} is not one that can be exported: take 18 to 23"):
        gw.to_onnx(make_spec(), opset)


def test_an_example_of_one_stays_dynamic(make_spec: MakeSpec, golden: ir.Model) -> None:
    model = gw.to_onnx(make_spec(batch=1, sequence=1))
    assert shapes(model.graph.outputs) == shapes(golden.graph.outputs)
    assert dims(model) <= {"batch", "sequence", "max", "min"}


def test_dims_of_equal_size_in_the_example_stay_apart() -> None:
    model = gw.to_onnx(small(lambda module, x, other: module.linear(x) @ x.transpose(1, 2), x=(4, 4, 4)))
    assert shapes(model.graph.outputs) == {"output_0": ["batch", "sequence", "sequence"]}


def test_a_module_in_training_is_exported_in_evaluation_and_left_as_it_was(
    make_spec: MakeSpec, golden: ir.Model
) -> None:
    spec = make_spec()
    spec.module.train()
    frozen = spec.module.get_submodule("layers.0.norm").eval()
    model = gw.to_onnx(spec)
    assert [node.op_type for node in model.graph] == [node.op_type for node in golden.graph]
    modes = {name: part.training for name, part in spec.module.named_modules()}
    assert not frozen.training
    assert [name for name, training in modes.items() if not training] == ["layers.0.norm"]


# --- what forward takes and returns


def both(module: Small, x: torch.Tensor, other: Any) -> Any:
    hidden = module.linear(x)
    return hidden, (hidden.mean(1), None), [{"sum": hidden.sum()}]


def none_among(module: Small, x: torch.Tensor, other: Any) -> Any:
    return {"scores": None, "hidden": module.linear(x), "past": {0: x + 1, "k": [x + 2]}}


def twice(module: Small, x: torch.Tensor, other: Any) -> Any:
    hidden = module.linear(x)
    return {"a": hidden, "b": hidden, "same": x, "weights": module.positions, "size": x.shape[0]}


def inner_names(module: Small, x: torch.Tensor, other: Any) -> Any:
    hidden = module.linear(x)
    return {"linear": hidden + 1, "linear.inner": hidden * 2, "linear.weight": hidden - 1}


FREE: list[int | str] = ["batch", "sequence", 4]


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        (lambda module, x, other: module.linear(x), {"output_0": FREE}),
        (both, {"output_0": FREE, "output_1.0": ["batch", 4], "output_2.0.sum": []}),
        (none_among, {"hidden": FREE, "past.0": FREE, "past.k.0": FREE}),
        (twice, {"a": FREE, "b": FREE, "same": FREE, "weights": [64, 4], "size": []}),
        (inner_names, {"linear": FREE, "linear.inner": FREE, "linear.weight": FREE}),
    ],
)
def test_names_of_outputs(result: Result, wanted: dict[str, list[int | str]]) -> None:
    model = gw.to_onnx(small(result))
    assert shapes(model.graph.outputs) == wanted
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_dataclasses_and_named_tuples_name_their_outputs(tmp_path: Path) -> None:
    # two classes of one name, as when a file is loaded twice
    code = (
        "import dataclasses, typing, torch, graphwright as gw\n"
        "Pair = typing.NamedTuple('Pair', [('first', torch.Tensor), ('second', object)])\n"
        "@dataclasses.dataclass\n"
        "class Out:\n    hidden: torch.Tensor\n    loss: torch.Tensor | None = None\n    pair: object = ()\n"
        "class Module(torch.nn.Module):\n"
        "    def forward(self, x): return Out(x + 1, None, Pair(x + 2, [x + 3]))\n"
        "def spec(): return gw.ModelSpec(Module(), {'x': torch.ones(2, 3)}, {'x': {0: 'batch'}})\n"
    )
    (tmp_path / "model.py").write_text(code)
    for _ in range(2):
        names = [value.name for value in gw.to_onnx(f"{tmp_path / 'model.py'}:spec").graph.outputs]
        assert names == ["hidden", "pair.first", "pair.second.0"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda module, x, other: {"n": 3, "x": x + 1}, r"Small\.forward returns 3 as 'n': return tensors only"),
        (lambda module, x, other: {"x": x + 1}, r"returns 'x', which is the name of an input too.* such as 'new_x'"),
        (lambda module, x, other: {"y": None}, r"Small\.forward returns no tensor, so there is nothing to export"),
        (lambda module, x, other: None, r"Small\.forward returns no tensor"),
        (lambda module, x, other: x.bfloat16(), r"Output 'output_0' of 'small' is bfloat16, which numpy arrays cannot"),
    ],
)
def test_results_that_are_no_outputs(result: Result, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gw.to_onnx(small(result))


def cached(module: Small, x: torch.Tensor, other: Any) -> Any:
    pairs = list(other.values()) if isinstance(other, dict) else [half for pair in other for half in pair]
    return {"hidden": module.linear(x), "present": [half * place for place, half in enumerate(pairs, 2)]}


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (
            ((torch.ones(2, 3), torch.ones(2, 3)), (torch.ones(2, 3), torch.ones(2, 3))),
            ["other.0.0", "other.0.1", "other.1.0", "other.1.1"],
        ),
        ({"value": torch.ones(2, 3), "key": torch.ones(2, 3)}, ["other.value", "other.key"]),
    ],
)
def test_nested_inputs_keep_their_order_and_dims(other: Any, names: list[str]) -> None:
    past = {0: "batch", 1: "past"}
    spec = small(cached, inputs={"other": other, "x": torch.ones(2, 6, 4)}, dynamic={"x": BOTH})
    spec = ModelSpec(spec.module, spec.inputs, {"x": BOTH, **dict.fromkeys(names, past)})
    model = gw.to_onnx(spec)  # which proves that no two inputs changed places: each is scaled by another number
    assert list(shapes(model.graph.inputs)) == [*names, "x"]
    outputs = shapes(model.graph.outputs)
    assert list(outputs) == ["hidden", *(f"present.{number}" for number in range(len(names)))]
    assert outputs["present.1"] == ["batch", "past"]


def test_an_input_that_forward_ignores_stays_an_input() -> None:
    spec = small(
        lambda module, x, other: module.linear(x),
        inputs={"x": torch.ones(2, 6, 4), "other": torch.ones(2, 7)},
        dynamic={"x": BOTH, "other": {0: "batch", 1: "width"}},
    )
    graph = gw.to_onnx(spec).graph
    assert shapes(graph.inputs) == {"x": FREE, "other": ["batch", "width"]}
    assert shapes(graph.outputs) == {"output_0": FREE}


# --- dims that are not what the user says


def sliced(module: Small, x: torch.Tensor, other: Any) -> Any:
    return {"y": module.linear(x) + module.positions[: x.shape[1]]}


def branched(module: Small, x: torch.Tensor, other: Any) -> Any:
    return {"y": module.linear(x) if x.shape[1] > 4 else x + 1}


def differences(module: Small, x: torch.Tensor, other: Any) -> Any:
    return {"y": module.linear(x)[:, 1:] - x[:, :-1]}


def fixed(module: Small, x: torch.Tensor, other: Any) -> Any:
    length = int(x.shape[1])
    return {"y": module.linear(x) + module.positions[None, :6] * length}


def halves(module: Small, x: torch.Tensor, other: Any) -> Any:
    return {"y": module.linear(x).reshape(x.shape[0], -1, 2, 4)}


def added(module: Small, x: torch.Tensor, other: Any) -> Any:
    return {"y": module.linear(x) + other}


def shifted(module: Small, x: torch.Tensor, other: Any) -> Any:
    return {"y": module.linear(x) + other[:, 1:]}


@pytest.mark.parametrize(
    ("result", "wanted"),
    [(sliced, [1, 64]), (branched, [5, None]), (differences, [1, None])],
)
def test_ranges_that_the_export_proves(result: Result, wanted: list[int | None]) -> None:
    model = gw.to_onnx(small(result))
    assert json.loads(model.metadata_props[RANGES]) == {"batch": [1, None], "sequence": wanted}


@pytest.mark.parametrize(
    ("result", "given", "takes"), [(sliced, (1, 32, 512), "1 to 64"), (branched, (1, 6, 10), "5 to 10")]
)
def test_a_range_wider_than_what_the_model_takes(result: Result, given: tuple[int, int, int], takes: str) -> None:
    wanted = (
        rf"Range of 'sequence' is {given[0]} to {given[2]}, but the model takes {takes} only.*"
        r"narrow ModelSpec\.ranges\['sequence'\]"
    )
    with pytest.raises(UsageError, match=wanted) as caught:
        gw.to_onnx(small(result, ranges={"sequence": given}))
    assert caught.value.code is Exit.USAGE


def test_a_range_that_the_model_takes_is_what_is_proved() -> None:
    model = gw.to_onnx(small(sliced, ranges={"sequence": (2, 6, 32)}))
    assert json.loads(model.metadata_props[RANGES])["sequence"] == [2, 32]


def test_a_specialised_dim_is_named_with_the_line_that_did_it() -> None:
    lines = Path(__file__).read_text().splitlines()
    number = next(place for place, line in enumerate(lines, 1) if line.strip() == "length = int(x.shape[1])")
    cause = re.escape(f"`length = int(x.shape[1])` ({__file__}:{number})")
    wanted = f"^Dynamic dim 'sequence' is not dynamic: the model specialised it to 6 by {cause}. .*or leave 'sequence'"
    with pytest.raises(InputError, match=wanted) as caught:
        gw.to_onnx(small(fixed))
    assert caught.value.code is Exit.INPUT


SECOND = {"inputs": {"x": torch.ones(2, 6, 4), "other": torch.ones(2, 6, 4)}}


@pytest.mark.parametrize(
    ("result", "changed", "kind", "message"),
    [
        (halves, {}, InputError, r"Dynamic dim 'sequence' is not free: the model takes only sequence = 2\*n\b"),
        (
            added,
            {**SECOND, "dynamic": {"x": BOTH, "other": {0: "batch", 1: "N"}}},
            UsageError,
            r"Dynamic dims '(N|sequence)' and '(N|sequence)' are always equal: give both axes one name\.",
        ),
        (
            shifted,
            {
                "inputs": {"x": torch.ones(2, 6, 4), "other": torch.ones(2, 7, 4)},
                "dynamic": {"x": BOTH, "other": {0: "batch", 1: "total"}},
            },
            InputError,
            r"Dynamic dim 'total' is not free: the model takes only total = sequence \+ 1\. Leave 'total' static",
        ),
    ],
)
def test_dims_that_depend_on_one_another(
    result: Result, changed: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        gw.to_onnx(small(result, **changed))


def broken(module: Small, x: torch.Tensor, other: Any) -> Any:
    raise LookupError("no such mode")


def test_a_model_that_cannot_be_traced_says_why() -> None:
    with pytest.raises(BuildError, match=r"torch\.export could not trace 'small': LookupError: no such mode") as caught:
        gw.to_onnx(small(broken))
    assert caught.value.code is Exit.BUILD


# --- what a golden graph is stored under


def same(axes: dict[int, str]) -> dict[str, dict[int, str]]:
    return {"input_ids": axes, "attention_mask": axes}


def test_the_digest_changes_with_all_that_the_graph_is_made_from(make_spec: MakeSpec) -> None:
    specs = {
        "as it is": make_spec(),
        "weights": make_spec(seed=1),
        "model's name": make_spec(name="other"),
        "names of dims": make_spec(dynamic=same({0: "batch", 1: "words"})),
        "dims": make_spec(dynamic=same({0: "batch"})),
        "ranges": make_spec(ranges={"sequence": (1, 5, 16)}),
        "code": small(lambda module, x, other: {"y": module.linear(x)}),
        "other code": small(lambda module, x, other: {"y": module.linear(x) + 1}),
        "names of outputs": small(lambda module, x, other: {"z": module.linear(x)}),
    }
    found = {digest(spec, trace(spec)): name for name, spec in specs.items()}
    assert sorted(found.values()) == sorted(specs)


def test_the_digest_is_that_of_other_example_values(make_spec: MakeSpec) -> None:
    one, other = make_spec(), make_spec(batch=3, sequence=7)
    assert digest(one, trace(one)) == digest(other, trace(other))


def test_the_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import torch, graphwright as gw\n"
        "from graphwright.export.trace import digest, trace\n"
        "torch.manual_seed(0)\n"
        "layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()\n"
        "spec = gw.ModelSpec(layer, {'src': torch.ones(2, 3, 8)}, {'src': {0: 'batch', 1: 'sequence'}})\n"
        "print(digest(spec, trace(spec)))\n"
    )
    (tmp_path / "model.py").write_text(code)
    command = [sys.executable, str(tmp_path / "model.py")]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONHASHSEED": seed, "HOME": "/tmp"})
        for seed in ("1", "2")
    ]
    first, second = (run.communicate()[0] for run in runs)
    assert first == second
    assert re.fullmatch(r"[0-9a-f]{64}\n", first)
