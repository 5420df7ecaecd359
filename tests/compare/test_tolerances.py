"""Tolerances that the user sets in place of the table's."""

import pytest

from graphwright.compare.parity import TOLERANCES, tolerance
from graphwright.manifest import Allowed, Tolerances

GIVEN = Tolerances(
    precisions={"fp16": Allowed(absolute=0.5), "int8": Allowed(min_cosine=0.5)},
    outputs={"y": Allowed(absolute=0.25, single=0.125)},
)


def test_nothing_given_is_the_table() -> None:
    assert tolerance("fp16") is TOLERANCES["fp16"]
    assert tolerance("bf16", GIVEN) == TOLERANCES["bf16"]
    assert tolerance("bf16", GIVEN, "x") == TOLERANCES["bf16"]


def test_a_precision_counts_before_the_table_and_an_output_before_both() -> None:
    table, own, output = TOLERANCES["fp16"], tolerance("fp16", GIVEN, "x"), tolerance("fp16", GIVEN, "y")
    assert (own.absolute, own.single, own.min_cosine) == (0.5, 0.5, table.min_cosine)
    assert (output.absolute, output.single, output.min_cosine) == (0.25, 0.125, table.min_cosine)
    assert tolerance("int8", GIVEN).min_cosine == 0.5
    assert tolerance("int8", GIVEN).mean_cosine == TOLERANCES["int8"].mean_cosine


@pytest.mark.parametrize(
    ("output", "said"), [("", "set by the user: absolute 0.5. Else: 11 bits"), ("y", "single 0.12")]
)
def test_what_the_user_set_is_said_as_such(output: str, said: str) -> None:
    assert said in str(tolerance("fp16", GIVEN, output))
