"""Of what graph lint speaks, what it says of a place, what it costs; and that its documentation is whole."""

from __future__ import annotations

import cProfile
import pstats
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphwright as gw
from graphwright.errors import BuildError, InputError, UsageError
from graphwright.passes import TARGETS, optimize
from graphwright.passes.lint import PLACES, RULES, grouped, lint
from graphwright.spec import PATH

from .examples import EXAMPLES
from .graphs import Graph, attention

DOCS = Path(gw.__file__).resolve().parent / "docs" / "lint.md"
MASKED = EXAMPLES["ort-mask-query-dim"].bad
CONTRIB = Graph("y = com.microsoft.FastGelu(x)")
RANGES = {"B": (1, 2, 4), "S": (1, 8, 16), "T": (1, 8, 16)}


def rules(found: gw.Lint) -> list[str]:
    return [finding.rule for finding in found.findings]


def test_of_a_graph_that_which_would_be_built_is_linted() -> None:
    model = MASKED.model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert rules(gw.lint(model, "ort-cpu", as_is=True)) == ["ort-mask-query-dim"]
    built = optimize(EXAMPLES["ort-erf-gelu"].bad.model, "ort-cpu")
    assert rules(gw.lint(EXAMPLES["ort-erf-gelu"].bad.model, "ort-cpu", as_is=True)) == ["ort-erf-gelu"]
    assert rules(gw.lint(EXAMPLES["ort-erf-gelu"].bad.model, "ort-cpu")) == rules(gw.lint(built)) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_file_is_read_by_the_guarded_reader(tmp_path: Path) -> None:
    path = tmp_path / "masked.onnx"
    ir.save(MASKED.model, path)
    assert rules(lint(path, "ort-cpu", as_is=True)) == rules(lint(str(path), "ort-cpu", as_is=True))
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match=r"masked\.onnx was not read"):
        lint(path, "ort-cpu", as_is=True)


def test_the_job_is_checked_as_everywhere() -> None:
    with pytest.raises(UsageError, match="fp8 on jetson-orin"):
        lint(CONTRIB.model, "tensorrt@jetson-orin", "fp8", as_is=True)
    with pytest.raises(UsageError, match="as_is is for an ONNX graph"):
        lint(gw.lift(EXAMPLES["ort-erf-gelu"].bad.model), "ort-cpu", as_is=True)
    with pytest.raises(BuildError, match=r"tensorrt has no form for com\.microsoft\.FastGelu"):
        lint(CONTRIB.model, "tensorrt")


def test_a_finding_names_the_place_the_reason_and_the_way_out() -> None:
    model = MASKED.model
    node = model.graph.node(0)
    node.name, node.metadata_props[PATH] = "attention_7", "encoder.layer.3.attention"
    (finding,) = lint(model, "ort-cpu", as_is=True).findings
    assert (finding.path, finding.node) == ("encoder.layer.3.attention", "attention_7")
    assert finding.message.startswith(
        "Its mask [B, 1, 1, T] has size 1 for the query length [B, 2, S, 16]. ONNX Runtime"
    )
    assert finding.way_out.startswith("Expand the mask's last two dims")


def test_errors_come_first_and_warnings_alone_pass() -> None:
    graph = attention("y = Attention <softcap = 3.0> (q, k, v)")
    wide = Graph(graph.body, graph.inputs.replace("float16", "float"), graph.outputs.replace("float16", "float"))
    found = lint(wide.model, "tensorrt-rtx", as_is=True, ranges=RANGES)
    assert [finding.severity for finding in found.findings] == ["error", "warning"]
    assert (found.errors, found.passed) == (1, False)
    plain = Graph(wide.body.replace("<softcap = 3.0> ", ""), wide.inputs, wide.outputs)
    found = lint(plain.model, "tensorrt-rtx", as_is=True, ranges=RANGES)
    assert rules(found) == ["trt-attention-kernel"]
    assert (found.errors, found.passed) == (0, True)


