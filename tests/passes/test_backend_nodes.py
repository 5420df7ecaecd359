"""ONNX's own backend tests: what plain ONNX Runtime answers rightly, it answers in the same way behind `optimize`.

Cases that ONNX Runtime itself refuses or answers otherwise than ONNX are left out: there is nothing to keep.
"""

from __future__ import annotations

import ctypes
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as Case
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from onnxruntime.capi import onnxruntime_pybind11_state as state

from graphwright.errors import GraphwrightError
from graphwright.passes import optimize

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
SAMPLE, ANSWERED = 300, 1500
PROTOS = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto, "tensor_type": onnx.TensorProto}
UNNAMED = r"bfloat16|float8|float4|\bu?int[24]\b"  # types that numpy has no name for: their bytes are fed and read
# of float16, as the runner allows of bfloat16: a fused op rounds fewer intermediates than what it stands for
TWO_ULPS = 2.0**-9
REFUSALS = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)

Values = list[Any]


def all_cases() -> list[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, where a case is about infinities
        return sorted((case for kind in KINDS for case in load_model_tests(kind=kind)), key=lambda case: case.name)


def load(case: Case) -> tuple[onnx.ModelProto, list[tuple[Values, Values]]]:
    """The model and its sets of (inputs, outputs)."""
    if case.model is not None:
        return case.model, [(list(map(plain, fed)), list(map(plain, made))) for fed, made in case.data_sets or ()]
    folder = Path(str(case.model_dir))
    model = onnx.load(folder / "model.onnx")
    sets = [
        (list(read_protos(each, "input", model.graph.input)), list(read_protos(each, "output", model.graph.output)))
        for each in sorted(folder.glob("test_data_set_*"))
    ]
    return model, sets


def read_protos(folder: Path, kind: str, infos: Sequence[onnx.ValueInfoProto]) -> Iterator[Any]:
    for index, info in enumerate(infos):
        if (folder / f"{kind}_{index}.pb").exists():  # an input with a default is not fed
            proto = PROTOS[info.type.WhichOneof("value")]()
            proto.ParseFromString((folder / f"{kind}_{index}.pb").read_bytes())
            yield plain(proto)


def plain(value: Any) -> Any:
    """A tensor as an array, a sequence as a list."""
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def run(data: bytes, sets: list[tuple[Values, Values]]) -> list[Values]:
    """The outputs of each set, on ONNX Runtime's CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # threads cost more than these cases
    options.log_severity_level = 4  # refusals are expected
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [info.name for info in session.get_inputs()]
    return [answer(session, dict(zip(names, inputs, strict=False))) for inputs, _ in sets]


def answer(session: ort.InferenceSession, feeds: dict[str, Any]) -> Values:
    if not any(re.search(UNNAMED, info.type) for info in (*session.get_inputs(), *session.get_outputs())):
        return list(session.run(None, feeds))
    values = session.run_with_ort_values(None, {name: tensor_of(array) for name, array in feeds.items()})
    return [array_of(value) for value in values]


def tensor_of(array: np.ndarray) -> ort.OrtValue:
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(array)
    tensor = ir.tensor(array)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), int(tensor.dtype))
    ctypes.memmove(value.data_ptr(), tensor.tobytes(), value.tensor_size_in_bytes())
    return value


def array_of(value: ort.OrtValue) -> Any:
    kind = value.element_type()
    if ir.DataType(kind).numpy().isbuiltin == 1:
        return value.numpy()
    held = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return numpy_helper.to_array(onnx.TensorProto(data_type=kind, dims=value.shape(), raw_data=held))


def differs(got: list[Values], wanted: list[Values], case: Case) -> str:
    """How the outputs differ, by ONNX's own measure; empty if they do not."""
    try:
        assert_similar(got, wanted, case)
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return ""


def assert_similar(got: Any, wanted: Any, case: Case) -> None:
    if isinstance(wanted, list | tuple):
        assert isinstance(got, list | tuple)
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_similar(one, other, case)
    elif wanted is None or got is None:
        assert got is wanted
    else:
        wanted, got = np.asarray(wanted), np.asarray(got)
        rtol = max(case.rtol, TWO_ULPS) if wanted.dtype == np.float16 else case.rtol
        Runner.assert_similar_outputs([wanted], [got], rtol, case.atol)


def check(cases: list[Case]) -> tuple[int, list[str]]:
    """How many cases ONNX Runtime answers rightly, and what became wrong in which of them."""
    answered, wrong = 0, []
    for case in cases:
        model, sets = load(case)
        try:
            raw = run(model.SerializeToString(), sets)
        except REFUSALS:
            continue
        if differs(raw, [made for _, made in sets], case):
            continue
        answered += 1
        try:
            done = optimize(ir.from_proto(model), target="ort-cpu").model
            got = run(ir.to_proto(done).SerializeToString(), sets)
        except (GraphwrightError, *REFUSALS) as error:
            wrong.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        reason = differs(got, [made for _, made in sets], case) or differs(got, raw, case)
        wrong += [f"{case.name}: {reason}"] if reason else []
    return answered, wrong


def test_a_sample_of_300_cases() -> None:
    cases = all_cases()
    answered, wrong = check(cases[:: len(cases) // (SAMPLE * 4 // 3)])  # three of four are answered
    assert not wrong
    assert answered >= SAMPLE


@pytest.mark.full
def test_every_case() -> None:
    answered, wrong = check(all_cases())
    assert not wrong
    assert answered >= ANSWERED
