"""Jobs are parsed strictly, a target's dialect is checked, and what lowering leaves is what the target reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.errors import BuildError, UsageError
from graphwright.passes import TARGETS, optimize, parse_job
from graphwright.passes.base import Trail
from graphwright.passes.lower import check_legal, lower, lowering_of
from graphwright.spec import PATH, SITE, Job

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]


def make(body: str, inputs: str = "float[B, S, 16] x", y: str = "float[B, S, 16] y", constants: str = "") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23, "com.microsoft": 1, "custom": 1]>
        lower ({inputs}) => ({y}) <{constants or "float unread = {1}"}> {{ {body} }}""")


@pytest.mark.parametrize(
    ("text", "job", "folder"),
    [
        ("ort-cpu", Job("ort-cpu", "fp32"), "ort-cpu-fp32"),
        ("ort-cpu:int8-dynamic", Job("ort-cpu", "int8-dynamic"), "ort-cpu-int8-dynamic"),
        ("tensorrt:bf16", Job("tensorrt", "bf16"), "tensorrt-bf16"),
        ("tensorrt-rtx@sm89:fp16", Job("tensorrt-rtx", "fp16", "sm89"), "tensorrt-rtx-sm89-fp16"),
        ("tensorrt-rtx@sm86+sm120", Job("tensorrt-rtx", "fp32", "sm86+sm120"), "tensorrt-rtx-sm86-sm120-fp32"),
    ],
)
def test_a_job_is_parsed(text: str, job: Job, folder: str) -> None:
    assert parse_job(text) == job
    assert parse_job(str(job)) == job
    assert job.folder == folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ort-cpo", r"Unknown target 'ort-cpo'\. Did you mean 'ort-cpu'\? Allowed: openvino, ort-cpu, "),
        ("", r"Unknown target ''\. Allowed: openvino, ort-cpu, "),
        ("ORT-CPU", r"Unknown target 'ORT-CPU'\."),
        (
            "ort-cpu:int9",
            r"Unknown precision 'int9'\. Did you mean 'int8'\? Allowed: bf16, fp16, fp32, fp8, int4, int8, ",
        ),
        ("ort-cpu:fp32:fp16", r"Unknown precision 'fp32:fp16'\."),
        ("ort-cpu:int8", r"Unknown precision for ort-cpu 'int8'\. .*Allowed: fp32, int8-dynamic\."),
        (
            "ort-cpu:fp16",
            r"fp16 on ort-cpu: .* no half-precision products on the CPU.*\. Allowed: fp32, int8-dynamic\.",
        ),
        (
            "ort-cuda:int8",
            r"int8 on ort-cuda: .* no fused integer product .*; take fp16 .*\. Allowed: bf16, fp16, fp32\.",
        ),
        ("ort-cpu@arm", r"Unknown device for ort-cpu 'arm'\. Allowed: arm64-dotprod, x86-avx2, x86-vnni\."),
        (
            "tensorrt-rtx@sm90",
            r"Unknown device for tensorrt-rtx 'sm90'\. Did you mean 'sm8.'\? Allowed: l4, rtx-4090, ",
        ),
        ("tensorrt-rtx@sm89+", r"Unknown device for tensorrt-rtx ''\."),
    ],
)
def test_a_wrong_job_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        parse_job(text)


def test_what_a_target_refuses_with_a_reason_it_does_not_take() -> None:
    for name, target in TARGETS.items():
        assert set(target.refused).isdisjoint(target.precisions)
        for precision, why in target.refused.items():
            with pytest.raises(UsageError, match=f"^{precision} on {name}: {re.escape(why)}"):
                parse_job(f"{name}:{precision}")


def test_the_default_precision_is_one_of_every_targets() -> None:
    for name, target in TARGETS.items():
        assert parse_job(name) == Job(name, "fp32")
        assert all(parse_job(f"{name}:{precision}").precision == precision for precision in target.precisions)


