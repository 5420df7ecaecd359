"""Data outside the ONNX file: no byte from elsewhere is read, wherever a tensor hides; the right bytes are."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, helper

from graphwright.errors import InputError, ResourceError
from graphwright.export.onnx_file import read_onnx

FLOAT = TensorProto.FLOAT
VALUES = np.array([1.5, -2.0], np.float32)
SECRET = b"secret!!"  # as long as VALUES
ADD = helper.make_node("Add", ["x", "w"], ["y"])
RELU = helper.make_node("Relu", ["x"], ["y"])
INFO = [helper.make_tensor_value_info("y", FLOAT, [2])]


def outside(location: str | None = "w.bin", name: str = "w", **more: str | int | None) -> TensorProto:
    """A tensor like VALUES whose bytes are elsewhere; a key of None is left out."""
    made = TensorProto(name=name, data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": 0, "length": 8, **more}.items():
        if value is not None:
            made.external_data.add(key=key, value=str(value))
    return made


def make(nodes: list[NodeProto], *initializers: TensorProto, functions: tuple[FunctionProto, ...] = ()) -> ModelProto:
    inputs = [helper.make_tensor_value_info("x", FLOAT, [2])]
    graph = helper.make_graph(nodes, "graph", inputs, INFO, list(initializers))
    opsets = [helper.make_opsetid(*item) for item in {"": 23, "com.microsoft": 1, "local": 1}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def canary(folder: Path) -> Iterator[Path]:
    """A file outside the model's folder; the test fails if a byte of it was read, whoever read it."""
    path = folder.parent / "secret.bin"
    path.write_bytes(SECRET)
    with Watch(path) as watch:
        yield path
        assert not watch.was_read()


class Watch:
    """The kernel's own word for whether a file was read."""

    def __init__(self, path: Path) -> None:
        assert sys.platform == "linux", "inotify, by which this is proved, is Linux's own"
        libc = ctypes.CDLL(None, use_errno=True)
        self.handle = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self.handle, os.fsencode(path), 1) > 0  # IN_ACCESS

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def was_read(self) -> bool:
        try:
            return bool(os.read(self.handle, 4096))
        except BlockingIOError:
            return False


def test_the_watch_sees_a_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with Watch(tmp_path / "file") as watch:
        os.link(tmp_path / "file", tmp_path / "hard")
        assert not watch.was_read()
        (tmp_path / "hard").read_bytes()
        assert watch.was_read()


def read(model: ModelProto, folder: Path) -> ir.Model:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return read_onnx(folder / "model.onnx")


def value(model: ir.Model, name: str = "w") -> np.ndarray:
    found = model.graph.initializers[name].const_value
    assert found is not None
    return found.numpy()


# --- where a tensor can hide


def constant(field: str) -> Callable[[TensorProto], ModelProto]:
    def hide(hidden: TensorProto) -> ModelProto:
        node = helper.make_node("Anything", ["x"], ["y"], domain="com.microsoft")
        node.attribute.append(attribute(field, hidden))
        return make([node])

    return hide


def attribute(field: str, hidden: TensorProto) -> AttributeProto:
    if field == "t":
        return AttributeProto(name="a", type=AttributeProto.TENSOR, t=hidden)
    if field == "tensors":
        return AttributeProto(name="a", type=AttributeProto.TENSORS, tensors=[hidden])
    if field == "t beside an int":
        return AttributeProto(name="a", type=AttributeProto.INT, i=1, t=hidden)
    made = AttributeProto(name="a", type=AttributeProto.SPARSE_TENSOR)
    made.sparse_tensor.values.CopyFrom(hidden)
    return made


def sparse_initializer(hidden: TensorProto) -> ModelProto:
    model = make([ADD])
    model.graph.sparse_initializer.add(dims=[2]).values.CopyFrom(hidden)
    return model


def sparse_indices(hidden: TensorProto) -> ModelProto:
    model = make([ADD])
    model.graph.sparse_initializer.add(dims=[2]).indices.CopyFrom(hidden)
    return model


def subgraph(hidden: TensorProto) -> ModelProto:
    branch = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "branch", [], INFO, [hidden])
    condition = helper.make_node("Constant", [], ["if"], value_int=1)
    cast = helper.make_node("Cast", ["if"], ["if1"], to=TensorProto.BOOL)
    return make([condition, cast, helper.make_node("If", ["if1"], ["y"], then_branch=branch, else_branch=branch)])


def function(hidden: TensorProto) -> ModelProto:
    nodes = [helper.make_node("Constant", [], ["k"], value=hidden), helper.make_node("Add", ["a", "k"], ["b"])]
    made = helper.make_function("local", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 23)])
    return make([helper.make_node("F", ["x"], ["y"], domain="local")], functions=(made,))


