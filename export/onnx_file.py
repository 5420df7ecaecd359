"""Read an ONNX file that nobody vouches for: all of it is checked before any loader sees it.

No other code is ever given a path out of the file: large weights that lie beside it stay on disk, and are read through
the handle that was checked (weights.py). What `onnx_ir` would drop without a word (sparse tensors, training
graphs, fields newer than the installed onnx) is rejected or taken out here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import psutil
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from ..errors import InputError, ResourceError
from . import weights

_STANDARD = frozenset({"", "ai.onnx.ml"})
_KNOWN = frozenset({"graphwright", "com.microsoft"})  # domains whose ops need no body in the file
_CODE = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "PyOp"})  # ops that run code of their own
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
_MAX_RANK = 64  # numpy's
_MAX_BYTES = 2**63 - 1
_TYPED = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def read_onnx(path: Path) -> ir.Model:
    """The model in the file `path`. Weights of at least `weights.ON_DISK` bytes that lie in files beside it stay there
    and are read whenever they are asked for: do not overwrite these files while the model is in use.

    Raises InputError where the file is unreadable, damaged, hostile, or holds what graphwright does not read, and
    ResourceError where a weight does not fit into memory.
    """
    try:
        proto = _parse(_read(path))
        external = _check_messages(proto)
        _check_with_onnx(proto)
        on_disk = _load(external, path.parent)
        model = _deserialize(proto)
        weights.put(model, on_disk)
        return model
    except InputError as error:
        raise InputError(f"{path} was not read: {error}") from error


@dataclass(frozen=True)
class _External:
    """A tensor whose bytes are in another file; `tensor` is empty until they are read."""

    tensor: onnx.TensorProto
    name: str
    dims: tuple[int, ...]
    location: str
    offset: int
    needed: int
    length: int | None
    checksum: str

    @property
    def stays(self) -> bool:
        """Whether it is left on disk; types of less than a byte are not, they are packed."""
        return self.needed >= weights.ON_DISK and ir.DataType(self.tensor.data_type).bitwidth >= 8


def _read(path: Path) -> bytes:
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer for ever
        with _opened(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as handle:
            info = os.fstat(handle)
            if stat.S_ISDIR(info.st_mode):
                raise InputError("it is a folder. Give the .onnx file in it.")
            if not stat.S_ISREG(info.st_mode):
                raise InputError("it is no regular file. Give an .onnx file.")
            if info.st_size == 0:
                raise InputError("it is empty. Export or download it again.")
            if info.st_size > onnx.checker.MAXIMUM_PROTOBUF:
                raise InputError(
                    f"it has {info.st_size} bytes, but an ONNX file ends at 2 GiB. Save its weights as external data."
                )
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read()
    except OSError as error:
        raise InputError(f"{error.strerror}. Give an .onnx file that you may read.") from error


def _parse(data: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InputError(
            f"it is no ONNX model, or was cut off ({_line(error)}). Export or download it again."
        ) from error
    proto.DiscardUnknownFields()  # a newer loader must not find in them what was not checked here
    return proto


def _check_messages(proto: onnx.ModelProto) -> list[_External]:
    """Reject what must not be loaded, name the default domain in one way, and empty the tensors stored elsewhere."""
    messages = list(_messages(proto))
    _check_model(proto)
    functions = {(function.domain, function.name, function.overload) for function in proto.functions}
    external = []
    for message, where in messages:
        if isinstance(message, onnx.NodeProto):
            _check_node(message, where, functions)
        elif isinstance(message, onnx.SparseTensorProto):
            raise InputError(
                f"{where} holds a sparse tensor, which graphwright does not read. Store it as a dense one."
            )
        elif isinstance(message, onnx.TensorProto):
            external += _check_tensor(message, where)
    return external


def _messages(root: Message) -> Iterator[tuple[Message, str]]:
    """Each message of the model, wherever it hides, with the words for where that is."""
    stack: list[tuple[Message, str]] = [(root, "the model")]
    while stack:
        message, where = stack.pop()
        if isinstance(message, onnx.NodeProto | onnx.FunctionProto):
            kind = message.op_type if isinstance(message, onnx.NodeProto) else "function"
            where = f"{_show(kind)} {_show(message.name)}"
        elif isinstance(message, onnx.TensorProto):
            where = f"tensor {_show(message.name)} of {where}"
        yield message, where
        for field, value in message.ListFields():
            if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
                continue
            items = [value] if isinstance(value, Message | str | bytes) else value
            if any(isinstance(item, bytes) for item in items):  # what protobuf makes of text that is not UTF-8
                raise InputError(f"{where} has a {field.name} that is no UTF-8 text. Export the model again.")
            stack.extend((item, where) for item in items if isinstance(item, Message))


def _check_model(proto: onnx.ModelProto) -> None:
    if not proto.graph.node or not proto.graph.output:
        missing = "outputs" if proto.graph.node else "nodes"
        raise InputError(f"its graph has no {missing}, so there is nothing to compute. Export the model again.")
    if proto.training_info:
        raise InputError("it holds training graphs, which graphwright does not read. Export the model for inference.")
    for owner in (proto, *proto.functions):
        seen: dict[str, int] = {}
        for opset in owner.opset_import:
            opset.domain = _domain(opset.domain)
            if seen.setdefault(opset.domain, opset.version) != opset.version:
                raise InputError(f"it imports two opsets of the domain {_show(opset.domain)}. Export the model again.")
        if owner is proto and "" not in seen:
            raise InputError("it does not import ONNX's own opset (the domain ''). Export the model again.")
    for function in proto.functions:
        if _domain(function.domain) in _STANDARD:
            raise InputError(
                f"its function {_show(function.name)} takes the place of an op of ONNX's own. Give it another domain."
            )


def _check_node(node: onnx.NodeProto, where: str, functions: set[tuple[str, str, str]]) -> None:
    if node.domain == "ai.onnx":
        node.domain = ""
    if node.op_type in _CODE:
        raise InputError(
            f"{where} runs native code that came with the file ({node.op_type}). Export the model without it: "
            "graphwright builds for the device itself."
        )
    if node.domain in _STANDARD | _KNOWN or (node.domain, node.op_type, node.overload) in functions:
        return
    raise InputError(
        f"{where} is an op of the domain {_show(node.domain)}, of which the file holds no definition. Export the model "
        "with standard ops, or with a function in the file that says what the op computes."
    )


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _check_tensor(tensor: onnx.TensorProto, where: str) -> list[_External]:
    """Check that the data is what dims and type need. Of external data, at most one: how it was; it is empty then."""
    dtype, count = _type_and_count(tensor, where)
    needed = 0 if dtype == ir.DataType.STRING else (count * dtype.bitwidth + 7) // 8
    held = {name: len(getattr(tensor, name)) for name in _TYPED if getattr(tensor, name)}
    if tensor.HasField("raw_data"):
        held["raw_data"] = len(tensor.raw_data)
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    if outside and dtype != ir.DataType.STRING and not held:
        return [_set_apart(tensor, where, needed)]
    if outside or tensor.external_data:
        raise InputError(f"{where} holds data and names a file for it, or is of strings. Save the model again.")
    if count and not held:
        raise InputError(f"{where} holds no data for dims {_show(list(tensor.dims))}. Export the model again.")
    for name, length in held.items():
        wanted = needed if name == "raw_data" else _typed_length(name, dtype, count)
        if length != wanted:
            raise InputError(
                f"{where} needs {wanted} {'bytes' if name == 'raw_data' else 'values'} for dims "
                f"{_show(list(tensor.dims))} of {dtype.name}, but holds {length}. The file is damaged: export it again."
            )
    return []


def _type_and_count(tensor: onnx.TensorProto, where: str) -> tuple[ir.DataType, int]:
    types = {member.value: member for member in ir.DataType if member != ir.DataType.UNDEFINED}
    dtype = types.get(tensor.data_type)
    if dtype is None:
        raise InputError(f"{where} has no known type ({tensor.data_type}). Export the model again.")
    dims = tensor.dims
    # 16 bytes are the largest element; a dim of 0 hides nothing, since numpy multiplies the others all the same
    if (
        len(dims) > _MAX_RANK
        or any(dim < 0 for dim in dims)
        or math.prod(max(dim, 1) for dim in dims) * 16 > _MAX_BYTES
    ):
        raise InputError(f"{where} has impossible dims {_show(list(dims))}. The file is damaged: export it again.")
    return dtype, math.prod(dims)


def _typed_length(field: str, dtype: ir.DataType, count: int) -> int:
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * count
    if field == "int32_data" and dtype.bitwidth in (2, 4):  # packed into bytes, one byte a value
        return (count * dtype.bitwidth + 7) // 8
    return count


def _set_apart(tensor: onnx.TensorProto, where: str, needed: int) -> _External:
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    keys = [key for key, _ in entries]
    if len(set(keys)) < len(keys) or not set(keys) <= _EXTERNAL_KEYS or "location" not in keys:
        raise InputError(
            f"{where} describes its file by {_show(keys)}; allowed are location (once, always), offset, length and "
            "checksum. Save the model again."
        )
    found = dict(entries)
    if not all(
        text.isascii() and text.isdigit() and len(text) < 20 for key, text in entries if key in ("offset", "length")
    ):
        raise InputError(f"{where} has an offset or length that is no number ({_show(found)}). Save the model again.")
    length = int(found["length"]) if "length" in found else None
    if length not in (None, needed):
        raise InputError(
            f"{where} needs {needed} bytes for dims {_show(list(tensor.dims))}, but names {length} bytes of "
            f"{_show(found['location'])}. Save the model again."
        )
    apart = _External(
        tensor=tensor,
        name=where,
        dims=tuple(tensor.dims),
        location=found["location"],
        offset=int(found.get("offset", "0")),
        needed=needed,
        length=length,
        checksum=found.get("checksum", "").lower(),
    )
    _parts(apart)
    for field in ("data_location", "external_data", "dims"):
        tensor.ClearField(field)
    tensor.dims.append(0)  # whole for the checker, which would go and look for the file
    return apart


def _parts(external: _External) -> list[str]:
    """The folders and the file of a location."""
    location = external.location
    parts = location.split("/")
    if "\\" in location or "\0" in location or any(part in ("", "..") for part in parts):
        raise InputError(
            f"{external.name} names the file {_show(location)}, but its data must be in a file below the model's own "
            "folder, named with plain names and '/'. Save the model again with its data beside it."
        )
    return parts


def _check_with_onnx(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise InputError(f"onnx.checker says: {_line(error)} Repair or export the model again.") from error


def _load(external: list[_External], folder: Path) -> list[weights.OnDisk]:
    """Put small tensors' bytes in; of large ones, where they are. Each file is opened once and checked while open."""
    on_disk: list[weights.OnDisk] = []
    files = itertools.groupby(sorted(external, key=lambda each: each.location), lambda each: each.location)
    for number, (_, group) in enumerate(files):
        tensors = list(group)
        try:
            with _opened_below(folder, _parts(tensors[0])) as handle:
                _check_file(handle, tensors)
                file = weights.DataFile(handle, _show(tensors[0].location))
        except OSError as error:
            link = error.errno in (errno.ELOOP, errno.ENOTDIR)
            raise InputError(
                f"{tensors[0].name} has its data in {_show(tensors[0].location)}: {error.strerror}. "
                + ("No part of that may be a link: copy the real files beside the model." * link)
                + ("Put the file beside the model." * (not link))
            ) from error
        for each in tensors:
            each.tensor.ClearField("dims")
            each.tensor.dims.extend(each.dims)
            if each.stays and number < weights.FILES:
                weights.mark(each.tensor, len(on_disk))
                on_disk.append(weights.OnDisk(file, each.offset, ir.DataType(each.tensor.data_type), each.dims))
            else:
                each.tensor.raw_data = file.read(each.offset, each.needed).tobytes()
    return on_disk


