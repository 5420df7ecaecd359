"""The main job on the real model: all-MiniLM-L6-v2, shipped to every target that needs no device."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graphwright as gw
from graphwright.manifest import TargetRecord
from graphwright.runtimes.reference import TorchSession

EXAMPLES = Path(__file__).parents[1] / "examples"
TARGETS = ["ort-cpu:fp32", "ort-cpu:int8-dynamic", "tensorrt-rtx:fp16"]


@pytest.fixture(scope="module")
def minilm() -> Iterator[object]:
    sys.path.insert(0, str(EXAMPLES))
    import minilm

    yield minilm
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> gw.Shipment:
    out = tmp_path_factory.mktemp("minilm") / "out"
    return gw.ship(f"{EXAMPLES / 'minilm.py'}:spec", targets=TARGETS, out=out, budget=3)


def record(shipped: gw.Shipment, job: str) -> TargetRecord:
    target, _, precision = job.partition(":")
    return next(r for r in shipped.manifest.targets if (r.target, r.precision) == (target, precision))


def test_all_local_targets_are_built_and_all_that_is_asked_holds(shipped: gw.Shipment) -> None:
    assert [r.status for r in shipped.manifest.targets] == ["built", "built", "built"]
    assert shipped.code == 0


def test_fp32_agrees_with_torch(shipped: gw.Shipment) -> None:
    verified = record(shipped, "ort-cpu:fp32").verified
    assert verified.passed
    assert verified.worst is not None
    assert verified.worst.max_abs <= 1e-5  # of embeddings of length 1; float32 sums in another order give about 3e-7
    assert verified.rows >= 128 + 2 * (1 + 3 + 8)  # every line of the text file, and the grid


def test_int8_keeps_the_direction_of_every_sentence(shipped: gw.Shipment) -> None:
    (output,) = record(shipped, "ort-cpu:int8-dynamic").verified.outputs
    assert output.mean_cosine >= 0.99
    assert output.cosine >= 0.96


def test_int8_over_the_lines_of_the_text_file_alone(shipped: gw.Shipment, minilm: object) -> None:
    spec = minilm.spec()  # type: ignore[attr-defined]
    cosines = []
    with TorchSession(spec) as reference, gw.load(shipped.out / "ort-cpu-int8-dynamic").open() as session:
        for sample in spec.samples():
            wanted, got = reference.run(sample)["embedding"], session.run(sample)["embedding"]
            cosines += list((wanted * got).sum(axis=1))  # both have length 1
    assert len(cosines) >= 100
    assert np.mean(cosines) >= 0.99
    assert np.min(cosines) >= 0.96


def test_the_rtx_engine_holds_the_weights_and_was_simulated_not_run(shipped: gw.Shipment) -> None:
    built = record(shipped, "tensorrt-rtx:fp16")
    graph = ir.load(shipped.out / built.graph)
    half = sum(2 * v.const_value.size for v in graph.graph.initializers.values() if v.const_value is not None)
    assert half > 40e6
    assert built.build is not None
    assert built.build.bytes >= 0.9 * half
    assert built.build.bytes == (shipped.out / built.artifact).stat().st_size
    assert (built.verified.verdict, built.verified.passed) == ("simulated", None)
    assert built.verified.worst is not None
    assert built.verified.worst.max_abs <= 1e-3  # of embeddings of length 1, whose entries are some 0.05 each
    assert built.notes[0] == "42 of 42 products in float16; ranges measured on 32 inputs"
    assert not any(note.startswith("float32:") for note in built.notes)
    assert built.precision_achieved == {"fp16": 42}


def test_every_site_is_lifted_and_stays_what_it_is(shipped: gw.Shipment) -> None:
    for target in shipped.manifest.targets:
        counts = {kind: (site.found, site.lifted, site.lowered_to) for kind, site in target.sites.items()}
        assert counts["attention"] == (6, 6, {"Attention": 6})
        assert counts["layer_norm"] == (13, 13, {"LayerNormalization": 13})
        assert counts["gelu"] == (6, 6, {"Gelu": 6})
    paths = [site.path for site in shipped.manifest.sites if site.kind == "attention"]
    assert paths == [f"encoder.encoder.layer.{index}.attention.self" for index in range(6)]


def test_a_second_run_takes_its_stages_from_the_store(shipped: gw.Shipment, tmp_path: Path) -> None:
    said: list[str] = []
    gw.ship(f"{EXAMPLES / 'minilm.py'}:spec", targets=TARGETS, out=tmp_path / "again", budget=0, progress=said.append)
    assert any(line.startswith("export: from the store") for line in said)
    assert any(line.startswith("reference: 33 cases from the store") for line in said)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("opset", [18, 20, 23])
def test_six_attentions_are_lifted_whatever_the_exporter_wrote(minilm: object, opset: int, attention: str) -> None:
    spec = minilm.spec(attention)  # type: ignore[attr-defined]
    golden = gw.to_onnx(spec, opset=opset)
    assert golden.opset_imports[""] == opset
    lifted = gw.lift(golden)
    sites = [site for site in lifted.log.sites if site.kind == "attention"]
    assert [site.status for site in sites] == ["lifted"] * 6
    ops = [node.op_type for node in lifted.model.graph]
    assert (ops.count("Attention"), ops.count("Softmax"), ops.count("Gelu"), ops.count("Erf")) == (6, 0, 6, 0)
    session = ort.InferenceSession(ir.to_proto(lifted.model).SerializeToString(), providers=["CPUExecutionProvider"])
    with TorchSession(spec) as reference:
        for batch, length in [(1, 1), (2, 7), (3, 40)]:
            ids = np.random.default_rng(length).integers(1000, 20000, (batch, length))
            mask = np.ones_like(ids)
            mask[-1, (length + 1) // 2 :] = 0
            feeds = {"input_ids": ids, "attention_mask": mask}
            difference = session.run(None, feeds)[0] - reference.run(feeds)["embedding"]
            assert np.abs(difference).max() <= 1e-6  # float32 sums in another order
