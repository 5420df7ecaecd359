"""The proof of dynamic dims: a graph in which one was fixed is caught, by the name of the dim."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch

import graphwright as gw
from graphwright.errors import BuildError, InputError
from graphwright.export.prove import prove_dynamic, resized
from graphwright.export.trace import convert, trace
from graphwright.runtimes.ort_cpu import OrtSession
from graphwright.spec import ModelSpec

MakeSpec = Callable[..., ModelSpec]
BOTH = {0: "batch", 1: "sequence"}


class Flat(torch.nn.Module):
    """x [batch, sequence, 4] -> {flat [batch, 4 * sequence], total [batch]}; `takes` says which lengths it refuses."""

    def __init__(self, takes: Callable[[int], bool] = lambda _: True) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.takes = takes

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if not torch.compiler.is_compiling() and not self.takes(x.shape[1]):
            raise ValueError(f"no length of {x.shape[1]}")
        flat = self.linear(x).reshape(x.shape[0], -1)
        return {"flat": flat, "total": flat.sum(1)}


def flat(takes: Callable[[int], bool] = lambda _: True, **changed: object) -> ModelSpec:
    torch.manual_seed(0)
    return ModelSpec(Flat(takes).eval(), {"x": torch.randn(2, 6, 4)}, {"x": BOTH}, name="flat", **changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def golden() -> ir.Model:
    spec = flat()
    return convert(spec, trace(spec), 23)


def find(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


def constant(model: ir.Model, values: list[int], before: ir.Node) -> ir.Value:
    node = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(values, np.int64))})
    model.graph.insert_before(before, node)
    return node.outputs[0]


def test_a_graph_as_it_was_exported_is_proved_at_two_other_sizes(golden: ir.Model) -> None:
    assert prove_dynamic(flat(), golden) == [
        "batch: agrees with torch at 3 and 4",
        "sequence: agrees with torch at 7 and 12",
    ]


def test_a_spec_without_dynamic_dims_needs_no_proof(golden: ir.Model) -> None:
    assert prove_dynamic(ModelSpec(Flat(), {"x": torch.ones(2, 6, 4)}), golden) == []


@pytest.mark.parametrize(
    ("sizes", "dim", "why"),
    [
        ([2, -1], "batch", r"at size 3 output 'flat' has shape \[2, 36\], but torch gives \[3, 24\]"),
        ([-1, 24], "sequence", r"at size 7 the graph fails: .*size 56 into shape \(24\)"),
        ([2, 24], "batch", r"at size 3 the graph fails: .*size 72 into shape \(2,24\)"),
    ],
)
def test_a_reshape_to_the_examples_size_is_caught(golden: ir.Model, sizes: list[int], dim: str, why: str) -> None:
    tampered = golden.clone()
    reshape = find(tampered, "Reshape")
    reshape.replace_input_with(1, constant(tampered, sizes, reshape))
    wanted = rf"(?s)^Dynamic dim '{dim}' is not dynamic: {why}.*The model computes with a size that was fixed at export"
    with pytest.raises(InputError, match=wanted):
        prove_dynamic(flat(), tampered)


def test_numbers_that_depend_on_a_fixed_size_are_caught(golden: ir.Model) -> None:
    tampered = golden.clone()
    total = find(tampered, "ReduceSum")
    # the sum over the example's 24 columns: right at the example, of the right shape at every size
    node = ir.node("Slice", [total.inputs[0], *(constant(tampered, [n], total) for n in (0, 24, 1))])
    tampered.graph.insert_before(total, node)
    total.replace_input_with(0, node.outputs[0])
    wanted = r"Dynamic dim 'sequence' is not dynamic: at size 7 output 'total' differs from torch by \d\.\d+ \(allowed"
    with pytest.raises(InputError, match=wanted):
        prove_dynamic(flat(), tampered)


def test_a_graph_that_is_wrong_at_the_examples_own_sizes_blames_no_dim(golden: ir.Model) -> None:
    tampered = golden.clone()
    found = {
        value.const_value.shape.numpy(): value for value in tampered.graph.initializers.values() if value.const_value
    }
    weight = found[4, 4]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name=weight.name)
    with pytest.raises(BuildError, match=r"The graph of 'flat' is not what torch computes: output 'flat' differs"):
        prove_dynamic(flat(), tampered)


def test_outputs_of_another_type_are_caught(golden: ir.Model) -> None:
    tampered = golden.clone()
    total = tampered.graph.outputs[1]
    node = ir.node("Cast", [total], attributes={"to": ir.DataType.DOUBLE})
    tampered.graph.append(node)
    total.name, node.outputs[0].name = "total.inner", "total"
    node.outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)
    tampered.graph.outputs[1] = node.outputs[0]
    with pytest.raises(BuildError, match="output 'total' is float64, but torch gives float32"):
        prove_dynamic(flat(), tampered)


# --- which sizes are tried


def test_sizes_that_torch_refuses_are_passed_over() -> None:
    spec = flat(lambda length: length % 3 == 0)
    lines = prove_dynamic(spec, convert(spec, trace(spec), 23))
    assert lines[1] == "sequence: agrees with torch at 12 and 3"


def test_a_dim_with_one_size_that_torch_takes_is_not_proved() -> None:
    spec = flat(lambda length: length in (6, 7))
    wanted = (
        r"Dynamic dim 'sequence' cannot be proved: torch itself takes only the sizes \[7\] of those tried\. "
        r"Give ModelSpec\.ranges\['sequence'\]"
    )
    with pytest.raises(InputError, match=wanted):
        gw.to_onnx(spec)


@pytest.mark.parametrize(
    ("bounds", "proved"),
    [((5, 6, 8), "7 and 8"), ((6, 6, 8), "7 and 8"), ((3, 6, 7), "7 and 5"), ((2, 4, 6), "5 and 3")],
)
def test_sizes_stay_within_the_range(bounds: tuple[int, int, int], proved: str) -> None:
    low, _, high = bounds
    spec = flat(lambda length: low <= length <= high, ranges={"sequence": bounds})
    lines = prove_dynamic(spec, convert(spec, trace(spec), 23))
    assert lines[1] == f"sequence: agrees with torch at {proved}"


def test_other_sizes_repeat_or_crop_the_example() -> None:
    spec = flat()
    example = spec.tensors["x"].numpy()
    longer, shorter = resized(spec, "sequence", 8)["x"], resized(spec, "sequence", 2)["x"]
    assert longer.shape == (2, 8, 4)
    np.testing.assert_array_equal(longer, np.concatenate([example, example[:, :2]], axis=1))
    np.testing.assert_array_equal(shorter, example[:, :2])


# --- what proves it


def test_where_onnx_runtime_fails_the_reference_evaluator_proves(make_spec: MakeSpec) -> None:
    # ONNX Runtime takes a mask with one row of queries where the sequence is 1, and at no other length
    spec = make_spec(batch=1, sequence=1)
    model = convert(spec, trace(spec), 23)
    with OrtSession(ir.to_proto(model).SerializeToString(), ["CPUExecutionProvider"]) as session:
        assert session.run({name: tensor.numpy() for name, tensor in spec.tensors.items()})["tokens"].shape == (
            1,
            1,
            16,
        )
        with pytest.raises(InputError, match="attn_mask"):
            session.run(resized(spec, "sequence", 2))
    lines = prove_dynamic(spec, model)
    assert [line.partition(":")[0] for line in lines] == ["batch", "sequence"]


class Padded(torch.nn.Module):
    """x [batch, sequence, 4] times 2 where the mask counts, times 3 where it is padding."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask.unsqueeze(-1) == 1, x * 2.0, x * 3.0)


@pytest.mark.parametrize(("factor", "proved"), [(3.0, True), (2.0, False)])
def test_only_rows_that_count_must_agree(factor: float, proved: bool) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    spec = ModelSpec(Padded(), {"x": torch.randn(2, 6, 4), "mask": mask}, {"x": BOTH, "mask": BOTH}, name="padded")
    golden = convert(spec, trace(spec), 23)
    changed = 0
    for node in golden.graph:
        for index, value in enumerate(node.inputs):
            tensor = ir.convenience.get_const_tensor(value) if node.op_type == "Mul" and value is not None else None
            if tensor is not None and float(tensor.numpy().reshape(-1)[0]) == factor:
                other = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(4, np.float32))})
                golden.graph.insert_before(node, other)
                node.replace_input_with(index, other.outputs[0])
                changed += 1
    assert changed == 1
    if proved:
        assert len(prove_dynamic(spec, golden)) == 2
    else:
        with pytest.raises(BuildError, match="is not what torch computes"):
            prove_dynamic(spec, golden)