def function_default(hidden: TensorProto) -> ModelProto:
    relu = [helper.make_node("Relu", ["a"], ["b"])]
    made = helper.make_function("local", "F", ["a"], ["b"], relu, [helper.make_opsetid("", 23)])
    made.attribute_proto.append(attribute("t", hidden))
    return make([helper.make_node("F", ["x"], ["y"], domain="local")], functions=(made,))


def training(hidden: TensorProto) -> ModelProto:
    model = make([RELU])
    model.training_info.add().initialization.initializer.append(hidden)
    return model


PLACES: dict[str, Callable[[TensorProto], ModelProto]] = {
    "initializer": lambda hidden: make([ADD], hidden),
    "attribute": constant("t"),
    "attribute list": constant("tensors"),
    "attribute of another type": constant("t beside an int"),
    "sparse attribute": constant("sparse_tensor"),
    "sparse initializer": sparse_initializer,
    "sparse indices": sparse_indices,
    "subgraph": subgraph,
    "function": function,
    "function default": function_default,
    "training": training,
}
LOCATIONS = {
    "..": "../secret.bin",
    "down and up": "sub/../../secret.bin",
    "absolute": "{outside}/secret.bin",
    "url": "file://{outside}/secret.bin",
    "backslash": "..\\secret.bin",
    "nul": "secret.bin\0",
    "link": "link.bin",
    "linked folder": "linked/secret.bin",
    "link to a link": "sub/linked/secret.bin",
    "hard link": "hard.bin",
    "pipe": "pipe",
    "folder": "sub",
    "itself": ".",
    "nothing": "",
    "absent": "absent.bin",
    "below a file": "model.onnx/w.bin",
    "device": "/dev/zero",
}


def lay_traps(folder: Path, kind: str) -> None:
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "linked").symlink_to("..")
    (folder / "sub").mkdir()
    (folder / "sub" / "linked").symlink_to("../linked")
    if kind == "hard link":  # only then: the others must not be saved by the canary's link count
        (folder / "hard.bin").hardlink_to(folder.parent / "secret.bin")
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", LOCATIONS)
def test_no_byte_from_elsewhere(folder: Path, canary: Path, place: str, kind: str) -> None:
    lay_traps(folder, kind)
    location = LOCATIONS[kind].format(outside=canary.parent)
    with pytest.raises(InputError, match="was not read: ") as caught:
        read(PLACES[place](outside(location)), folder)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "`)."))
    assert "secret!!" not in text
    reason = "sparse tensor" if "sparse" in place else "training graphs" if place == "training" else repr(location)
    assert reason in text or "onnx.checker says: type field and data field mismatch" in text


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("..", "must be in a file below the model's own folder"),
        ("backslash", "must be in a file below the model's own folder"),
        ("link", "copy the real files beside the model"),
        ("linked folder", "copy the real files beside the model"),
        ("hard link", r"'hard.bin' has 2 hard links\. Copy the real file"),
        ("pipe", "'pipe' is no regular file"),
        ("folder", "'sub' is no regular file"),
        ("absent", r"No such file or directory\. Put the file beside the model"),
    ],
)
def test_the_reason_and_the_way_out(folder: Path, canary: Path, kind: str, match: str) -> None:
    lay_traps(folder, kind)
    with pytest.raises(InputError, match=match):
        read(make([ADD], outside(LOCATIONS[kind])), folder)


@pytest.mark.parametrize("place", ["initializer", "attribute", "attribute list", "subgraph", "function"])
def test_good_data_in_each_place(folder: Path, place: str, kept: None) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    model = read(PLACES[place](outside()), folder)
    (folder / "w.bin").unlink()
    data = ir.to_proto(model).SerializeToString()
    assert VALUES.tobytes() in data
    assert b"w.bin" not in data


def test_a_link_swapped_in_while_reading(folder: Path, canary: Path, kept: None) -> None:
    target, done = folder / "w.bin", threading.Event()
    (folder / "real").write_bytes(VALUES.tobytes())
    (folder / "link").symlink_to("../secret.bin")
    shutil.copy(folder / "real", target)

    def swap() -> None:
        while not done.is_set():
            shutil.copy(folder / "real", folder / "new")
            (folder / "new").replace(target)
            shutil.copy(folder / "link", folder / "new", follow_symlinks=False)
            (folder / "new").replace(target)

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[bytes | str] = set()
    try:
        for count in range(10_000):
            if count >= 300 and len(seen) == 2:
                break
            try:
                seen.add(value(read(make([ADD], outside()), folder)).tobytes())
            except InputError as error:
                seen.add("link" if "may be a link" in str(error) else str(error))
    finally:
        done.set()
        thread.join()
    assert seen == {"link", VALUES.tobytes()}