def test_ops_outside_of_the_table_are_named_with_their_paths() -> None:
    model = make("a = Relu(x)  b = Sigmoid(a)  c = com.microsoft.FastGelu(b)  y = Tanh(c)")
    for node in model.graph:
        node.metadata_props[PATH] = f"block.{node.op_type}"
    cpu = replace(TARGETS["ort-cpu"], legal={"": frozenset({"Relu"})})
    message = (
        r"^ort-cpu has no form for Sigmoid at block\.Sigmoid; com\.microsoft\.FastGelu at block\.FastGelu; "
        r"Tanh at block\.Tanh\.$"
    )
    with pytest.raises(BuildError, match=message):
        check_legal(model, cpu)
    with pytest.raises(BuildError, match=r"Relu at .* and 1 more\.$"):
        check_legal(model, replace(cpu, legal={}))
    check_legal(model, replace(cpu, legal={"": None, "com.microsoft": frozenset({"FastGelu"})}))


@pytest.mark.parametrize("target", TARGETS)
def test_an_op_of_another_domain_is_refused(target: str) -> None:
    with pytest.raises(BuildError, match=rf"^{target} has no form for custom\.Mystery at "):
        lower(make("y = custom.Mystery(x)"), lowering_of(parse_job(target)))


def test_a_body_is_checked_too() -> None:
    body = (
        "y = If (flag) <then_branch = t () => (float[B] a) { a = Relu(x) }, else_branch = e () => (float[B] b) { %s }>"
    )
    model = make(body % "b = custom.Mystery(x)", "float[B] x, bool flag", "float[B] y")
    with pytest.raises(BuildError, match=r"custom\.Mystery"):
        check_legal(model, TARGETS["ort-cpu"])
    with pytest.raises(BuildError, match=r"^tensorrt has no form for Bernoulli at "):
        lower(
            make(body % "b = Bernoulli(x)", "float[B] x, bool flag", "float[B] y"), lowering_of(parse_job("tensorrt"))
        )


def test_lowering_leaves_out_what_nothing_reads_and_says_what_ran() -> None:
    model, trail = make("a = Neg(x)  y = Relu(x)"), Trail()
    assert lower(model, lowering_of(parse_job("tensorrt")), trail) is model
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert not model.graph.initializers
    assert [(step.name, step.modified) for step in trail.steps] == [
        ("LowerAttention", False),
        ("SumScattered", False),
        ("RemoveUnusedNodesPass", True),
        ("NameFixPass", True),  # the nodes of this graph have no names
    ]


def test_optimize_takes_all_stages_and_changes_no_input(compare: Compare) -> None:
    model = make(
        "u = Div(x, root)  e = Erf(u)  f = Add(e, one)  m = Mul(x, f)  y = Mul(m, half)",
        constants="float root = {1.4142135}, float one = {1}, float half = {0.5}",
    )
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    done = optimize(model, "tensorrt-rtx@sm89", "fp32")
    assert str(done.job) == "tensorrt-rtx@sm89:fp32"
    assert [(node.op_type, node.metadata_props[SITE]) for node in done.model.graph] == [("Gelu", "gelu")]
    assert done.log is done.lifted.log
    steps = ["LowerAttention", "SumScattered", "RemoveUnusedNodesPass", "NameFixPass"]
    assert [step.name for step in done.trail.steps] == steps
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    again = optimize(done.lifted, "ort-cpu")
    assert again.lifted is done.lifted
    assert again.model is not done.lifted.model
    case = {"x": np.linspace(-5, 5, 2 * 3 * 16, dtype=np.float32).reshape(2, 3, 16)}
    compare(model, again.model, [case], 2e-6, 1e-6)  # float32, one erf


def test_options_that_do_not_apply_are_refused() -> None:
    model = make("y = Relu(x)")
    with pytest.raises(
        UsageError, match=r"^The precision is given twice: in target 'ort-cpu:fp32' and as 'int8-dynamic'"
    ):
        optimize(model, "ort-cpu:fp32", "int8-dynamic")
    with pytest.raises(UsageError, match=r"^ort-cpu:fp32 takes no calibration data: fp32 is not calibrated"):
        optimize(model, "ort-cpu", calibration=[{"x": np.zeros((1, 1, 16), np.float32)}])
