"""YAML as it is read here: plain data with its places, by the words of YAML 1.2; everything else refused, quickly."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.errors import UsageError
from graphwright.yaml_text import MAX_BYTES, MAX_DEPTH, read_file, read_text, write_text

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | TEXT | st.sampled_from(["no", "on", "1:30", "1e-3", "0x10", "~", "<<", "007", "2020-01-01", "=", "&a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


def refusal(text: str) -> str:
    """Why it is refused; '' where it is read."""
    try:
        read_text(text, "x")
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, word == "true") for word in ("true", "false")],
        # words that YAML 1.1 takes for booleans, times of day, octals, dates and infinities are text
        *[
            (word, word)
            for word in (
                "yes",
                "no",
                "on",
                "off",
                "True",
                "1:30",
                "0o17",
                "0x10",
                "1_000",
                "2020-01-01",
                ".inf",
                ".nan",
            )
        ],
        *[("23", 23), ("-4", -4), ("0", 0), ("+7", 7), ("'23'", "23"), ('"true"', "true")],
        *[("1e-3", 1e-3), ("2.5", 2.5), (".5", 0.5), ("1.", 1.0), ("1E+2", 100.0)],
        *[("null", None), ("~", None), ("''", ""), ("a: ", {"a": None})],
        *[("<<", "<<"), ("'<<': 1", {"<<": 1}), ("1: a", {"1": "a"})],
        *[("[1, [2, a b]]", [1, [2, "a b"]]), ("", None), ("# nothing", None)],
    ],
)
def test_words_mean_what_they_do_in_yaml_1_2(text: str, value: Any) -> None:
    read = read_text(text, "x").value
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", r"x:1:4: anchors and aliases are not taken"),
        ("a: 1\nb: *x\n", r"x:2:4: anchors and aliases are not taken"),
        ("&x a: 1\n", r"x:1:1: anchors and aliases"),
        ("a: !!python/object/apply:os.system ['true']\n", r"x:1:4: tags are not taken"),
        ("a: !!str 1\n", r"x:1:4: tags are not taken"),
        ("a: ! 1\n", r"x:1:4: tags are not taken"),
        ("b: 1\n<<: {a: 1}\n", r"x:2:1: merge keys are not taken"),
        ("a: 1\nb: 2\na: 3\n", r"x:3:1: the key 'a' stands here twice"),
        ("a: {b: 1, 'b': 2}\n", r"x:1:11: the key 'b' stands here twice"),
        ("? [a]\n: 1\n", r"x:1:3: a key must be a word"),
        ("a: 1\n---\nb: 2\n", r"x:2:1: .*single document"),
        ("a:\n\tb: 1\n", r"x:2:1: .*cannot start any token"),
        ("a: [1, 2\n", r"x:2:1: .*expected ',' or '\]'"),
        ("a: \x00\n", r"x:1:4: the character U\+0000 is not text"),
        ('a: "\\ud800"\n', r"x:1:4: half of a character pair"),
        ('b: 1\na: "\\UFFFFFFFF"\n', r"x:2:\d+: an escape names no character"),
        ("a: " + "[" * 1000, rf"x:1:\d+: more than {MAX_DEPTH} levels"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        read_text(text, "x")


def test_places_are_those_of_keys_and_items() -> None:
    document = read_text("a: 1\nlist:\n  - x\n  - {key: 2}\n", "run.yaml")
    assert document.at(("a",)) == "run.yaml:1:1: "
    assert document.at(("list", 1, "key")) == "run.yaml:4:6: "
    assert document.at(("list", 0)) == "run.yaml:3:5: "
    # of what does not stand there: the innermost that does
    assert document.at(("list", 1, "other", 3)) == "run.yaml:4:5: "
    assert document.at(("missing",)) == "run.yaml:1:1: "


@given(VALUES)
@settings(deadline=None, max_examples=200)
def test_what_is_written_is_read_alike(value: Any) -> None:
    read = read_text(write_text(value), "x").value
    assert read == value
    assert repr(read) == repr(value)  # 1 and 1.0 and true are equal, but not alike


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`#?,<~ \n\t\\xUu0\u00e9\x07"), max_size=60) | st.text(max_size=40))
@settings(deadline=None, max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    said = refusal(text)
    assert said == "" or said.startswith("x:")


@pytest.mark.parametrize("unit", ["# x\n", "a, ", "- a\n", "[", "{a: 1, ", "x ", "? ", "1"])
def test_the_largest_file_is_done_with_quickly(unit: str) -> None:
    start = time.perf_counter()
    assert len(refusal(("[" if unit == "a, " else "") + unit * (MAX_BYTES // len(unit)))) < 1000
    assert time.perf_counter() - start < 20  # about 1 s; far more where work grows with the square of the size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xff\xfe\n", r":1:1: this line is not UTF-8"),
        (b"a: 1\nb: \xe9\n", r":2:1: this line is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), r"larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_file(tmp_path / "run.yaml")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent.yaml", ".", "pipe"):
        with pytest.raises(UsageError, match=r"does not exist or is no file"):
            read_file(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_file(tmp_path / "run.yaml").value == {"a": 1}
