"""Inputs and outputs in the provider's memory: the lines that run on a GPU, run here in the CPU's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphwright.errors import InputError, ResourceError
from graphwright.runtimes.bound import Bound, BoundSession, Place, places

CPU = "CPUExecutionProvider"


def make(body: str, inputs: str, outputs: str, fixed: bool = False) -> BoundSession:
    text = f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    options = ort.SessionOptions()
    options.log_severity_level = 4
    model = onnx.parser.parse_model(text).SerializeToString()
    return BoundSession(ort.InferenceSession(model, options, providers=[CPU]), fixed)


@pytest.fixture
def double() -> Iterator[BoundSession]:
    with make("y = Add(x, x)", "float[N, M] x", "float[N, M] y") as session:
        yield session


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def place(bound: Bound, name: str) -> int:
    """Where an input lies."""
    return int(bound._inputs[name].data_ptr())


def test_equal_shapes_keep_their_place_and_others_get_a_new_one(double: BoundSession) -> None:
    first, second = numbers(3, 4), numbers(3, 4, seed=1)
    np.testing.assert_array_equal(double.run({"x": first})["y"], 2 * first)
    assert double._bound is not None
    before, at = double._bound, place(double._bound, "x")
    np.testing.assert_array_equal(double.run({"x": second})["y"], 2 * second)
    assert (double._bound, place(double._bound, "x")) == (before, at)
    np.testing.assert_array_equal(double.run({"x": numbers(1, 9)})["y"], 2 * numbers(1, 9))
    assert double._bound is not before


def test_what_was_given_back_stays_and_what_was_fed_is_not_touched(double: BoundSession) -> None:
    first, second = numbers(2, 3), numbers(2, 3, seed=1)
    kept = first.copy()
    result = double.run({"x": first})["y"]
    double.run({"x": second})
    np.testing.assert_array_equal(result, 2 * kept)
    np.testing.assert_array_equal(first, kept)


def test_arrays_of_any_layout_are_fed_as_they_read(double: BoundSession) -> None:
    base = numbers(4, 6)
    for array in (base[::2, ::-1], np.asfortranarray(base), np.broadcast_to(base[:1], (4, 6)), base[:0]):
        np.testing.assert_array_equal(double.run({"x": array})["y"], 2 * array)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "float16", "float64"])
def test_types_and_numbers_without_axes_come_through(dtype: str) -> None:
    kinds = {"float64": "double", "float32": "float"}
    kind = kinds.get(dtype, dtype)
    with make("y = Identity(x)  z = Identity(s)", f"{kind}[N] x, {kind} s", f"{kind}[N] y, {kind} z") as session:
        feeds = {"x": np.array([0, 1, 1], dtype), "s": np.array(1, dtype)}
        found = session.run(feeds)
    for name, wanted in {"y": feeds["x"], "z": feeds["s"]}.items():
        assert (found[name].dtype, found[name].shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(found[name], wanted)


def test_an_output_whose_size_hangs_on_the_numbers_may_change_it() -> None:
    with make("y = NonZero(x)", "float[N] x", "int64[1, K] y") as session:
        for given in ([1, 0, 2], [0, 0, 0], [1, 1, 1]):
            array = np.array(given, np.float32)
            np.testing.assert_array_equal(session.run({"x": array})["y"], [np.flatnonzero(array)])


def test_bound_inputs_run_again_and_again(double: BoundSession) -> None:
    one, other = double.bind({"x": numbers(2, 3)}), double.bind({"x": numbers(5, 1)})
    for bound, array in ((one, numbers(2, 3)), (other, numbers(5, 1)), (one, numbers(2, 3))):
        bound.run()
        np.testing.assert_array_equal(bound.read()["y"], 2 * array)
    one.write({"x": numbers(2, 3, seed=7)})
    one.run()
    np.testing.assert_array_equal(one.read()["y"], 2 * numbers(2, 3, seed=7))
    assert one.devices() == {"x": "cpu", "y": "cpu"}
    with pytest.raises(InputError, match=r"^Input 'x' must be float32, but is float64"):
        double.bind({"x": np.zeros((2, 3))})


def test_a_fixed_session_has_one_place_for_inputs_and_outputs() -> None:
    with make(
        "y = Add(x, x)  z = ReduceSum(y)", "float[2, 3] x", "float[2, 3] y, float[1, 1] z", fixed=True
    ) as session:
        bound = session.bind({"x": numbers(2, 3)})
        bound.run()
        at = [value.data_ptr() for value in bound._binding.get_outputs()]
        result = session.run({"x": numbers(2, 3, seed=1)})
        np.testing.assert_array_equal(result["y"], 2 * numbers(2, 3, seed=1))
        assert session.bind({"x": numbers(2, 3)}) is bound
        bound.run()
        assert [value.data_ptr() for value in bound._binding.get_outputs()] == at
        np.testing.assert_array_equal(bound.read()["y"], 2 * numbers(2, 3))
        np.testing.assert_array_equal(result["y"], 2 * numbers(2, 3, seed=1), err_msg="what was read is a copy")


def test_a_closed_session_binds_nothing(double: BoundSession) -> None:
    double.close()
    double.close()
    with pytest.raises(InputError, match="closed"):
        double.bind({"x": numbers(1, 1)})


def test_memory_that_ends_is_no_fault_of_the_inputs() -> None:
    with make("y = ConstantOfShape(x)", "int64[2] x", "float[N, M] y") as session:
        with pytest.raises(ResourceError, match=r"ran out of memory on x \[2\]: take smaller batches"):
            session.run({"x": np.array([1 << 24, 1 << 24])})
        assert session.run({"x": np.array([2, 3])})["y"].shape == (2, 3)
        with pytest.raises(InputError, match=r"^ONNX Runtime \(CPUExecutionProvider\) failed on x \[2\]: "):
            session.run({"x": np.array([-1, 3])})


def test_a_place_makes_tensors_of_a_type_and_shape(double: BoundSession) -> None:
    value = Place("cpu", 0).tensor((2, 0, 3), "float16")
    assert (list(value.shape()), value.data_type(), value.device_name()) == ([2, 0, 3], "tensor(float16)", "cpu")
    assert places(double._session) == ({"x": Place("cpu", 0)}, {"y": Place("cpu", 0)})