# --- how the data is described


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"offset": -1}, "offset or length that is no number"),
        ({"offset": "0x0"}, "offset or length that is no number"),
        ({"offset": ""}, "offset or length that is no number"),
        ({"offset": " 0"}, "offset or length that is no number"),
        ({"offset": "\u0660"}, "offset or length that is no number"),
        ({"offset": 10**30}, "offset or length that is no number"),
        ({"length": -8}, "offset or length that is no number"),
        ({"offset": 1}, r"needs 8 bytes from 1 on in 'w.bin', which has 8"),
        ({"offset": 2**50}, "needs 8 bytes from 1125899906842624 on"),
        ({"length": 7}, r"needs 8 bytes for dims \[2\], but names 7 bytes of 'w.bin'"),
        ({"length": 2**50}, "but names 1125899906842624 bytes"),
        ({"length": None, "offset": 4}, "needs 8 bytes from 4 on"),
        ({"basepath": ".."}, r"describes its file by \['location', 'offset', 'length', 'basepath'\]"),
        ({"anything": "1"}, "allowed are location"),
        ({"location": None}, "allowed are location"),
        ({"checksum": "0" * 40}, "another checksum than the model says"),
    ],
)
def test_a_wrong_description(folder: Path, change: dict[str, Any], match: str) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    with pytest.raises(InputError, match=match):
        read(make([ADD], outside(**change)), folder)


def test_a_key_given_twice(folder: Path, canary: Path) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    made = outside()
    made.external_data.add(key="location", value="../secret.bin")
    with pytest.raises(InputError, match="allowed are location"):
        read(make([ADD], made), folder)


def test_data_inside_and_outside(folder: Path) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    made = outside()
    made.raw_data = VALUES.tobytes()
    with pytest.raises(InputError, match="holds data and names a file for it"):
        read(make([ADD], made), folder)
    made.data_location = TensorProto.DEFAULT
    with pytest.raises(InputError, match="holds data and names a file for it"):
        read(make([ADD], made), folder)
    text = outside()
    text.data_type = TensorProto.STRING
    with pytest.raises(InputError, match="or is of strings"):
        read(make([ADD], text), folder)


def test_no_length_takes_the_rest_of_the_file_exactly(folder: Path) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes() + b"more")
    with pytest.raises(InputError, match="which has 12"):
        read(make([ADD], outside(length=None, offset=None)), folder)
    (folder / "w.bin").write_bytes(b"skip" + VALUES.tobytes())
    assert value(read(make([ADD], outside(length=None, offset=4)), folder)).tolist() == VALUES.tolist()


def test_data_past_the_memory(folder: Path, kept: None) -> None:
    (folder / "w.bin").touch()
    os.truncate(folder / "w.bin", 2**42)  # a hole: the disk holds nothing of it
    made = outside(length=2**42)
    made.dims[:] = [2**40]
    with pytest.raises(ResourceError, match=r"needs 4398046511104 bytes of memory, \d+ are free"):
        read(make([ADD], made), folder)


# --- what is read


def test_several_tensors_and_files(folder: Path, kept: None) -> None:
    one, other = np.arange(6, dtype=np.int64).reshape(2, 3), np.linspace(0, 1, 5, dtype=np.float16)
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "w.bin").write_bytes(one.tobytes() + b"gap" + VALUES.tobytes())
    (folder / "data" / "deep" / "v.bin").write_bytes(other.tobytes())
    digest = hashlib.sha1((folder / "w.bin").read_bytes()).hexdigest().upper()
    made = [
        outside(offset=51, checksum=digest),
        outside(name="tied", offset=51),
        outside(name="one", offset=0, length=48),
        outside("./data/deep/v.bin", "other", length=10, offset=None),
        TensorProto(name="empty", data_type=FLOAT, dims=[0], data_location=TensorProto.EXTERNAL),
    ]
    made[2].data_type, made[2].dims[:] = TensorProto.INT64, [2, 3]
    made[3].data_type, made[3].dims[:] = TensorProto.FLOAT16, [5]
    made[4].external_data.add(key="location", value="w.bin")
    made[4].external_data.add(key="length", value="0")
    model = read(make([ADD], *made), folder)
    shutil.rmtree(folder)
    for name, values in {"w": VALUES, "tied": VALUES, "one": one, "other": other, "empty": np.zeros(0)}.items():
        np.testing.assert_array_equal(value(model, name), values)
    assert value(model, "one").dtype == np.int64


def test_what_onnx_ir_saves_is_read(folder: Path, kept: None) -> None:
    model = ir.from_proto(make([ADD], TensorProto(name="w", data_type=FLOAT, dims=[2], raw_data=VALUES.tobytes())))
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    assert (folder / "model.onnx.data").exists()
    assert value(read_onnx(folder / "model.onnx")).tolist() == VALUES.tolist()


def test_the_model_itself_may_be_a_link(folder: Path) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    (folder / "blob").write_bytes(make([ADD], outside()).SerializeToString())
    (folder / "model.onnx").symlink_to("blob")
    assert value(read_onnx(folder / "model.onnx")).tolist() == VALUES.tolist()