def _check_file(handle: int, tensors: list[_External]) -> None:
    info = os.fstat(handle)
    place = _show(tensors[0].location)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        what = f"has {info.st_nlink} hard links" if stat.S_ISREG(info.st_mode) else "is no regular file"
        raise InputError(f"the data file {place} {what}. Copy the real file beside the model (`cp -L`).")
    for each in tensors:
        needed = each.needed if each.length is not None else max(each.needed, info.st_size - each.offset)
        if each.offset + needed > info.st_size or needed != each.needed:
            raise InputError(
                f"{each.name} needs {each.needed} bytes from {each.offset} on in {place}, which has {info.st_size}. "
                "The files do not belong together: save the model again."
            )
    needed = sum(each.needed for each in tensors if not each.stays) + max(each.needed for each in tensors)
    free = psutil.virtual_memory().available
    if needed > free:
        raise ResourceError(
            f"The data in {place} needs {needed} bytes of memory, {free} are free. Free some, or use a larger machine."
        )
    if any(each.checksum for each in tensors):
        with os.fdopen(handle, "rb", closefd=False) as file:
            digest = hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()
        if any(each.checksum not in ("", digest) for each in tensors):
            raise InputError(f"the data file {place} has another checksum than the model says. Save the model again.")


@contextlib.contextmanager
def _opened(handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def _opened_below(folder: Path, parts: list[str]) -> Iterator[int]:
    """The file open, each step from an open folder and never through a link: no swap in between leads elsewhere."""
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(_opened(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)))
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            handle = stack.enter_context(_opened(os.open(part, flags, dir_fd=handle)))
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
        yield stack.enter_context(_opened(os.open(parts[-1], flags, dir_fd=handle)))


def _deserialize(proto: onnx.ModelProto) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        raise InputError(f"onnx_ir says: {_line(cause)} Repair or export the model again.") from error


def _line(error: BaseException) -> str:
    """An error's text as one line of bearable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else f"{text[:500]}..."


def _show(value: object) -> str:
    """A value out of the file, quoted and cut: it may be anything."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
