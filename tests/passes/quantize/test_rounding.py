"""Constants on their way to half: what would overflow or vanish is seen before, what got lost is counted."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.quantize.rounding import HalfType, Weight, Weights

FP16, BF16 = HalfType(ir.DataType.FLOAT16), HalfType(ir.DataType.BFLOAT16)


def look(array: object, half: HalfType = FP16) -> Weight:
    array = np.asarray(array, np.float32)
    value = ir.Value(name="w", const_value=ir.tensor(array, name="w"), type=ir.TensorType(ir.DataType.FLOAT))
    found = Weights(half).look(value)
    assert found is not None
    return found


def test_the_numbers_of_both_types() -> None:
    assert (FP16.largest, FP16.smallest, FP16.error, str(FP16)) == (65504, 2**-14, 2**-11, "float16")
    assert (BF16.largest, BF16.smallest, BF16.error) == (float(ml_dtypes.bfloat16(3.3895314e38)), 2**-126, 2**-8)


@pytest.mark.parametrize(
    ("array", "fp16", "bf16"),
    [
        ([1, -65504], False, False),
        ([1, -65519], False, False),  # rounded down
        ([1, -65520], True, False),
        ([3.4e38], True, True),
        ([np.inf, 1], False, False),  # is infinite as it is
        ([np.nan, 70_000], True, False),
        ([-np.inf, 70_000], True, False),
        (np.zeros((0, 3)), False, False),
    ],
)
def test_what_overflows(array: object, fp16: bool, bf16: bool) -> None:
    assert (look(array).overflows, look(array, BF16).overflows) == (fp16, bf16)


@pytest.mark.parametrize(
    ("number", "fp16", "bf16"), [(1e-12, True, False), (1 / 3, False, False), (0, False, False), (1e-41, True, True)]
)
def test_a_single_number_that_is_lost(number: float, fp16: bool, bf16: bool) -> None:
    assert (look(number).is_lost, look(number, BF16).is_lost) == (fp16, bf16)
    assert not look([number, number]).is_lost, "of several some may be small"


@pytest.mark.parametrize(("scale", "faint"), [(1, False), (1e-4, False), (1e-6, True), (1e-30, True), (0, False)])
def test_weights_that_are_faint_as_a_whole(scale: float, faint: bool) -> None:
    array = np.random.default_rng(0).normal(0, 1, (64, 64)).astype(np.float32) * np.float32(scale)
    assert look(array).is_faint(FP16) is faint
    assert not look(array, BF16).is_faint(BF16)
    if not faint and scale:  # full precision is kept
        kept = array.astype(np.float16).astype(np.float32)
        assert np.linalg.norm(kept - array) < 4 * FP16.error * np.linalg.norm(array)


def test_what_is_converted_is_counted() -> None:
    weights = Weights(FP16)
    made = weights.convert(np.array([1, 1e-9, 0, 1e5], np.float32), clip=False)
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made, np.array([1, 0, 0, np.inf], np.float16))
    assert str(weights.tally) == "4 numbers of 1 constants were converted, of which 1 became 0"
    mask = weights.convert(np.array([0, -3.4e38, -np.inf], np.float32), clip=True)
    np.testing.assert_array_equal(mask, np.array([0, -65504, -65504], np.float16))
    assert str(weights.tally).endswith("; 2 of masks were clipped into the range")


def test_each_constant_is_looked_at_once_and_what_is_computed_is_none() -> None:
    weights, computed = Weights(FP16), ir.Value(name="x")
    assert weights.look(computed) is None
    value = ir.Value(name="w", const_value=ir.tensor(np.ones(3, np.float32), name="w"))
    assert weights.look(value) is weights.look(value)
