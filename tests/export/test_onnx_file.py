"""Files made to be rejected, each for one reason, and files made to be read: the values must be the ones written."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from graphwright.errors import InputError
from graphwright.export.onnx_file import read_onnx

FLOAT = TensorProto.FLOAT
VALUES = np.array([1.5, -2.0], np.float32)


def make(
    nodes: list[NodeProto], *initializers: TensorProto, functions: tuple[onnx.FunctionProto, ...] = ()
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, [2])],
        [helper.make_tensor_value_info("y", FLOAT, [2])],
        list(initializers),
    )
    domains = {"": 23, "com.microsoft": 1, "graphwright": 1, "local": 1}
    opsets = [helper.make_opsetid(*item) for item in domains.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def tensor(name: str = "w", values: np.ndarray = VALUES) -> TensorProto:
    return onnx.numpy_helper.from_array(values, name)


def outside(location: str = "w.bin", name: str = "w", **more: object) -> TensorProto:
    """A tensor like VALUES whose bytes are elsewhere; a key of None is left out."""
    made = TensorProto(name=name, data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": 0, "length": 8, **more}.items():
        if value is not None:
            made.external_data.add(key=key, value=str(value))
    return made


ADD = helper.make_node("Add", ["x", "w"], ["y"])


def add(*initializers: TensorProto) -> ModelProto:
    return make([ADD], *initializers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def save(model: ModelProto, folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def read(model: ModelProto, folder: Path) -> ir.Model:
    return read_onnx(save(model, folder))


def rejected(model: ModelProto, folder: Path, match: str) -> str:
    with pytest.raises(InputError, match=match) as caught:
        read(model, folder)
    text = str(caught.value)
    assert text.startswith(f"{folder / 'model.onnx'} was not read: ")
    assert "\n" not in text
    assert text.endswith((".", "`)."))
    return text


def subgraph(constant: TensorProto) -> list[NodeProto]:
    """z = x + the constant, or -x, by a condition: both branches are graphs in attributes."""
    info = [helper.make_tensor_value_info("z", FLOAT, [2])]
    then = [helper.make_node("Constant", [], ["k"], value=constant), helper.make_node("Add", ["x", "k"], ["z"])]
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "else", [], info)
    condition = helper.make_node("Constant", [], ["if"], value=tensor("t", np.array(True)))
    choice = helper.make_node(
        "If", ["if"], ["z"], then_branch=helper.make_graph(then, "then", [], info), else_branch=other
    )
    return [condition, choice]


def initializers(model: ir.Model) -> dict[str, np.ndarray]:
    found = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: value.numpy() for name, value in found.items() if value is not None}


# --- the file itself


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it is empty. Export or download it again"),
        (random.Random(0).randbytes(4096), "it is no ONNX model, or was cut off"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is no ONNX model"),
        (add(tensor()).SerializeToString()[:-9], "it is no ONNX model, or was cut off"),
        (ModelProto(ir_version=10).SerializeToString(), "its graph has no nodes"),
    ],
)
def test_no_model(folder: Path, content: bytes, match: str) -> None:
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=match):
        read_onnx(folder / "model.onnx")


def test_no_readable_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for name, match in {
        "absent.onnx": "No such file or directory. Give an .onnx file that you may read",
        ".": "it is a folder. Give the .onnx file in it",
        "pipe": "it is no regular file",
        "absent/model.onnx": "No such file",
    }.items():
        with pytest.raises(InputError, match=match):
            read_onnx(folder / name)


def test_a_file_past_two_gib(folder: Path) -> None:
    (folder / "model.onnx").touch()
    os.truncate(folder / "model.onnx", 2**31)
    with pytest.raises(InputError, match=r"ends at 2 GiB\. Save its weights as external data"):
        read_onnx(folder / "model.onnx")


def test_damaged_files_are_read_or_rejected(folder: Path) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    model = make([*subgraph(tensor("c")), helper.make_node("Add", ["z", "w"], ["y"])], outside(checksum="0"))
    whole = model.SerializeToString()
    chance, seen = random.Random(0), set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (folder / "model.onnx").write_bytes(data)
        try:
            read_onnx(folder / "model.onnx")
        except InputError as error:
            seen.add(str(error)[len(str(folder)) : 80 + len(str(folder))])
    assert len(seen) > 20


# --- the graph


def test_no_outputs(folder: Path) -> None:
    model = add(tensor())
    del model.graph.output[:]
    rejected(model, folder, "its graph has no outputs")


@pytest.mark.parametrize("domain", ["com.microsoft", "", "elsewhere"])
def test_native_code(folder: Path, domain: str) -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], "ctx", domain=domain, ep_cache_context="../engine")
    rejected(make([node]), folder, r"'EPContext' 'ctx' runs native code .*Export the model without it")


def test_native_code_in_a_function(folder: Path) -> None:
    node = helper.make_node("EPContext", ["a"], ["b"], domain="com.microsoft")
    rejected(
        make([helper.make_node("F", ["x"], ["y"], domain="local")], functions=(function(node),)), folder, "EPContext"
    )


def function(*nodes: NodeProto, name: str = "F", domain: str = "local") -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("local", 1)]
    return helper.make_function(domain, name, ["a"], ["b"], list(nodes), opsets)


def test_unknown_domain(folder: Path) -> None:
    model = make([helper.make_node("Magic", ["x"], ["y"], "m", domain="evil")])
    model.opset_import.append(helper.make_opsetid("evil", 1))
    rejected(model, folder, "'Magic' 'm' is an op of the domain 'evil', of which the file holds no definition")


def test_a_function_vouches_for_itself_alone(folder: Path) -> None:
    relu = function(helper.make_node("Relu", ["a"], ["b"]))
    rejected(make([helper.make_node("G", ["x"], ["y"], domain="local")], functions=(relu,)), folder, "domain 'local'")


def test_a_function_in_place_of_a_standard_op(folder: Path) -> None:
    for domain in ("", "ai.onnx"):
        relu = function(helper.make_node("Abs", ["a"], ["b"]), name="Relu", domain=domain)
        rejected(make([helper.make_node("Relu", ["x"], ["y"])], functions=(relu,)), folder, "takes the place of an op")


def test_functions_in_a_circle(folder: Path) -> None:
    circle = function(helper.make_node("F", ["a"], ["b"], domain="local"))
    model = make([helper.make_node("F", ["x"], ["y"], domain="local")], functions=(circle,))
    rejected(model, folder, "onnx.checker says: Cycle detected")


def test_opsets(folder: Path) -> None:
    model = add(tensor())
    del model.opset_import[0]
    rejected(model, folder, r"does not import ONNX's own opset \(the domain ''\)")
    model.opset_import.append(helper.make_opsetid("ai.onnx", 23))
    assert read(model, folder).graph.opset_imports[""] == 23
    model.opset_import.append(helper.make_opsetid("", 22))
    rejected(model, folder, "imports two opsets of the domain ''")


def test_the_checkers_word(folder: Path) -> None:
    rejected(make([helper.make_node("Relu", ["nowhere"], ["y"])]), folder, "onnx.checker says: .*'nowhere'.*Repair or")
    rejected(make([helper.make_node("Relu", ["x"], ["z"])]), folder, "onnx.checker says: Graph output 'y'")
    rejected(make([helper.make_node("Relu", ["x"], ["y"], wrong=1)]), folder, "Unrecognized attribute: wrong")
    future = add(tensor())
    future.ir_version = 99
    rejected(future, folder, "onnx.checker says: .*ir_version 99 is higher")


def test_what_onnx_ir_cannot_hold(folder: Path) -> None:
    node = helper.make_node("Anything", ["x"], ["y"], domain="com.microsoft")
    node.attribute.append(AttributeProto(name="a", type=AttributeProto.STRINGS, strings=[b"\xff"]))
    rejected(make([node]), folder, "onnx_ir says: 'utf-8' codec .* Repair or export")


def test_text_that_is_not_utf8(folder: Path) -> None:
    data = add(outside("AAAA")).SerializeToString().replace(b"AAAA", b"\xff\xfe\xff\xff")
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(InputError, match="has a value that is no UTF-8 text"):
        read_onnx(folder / "model.onnx")


def test_unknown_fields_are_gone(folder: Path) -> None:
    made = tensor()
    made.MergeFromString(b"\xfa\x3f\x06hidden")  # field 1023, of a form to come
    model = add(made)
    assert b"hidden" in save(model, folder).read_bytes()
    assert b"hidden" not in ir.to_proto(read(model, folder)).SerializeToString()


# --- dims and data


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dims": [-2]}, r"impossible dims \[-2\]"),
        ({"dims": [0, 2**62, 2**62]}, "impossible dims"),
        ({"dims": [2**40, 2**40]}, "impossible dims"),
        ({"dims": [1] * 65}, "impossible dims"),
        ({"dims": [2**40]}, "needs 4398046511104 bytes .* but holds 8. The file is damaged"),
        ({"dims": [1]}, "needs 4 bytes .* but holds 8"),
        ({"dims": [0]}, "needs 0 bytes .* but holds 8"),
        ({"raw_data": b"1234567"}, "needs 8 bytes .* but holds 7"),
        ({"raw_data": b""}, "needs 8 bytes .* but holds 0"),
        ({"data_type": TensorProto.DOUBLE}, "needs 16 bytes .* of DOUBLE, but holds 8"),
        ({"data_type": TensorProto.STRING}, "needs 0 bytes .* of STRING, but holds 8"),
        ({"data_type": 0}, r"has no known type \(0\)"),
        ({"data_type": 999}, r"has no known type \(999\)"),
        ({"float_data": [1.0, 2.0]}, "onnx.checker says: .*one and only one value field"),
    ],
)
def test_dims_and_data_disagree(folder: Path, change: dict[str, object], match: str) -> None:
    made = tensor()
    for name, value in change.items():
        made.ClearField(name)
        if isinstance(value, list):
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    rejected(add(made), folder, match)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_typed_data_of_another_length(folder: Path, count: int) -> None:
    made = TensorProto(name="w", data_type=FLOAT, dims=[2], float_data=[1.0] * count)
    rejected(add(made), folder, "but holds 1|but holds 3|holds no data for dims")


TYPES = [member for member in ir.DataType if member not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.name)
def test_every_type_inside(folder: Path, dtype: ir.DataType, raw: bool) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]).astype(dtype.numpy())
    made = ir.to_proto(ir.tensor(values, name="w", dtype=dtype))
    if not raw:
        made = helper.make_tensor(
            "w", dtype.value, [3, 3], values.astype(complex if "COMPLEX" in dtype.name else float).flatten().tolist()
        )
    got = initializers(read(make([helper.make_node("Relu", ["x"], ["y"])], made), folder))["w"]
    assert (got.dtype, got.shape, got.tobytes()) == (values.dtype, values.shape, values.tobytes())


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.name)
def test_every_type_outside(folder: Path, dtype: ir.DataType) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]).astype(dtype.numpy())
    data = ir.to_proto(ir.tensor(values, name="w", dtype=dtype)).raw_data
    (folder / "w.bin").write_bytes(b"??" + data + b"??")
    made = outside(offset=2, length=len(data))
    made.data_type, made.dims[:] = dtype.value, [3, 3]
    got = initializers(read(make([helper.make_node("Relu", ["x"], ["y"])], made), folder))["w"]
    assert (got.dtype, got.shape, got.tobytes()) == (values.dtype, values.shape, values.tobytes())


# --- what is read


def test_strings(folder: Path) -> None:
    made = TensorProto(name="w", data_type=TensorProto.STRING, dims=[2], string_data=[b"one", b"two"])
    assert initializers(read(make([helper.make_node("Relu", ["x"], ["y"])], made), folder))["w"].tolist() == [
        b"one",
        b"two",
    ]


def test_empty_and_scalar(folder: Path) -> None:
    empty = TensorProto(name="empty", data_type=FLOAT, dims=[0, 3])
    model = make([helper.make_node("Relu", ["x"], ["y"])], empty, tensor("scalar", np.array(7, np.int64)))
    got = initializers(read(model, folder))
    assert got["empty"].shape == (0, 3)
    assert got["scalar"] == 7


def test_functions_subgraphs_and_known_domains(folder: Path) -> None:
    gelu = function(helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft"))
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], domain="ai.onnx"),
        *subgraph(tensor("k")),
        helper.make_node("F", ["z"], ["f"], domain="local"),
        helper.make_node("Softclip", ["f"], ["y"], domain="graphwright"),
    ]
    model = read(make(nodes, functions=(gelu,)), folder)
    assert [(node.domain, node.op_type) for node in model.graph] == [
        ("", "Relu"),
        ("", "Constant"),
        ("", "If"),
        ("local", "F"),
        ("graphwright", "Softclip"),
    ]
    assert [node.op_type for node in model.functions["local", "F", ""]] == ["Gelu"]
    onnx.checker.check_model(ir.to_proto(model))
