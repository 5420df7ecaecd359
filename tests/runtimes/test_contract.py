"""The contract of every session, over the same tiny model: torch, ONNX Runtime's CPU, the evaluator of onnx."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphwright.errors import BuildError, Exit, InputError
from graphwright.runtimes import RUNTIMES, BuildRequest
from graphwright.runtimes.base import Session
from graphwright.runtimes.bound import BoundSession
from graphwright.runtimes.onnx_reference import OnnxReferenceSession
from graphwright.runtimes.ort_cpu import OrtSession, cores, distribution
from graphwright.runtimes.reference import TorchSession
from graphwright.spec import ModelSpec

Open = Callable[[], Session]

CPU = "CPUExecutionProvider"
# bound: by IOBinding, as on a GPU, but in the CPU's memory
PROVIDERS = {"torch": "torch", "ort-cpu": CPU, "openvino": "OpenVINO CPU", "bound": CPU, "onnx": "onnx.reference"}
FAILURES = {
    "torch": r"^Scores itself raised on ids \[2, 4\], bias \[2, 3\]: index out of range",
    "ort-cpu": r"^ONNX Runtime \(CPUExecutionProvider\) failed on ids \[2, 4\], bias \[2, 3\]: ",
    "bound": r"^ONNX Runtime \(CPUExecutionProvider\) failed on ids \[2, 4\], bias \[2, 3\]: ",
    "openvino": r"^OpenVINO CPU failed on input .ids.: its numbers must be -9 to 8, but are 9 to 9\.$",
    "onnx": r"^The reference evaluator of onnx failed: IndexError: ",
}
# sums of 8 products of numbers near 1, in float32
TOLERANCE = 1e-6


@pytest.fixture(params=PROVIDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_session(name: str, spec: ModelSpec, graph: Path) -> Open:
    if name == "torch":
        return lambda: TorchSession(spec)
    if name == "onnx":
        return lambda: OnnxReferenceSession(onnx.load(graph))
    if name == "bound":
        return lambda: BoundSession(ort.InferenceSession(graph, providers=[CPU]))
    runtime = RUNTIMES[name]
    return lambda: runtime.open(graph.parent / runtime.build(BuildRequest(graph)).artifact)


@pytest.fixture
def session(open_session: Open) -> Iterator[Session]:
    with open_session() as opened:
        yield opened


def feeds(batch: int = 2, sequence: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(batch * 100 + sequence)
    bias = random.standard_normal((batch, 3)).astype(np.float32)
    return {"ids": random.integers(0, 9, (batch, sequence)), "bias": bias}


def test_it_says_what_goes_in_and_comes_out(name: str, session: Session) -> None:
    assert session.provider == PROVIDERS[name]
    given = [(info.name, info.dtype, info.shape) for info in session.inputs]
    assert given == [("ids", "int64", ("batch", "sequence")), ("bias", "float32", ("batch", 3))]
    made = [(info.name, info.dtype) for info in session.outputs]
    assert made == [("scores", "float32"), ("kept", "bool")]
    # torch does not say which output dims are dynamic
    wanted = ((2, 5, 3), (2, 5)) if name == "torch" else (("batch", "sequence", 3), ("batch", "sequence"))
    assert tuple(info.shape for info in session.outputs) == wanted


@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (2, 4), (5, 17)])
def test_it_gives_what_torch_gives(session: Session, spec: ModelSpec, batch: int, sequence: int) -> None:
    given = feeds(batch, sequence)
    with TorchSession(spec) as reference:
        wanted = reference.run(given)
    found = session.run(given)
    assert list(found) == ["scores", "kept"]
    assert [(array.dtype, array.shape) for array in found.values()] == [
        (np.dtype(np.float32), (batch, sequence, 3)),
        (np.dtype(bool), (batch, sequence)),
    ]
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(found["kept"], wanted["kept"])


def test_two_runs_are_the_same_and_leave_the_feeds_alone(session: Session) -> None:
    given, other = feeds(), feeds(3, 7)
    kept = {key: array.copy() for key, array in given.items()}
    first = session.run(given)
    copied = {key: array.copy() for key, array in first.items()}
    session.run(other)
    for key, array in session.run(given).items():
        np.testing.assert_array_equal(array, copied[key])
        np.testing.assert_array_equal(first[key], copied[key], err_msg="a later run wrote into an earlier result")
    for key, array in given.items():
        np.testing.assert_array_equal(array, kept[key])


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "lay",
    [lambda array: array[::-1].copy()[::-1], np.asfortranarray, read_only],
    ids=["backwards", "by columns", "read-only"],
)
def test_any_layout_of_the_feeds_will_do(session: Session, lay: Callable[[np.ndarray], np.ndarray]) -> None:
    wanted = session.run(feeds())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = session.run({key: lay(array) for key, array in feeds().items()})
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array)


IDS, BIAS = feeds()["ids"], feeds()["bias"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": IDS}, "The inputs are ids, bias; came ids: wrong bias."),
        ({}, "The inputs are ids, bias; came none: wrong bias, ids."),
        ({"ids": IDS, "bias": BIAS, "mask": IDS}, "The inputs are ids, bias; came ids, bias, mask: wrong mask."),
        ({"ids": IDS.tolist(), "bias": BIAS}, "Input 'ids' must be a numpy array, but is a list."),
        (
            {"ids": IDS.astype(np.int32), "bias": BIAS},
            "Input 'ids' must be int64, but is int32: use .astype('int64').",
        ),
        ({"ids": IDS, "bias": BIAS.astype(">f4")}, "Input 'bias' must be float32, but is >f4: use .astype('float32')."),
        ({"ids": IDS[0], "bias": BIAS}, "Input 'ids' must have shape [batch, sequence], but has [4]."),
        ({"ids": IDS, "bias": BIAS[:, :2].copy()}, "Input 'bias' must have shape [batch, 3], but has [2, 2]."),
        (
            {"ids": IDS, "bias": BIAS[:1]},
            "Input 'bias' must have shape [batch, 3], but has [1, 3] ('batch' is 2 in 'ids').",
        ),
    ],
)
def test_feeds_that_do_not_fit(session: Session, given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$") as caught:
        session.run(given)
    assert caught.value.code is Exit.INPUT


def test_feeds_that_the_model_itself_refuses(name: str, session: Session) -> None:
    with pytest.raises(InputError, match=FAILURES[name]):
        session.run({"ids": np.full((2, 4), 9), "bias": BIAS})
    assert session.run(feeds())["kept"].shape == (2, 4), "the session is not lost by it"


def test_a_closed_session_is_closed(open_session: Open) -> None:
    with open_session() as session:
        session.run(feeds())
    session.close()
    session.close()
    with pytest.raises(InputError, match=r"^This session is closed: open the artifact again\.$"):
        session.run(feeds())


def test_a_session_is_closed_by_an_error_too(open_session: Open) -> None:
    opened = open_session()
    with pytest.raises(LookupError), opened:
        raise LookupError
    with pytest.raises(InputError, match="This session is closed"):
        opened.run(feeds())


# --- the reference alone


def test_the_reference_runs_in_evaluation_and_leaves_the_module_as_it_was(spec: ModelSpec) -> None:
    spec.module.train()
    try:
        with TorchSession(spec) as session:
            assert not np.isnan(session.run(feeds())["scores"]).any()
        assert spec.module.training
    finally:
        spec.module.eval()


# --- ONNX Runtime's CPU alone


def test_a_build_for_the_cpu_is_the_graph_itself(graph: Path) -> None:
    built = RUNTIMES["ort-cpu"].build(BuildRequest(graph))
    assert built.artifact == "model.onnx"
    assert built.versions == dict([distribution()])
    assert built.options["threads"] == cores()
    assert built.options["provider"] == "CPUExecutionProvider"
    assert built.ops["Gather"] == 1
    assert [path.name for path in graph.parent.iterdir()] == ["model.onnx"], "nothing else is left there"


def test_a_graph_that_onnx_runtime_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    value = [onnx.helper.make_tensor_value_info(text, onnx.TensorProto.FLOAT, [2]) for text in ("x", "y")]
    node = onnx.helper.make_node("NoSuchOp", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    proto = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 23)])
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    wanted = r"^ONNX Runtime \(CPUExecutionProvider\) refuses the graph: .*NoSuchOp"
    with pytest.raises(BuildError, match=wanted):
        RUNTIMES["ort-cpu"].build(BuildRequest(tmp_path / "model.onnx"))
    with pytest.raises(BuildError, match=wanted):
        OrtSession(proto.SerializeToString(), ["CPUExecutionProvider"])
    assert capfd.readouterr().err == "", "what goes wrong is said once, in the error"


def test_every_runtime_says_whether_it_can_run_and_build_here() -> None:
    for runtime in RUNTIMES.values():
        for reason in (runtime.missing(), runtime.builder_missing()):
            assert reason is None or (reason and reason[-1] not in ".:"), f"{runtime.name}: {reason!r} goes into a line"
    assert RUNTIMES["ort-cpu"].missing() is None
    assert {name: runtime.name for name, runtime in RUNTIMES.items()} == {name: name for name in RUNTIMES}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_evaluator_gathers_fewer_elements_as_onnx_runtime_does(axis: int) -> None:
    graph = onnx.parser.parse_graph(
        f"g (float[4, 5, 3] x, int64[2, 3, 2] i) => (float[2, 3, 2] y) {{ y = GatherElements <axis = {axis}> (x, i) }}"
    )
    proto = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 23)])
    random = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {
        "x": random.standard_normal((4, 5, 3), np.float32),
        "i": random.integers(-3, 3, (2, 3, 2)),
    }
    with OrtSession(proto.SerializeToString(), ["CPUExecutionProvider"]) as session:
        wanted = session.run(feeds)["y"]
    np.testing.assert_array_equal(OnnxReferenceSession(proto).run(feeds)["y"], wanted)