def test_bodies_are_linted_too() -> None:
    body = """y = If (flag) <then_branch = t () => (float[B] a) { a = com.microsoft.FastGelu(x) },
                             else_branch = e () => (float[B] b) { b = Relu(x) }>"""
    found = lint(Graph(body, "float[B] x, bool flag", "float[B] y").model, "tensorrt", as_is=True, ranges=RANGES)
    assert rules(found) == ["trt-contrib-op"]


def test_what_one_target_refuses_another_takes() -> None:
    assert "trt-contrib-op" in rules(lint(CONTRIB.model, "tensorrt", as_is=True, ranges=RANGES))
    assert rules(lint(CONTRIB.model, "ort-cpu", as_is=True)) == []
    window = EXAMPLES["trt-attention-window"].bad.model
    assert rules(lint(window, "tensorrt-rtx", as_is=True, ranges=RANGES)) == ["trt-attention-window"]


def test_an_orin_is_told_of_what_its_parser_lacks() -> None:
    graph = Graph("a = RMSNormalization(x, g) y = Gelu(a)", "float[B, S, 32] x, float[32] g").model
    found = lint(graph, "tensorrt@jetson-orin", as_is=True, ranges=RANGES)
    assert rules(found) == ["trt-operator", "trt-opset"]
    assert lint(graph, "tensorrt@jetson-orin", ranges=RANGES).findings == ()
    assert lint(graph, "tensorrt", as_is=True, ranges=RANGES).findings == ()


def test_weights_that_do_not_fit_into_a_file_are_found() -> None:
    def of(gib: int) -> gw.Lint:
        model = Graph("y = Gather(w, i)", "int64[B] i", "float[B, 1048576] y").model
        array = np.broadcast_to(np.float32(0), (256 * gib, 1 << 20))  # of that size, in four bytes of memory
        weight = ir.Value(name="w", const_value=ir.Tensor(array), shape=ir.Shape(array.shape))
        weight.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(weight)
        model.graph.node(0).replace_input_with(0, weight)
        return lint(model, "ort-cpu", as_is=True)

    (finding,) = of(2).findings
    assert (finding.rule, finding.path) == ("file-too-large", "")
    assert finding.message.startswith("Its weights take 2.0 GiB in the graph itself.")
    assert of(1).findings == ()


def test_findings_by_rule_name_the_first_places() -> None:
    gelus = " ".join(f"a{i + 1} = com.microsoft.FastGelu(a{i})" for i in range(9))
    model = Graph(f"a0 = Relu(x) {gelus} y = Relu(a9)").model
    (group,) = grouped(lint(model, "tensorrt", as_is=True, ranges=RANGES).findings)
    assert (group.rule, group.count, len(group.places)) == ("trt-contrib-op", 9, 1), "nodes without a name share one"
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
    (group,) = grouped(lint(model, "tensorrt", as_is=True, ranges=RANGES).findings)
    assert group.places == [f"node_{index + 1}" for index in range(PLACES)]


def chain(length: int) -> ir.Model:
    steps = ["a0 = Relu(x)"]
    for i in range(1, length):
        steps.append(f"q{i} = QuantizeLinear(a{i - 1}, s, z) d{i} = DequantizeLinear(q{i}, s, z) a{i} = Tanh(d{i})")
    return Graph(" ".join(steps) + f" y = Relu(a{length - 1})", constants="float s = {0.1}, uint8 z = {0}").model


def test_the_work_is_linear_in_the_nodes() -> None:
    def calls(model: ir.Model) -> int:
        with cProfile.Profile() as profile:
            lint(model, "ort-cpu", as_is=True)
        return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

    # eight times the nodes; 64 times the calls if it were quadratic
    assert calls(chain(800)) < 10 * calls(chain(100))


# --- the documentation


def test_the_page_lists_every_rule_as_it_is() -> None:
    page = DOCS.read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \|", page, flags=re.MULTILINE))
    assert rows == {name: rule.severity for name, rule in RULES.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_speaks_of_targets_that_there_are_and_in_whole_sentences(name: str) -> None:
    rule = RULES[name]
    assert set(rule.targets) <= set(TARGETS)
    assert rule.why[0].isupper()
    assert not rule.why.endswith(".")
    assert rule.way_out.endswith(".")
