"""Choice by measurement: what is tried, what is taken, and that it is measured once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphwright as gw
from graphwright import tuning
from graphwright.compare.latency import ROUNDS_FLOOR
from graphwright.errors import UsageError
from graphwright.passes.lower.forms import LINEAR, NORM
from graphwright.store import Store
from graphwright.tuning import tune

ATTENTION = "attention 4 x 8, masked"


def encoder() -> ir.Model:
    """One post-norm encoder layer, 32 wide, 4 heads, a padding mask."""
    random = np.random.default_rng(0)
    shapes = {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "wo": (32, 32), "b": (32,), "scale": (32,)}
    text = ", ".join(f"float{list(shape)} {name}" for name, shape in shapes.items())
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        encoder (float[B, S, 32] x, bool[B, 1, S, S] mask, {text}) => (float[B, S, 32] y)
        <int64[4] parts = {{0, 0, 4, 8}}, int64[3] flat = {{0, 0, 32}}> {{
            qm = MatMul(x, wq)  q = Add(qm, b)  km = MatMul(x, wk)  k = Add(km, b)  vm = MatMul(x, wv)  v = Add(vm, b)
            q4 = Reshape(q, parts)  k4 = Reshape(k, parts)  v4 = Reshape(v, parts)
            qt = Transpose <perm = [0, 2, 1, 3]> (q4)  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
            vt = Transpose <perm = [0, 2, 1, 3]> (v4)
            a = Attention (qt, kt, vt, mask)
            at = Transpose <perm = [0, 2, 1, 3]> (a)  af = Reshape(at, flat)
            om = MatMul(af, wo)  o = Add(om, b)  s = Add(o, x)  y = LayerNormalization <axis = -1> (s, scale, b) }}""")
    for value in list(model.graph.inputs):
        if value.name in shapes:
            array = (random.standard_normal(shapes[value.name]) / 6).astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    return model


def feeds(batch: int, length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    x = random.standard_normal((batch, length, 32)).astype(np.float32)
    return {"x": x, "mask": np.ones((batch, 1, length, length), bool)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_each_form_is_measured_once_and_the_answer_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SECONDS", 0.1)
    lifted, said = gw.lift(encoder()), list[str]()
    found = tune(lifted, "ort-cpu", [feeds(2, 8)], options={"threads": 1}, budget=1, store=store, progress=said.append)
    tried = [(trial.choice, trial.form) for trial in found.trials if trial.choice != "all classes"]
    assert tried == [
        *((LINEAR, "matmul"), (LINEAR, "packed")),
        *((ATTENTION, form) for form in ("multihead", "packed", "grouped", "primitive")),
        (NORM, "skip"),
    ]
    assert all(trial.low <= trial.ratio <= trial.high for trial in found.trials)
    assert not any(trial.taken and trial.low <= 1 for trial in found.trials)
    assert set(found.choices) == {LINEAR, ATTENTION, NORM}
    assert len(said) >= 2 * len(tried)
    again = tune(lifted, "ort-cpu", [feeds(2, 8)], options={"threads": 1}, budget=1, store=store)
    assert again.stored
    assert (again.choices, again.trials) == (found.choices, found.trials)
    made = gw.optimize(lifted, "ort-cpu", choices=again.choices)
    assert np.isfinite([trial.ratio for trial in again.trials]).all()
    assert made.model.graph.outputs[0].name == "y"


def test_what_the_user_set_is_not_tried(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SECONDS", 0.1)
    options = {"attention": "multihead", "norm": "plain"}
    found = tune(gw.lift(encoder()), "ort-cpu", [feeds(1, 4)], options=options, budget=1, store=store)
    assert {trial.choice for trial in found.trials} - {"all classes"} == {LINEAR}


def test_a_target_without_alternatives_is_not_measured(store: Store) -> None:
    assert tune(gw.lift(encoder()), "tensorrt-rtx:fp32", [feeds(1, 4)], budget=1, store=store).trials == []


@pytest.mark.parametrize(
    ("ratios", "taken"),
    [
        ([(1.5, 1.4, 1.6, 9), (1.5, 1.4, 1.6, 9)], True),
        ([(1.5, 1.4, 1.6, ROUNDS_FLOOR - 1)], False),  # too few rounds
        ([(1.2, 0.9, 1.4, 9)], False),  # not beyond the noise
        ([(1.004, 1.001, 1.006, 9)], False),  # no gain worth it
        ([(1.5, 1.4, 1.6, 9), (1.0, 0.9, 1.1, 9)], False),  # a lucky one: measured anew it is not faster
    ],
)
def test_only_what_is_faster_beyond_the_noise_is_taken(
    ratios: list[tuple[float, float, float, int]], taken: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(ratios)
    monkeypatch.setattr(tuning, "_compare", lambda *_: next(answers))
    options = {"attention": "standard", "linear": "rows"}  # the norm alone is open
    found = tune(gw.lift(encoder()), "ort-cpu", [feeds(1, 4)], options=options, budget=1, store=store)
    assert (found.choices[NORM] == "skip") is taken


def test_ship_tunes_and_writes_down_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SECONDS", 0.1)
    ir.save(encoder(), tmp_path / "encoder.onnx")
    made = gw.ship(
        tmp_path / "encoder.onnx",
        [("ort-cpu:fp32", {"attention": "standard", "norm": "plain"})],
        tmp_path / "made",
        budget=0,
        tune=True,
        tune_seconds=1,
    )
    (record,) = made.manifest.targets
    assert made.passed
    assert record.tuning is not None
    assert [trial.form for trial in record.tuning.trials if trial.choice == LINEAR] == ["matmul", "packed"]
    assert set(record.tuning.choices) == {LINEAR}
    page = (tmp_path / "made/report.html").read_text()
    assert "Chosen by measuring" in page
    assert "matmul" in page


def test_a_form_that_cannot_run_is_not_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "COMMAND", (sys.executable, "-c", "import os; os.abort()"))
    options = {"attention": "standard", "linear": "rows"}
    found = tune(gw.lift(encoder()), "ort-cpu", [feeds(1, 4)], options=options, budget=1, store=store)
    assert [trial.taken for trial in found.trials] == [False]
    assert "SIGABRT" in found.trials[0].reason
    assert found.choices == {NORM: "plain"}


def test_tuning_where_nothing_is_to_choose_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tune: no target of this run has forms to choose among; ort-cpu has\."):
        gw.ship(tmp_path / "encoder.onnx", ["tensorrt-rtx:fp32"], tmp_path / "made", tune=True)
