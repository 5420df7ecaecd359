"""The report: what must be on the page is on it, what a name says stays text, and nothing is loaded from outside."""

import html
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from graphwright.compare.latency import Samples, machine, summarize
from graphwright.compare.latency_plot import Series, draw
from graphwright.compare.report import write_report
from graphwright.manifest import (
    Build,
    Latency,
    Manifest,
    OutputParity,
    Reference,
    SiteCount,
    SiteRecord,
    TargetRecord,
    Verified,
    Worst,
)

SHAPES = {"input_ids": [1, 128], "attention_mask": [1, 128]}
MEDIANS = {"torch": 41.0, "ort-cpu:fp32": 25.6, "ort-cpu:int8-dynamic": 14.2}
GOLDEN = {"MatMul": 48, "Add": 97, "Reshape": 48, "Transpose": 24, "LayerNormalization": 13, "Softmax": 6, "Erf": 6}
LIFTED = {"MatMul": 36, "Add": 61, "LayerNormalization": 13, "Attention": 6, "Gelu": 6}
TOLERANCE = "max abs 1e-4, cosine 0.9999: fp32 against fp32, ten times the measured noise floor of 1.1e-5"


def timed() -> dict[str, Samples]:
    """A run of 24 rounds, with some slow calls."""
    noise = np.random.default_rng(7)
    return {
        name: Samples(
            tuple(
                tuple(int(ns) for ns in ms * 1e6 * noise.lognormal(0, 0.04, 5) * by)
                for by in noise.choice([1, 1.4], 24, p=[0.92, 0.08])
            )
        )
        for name, ms in MEDIANS.items()
    }


def compared(scale: float) -> Verified:
    outputs = [
        OutputParity(
            output=name, verdict="passed", max_abs=scale * by, max_rel=scale * 30, cosine=1 - scale, mean_cosine=1.0
        )
        for name, by in (("last_hidden_state", 1.0), ("pooler_output", 0.4))
    ]
    worst = Worst(
        output="last_hidden_state",
        shape=[8, 512, 384],
        case="padded",
        max_abs=scale,
        max_rel=scale * 30,
        cosine=1 - scale,
    )
    return Verified(verdict="passed", cases=14, rows=1536, worst=worst, outputs=outputs, tolerance=TOLERANCE)


def built(precision: str, latency: Latency | None) -> TargetRecord:
    folder = f"ort-cpu-{precision}"
    return TargetRecord.model_validate(
        {
            "target": "ort-cpu",
            "precision": precision,
            "status": "built",
            "artifact": f"{folder}/model.onnx",
            "graph": f"{folder}/graph.onnx",
            "sha256": {f"{folder}/model.onnx": "9f" * 32, f"{folder}/graph.onnx": "0c" * 32},
            "sites": {
                "attention": SiteCount(found=6, lifted=5, lowered_to={"com.microsoft.MultiHeadAttention": 5}),
                "norm": SiteCount(
                    found=13,
                    lifted=13,
                    lowered_to={"com.microsoft.SkipLayerNormalization": 12, "LayerNormalization": 1},
                ),
            },
            "precision_achieved": {"int8": 36, "fp32": 6} if precision != "fp32" else {"fp32": 42},
            "ops": {
                "golden": GOLDEN,
                "lifted": LIFTED,
                "target": {"MatMul": 36, "com.microsoft.MultiHeadAttention": 6, "com.microsoft.BiasGelu": 6},
            },
            "build": Build(
                runtime="ort-cpu",
                versions={"onnxruntime": "1.31.1", "graphwright": "0.1.0"},
                options={
                    "intra_op_threads": 2,
                    "graph_optimization_level": "all",
                    "providers": ["CPUExecutionProvider"],
                },
                seconds=3.42,
                bytes=90_864_211 if precision == "fp32" else 22_964_500,
                notes=["MatMul of layer 5 left in fp32: quantizing it lost more than the tolerance"],
            ),
            "verified": compared(2.4e-6 if precision == "fp32" else 3.1e-2),
            "latency": latency,
        }
    )


def tensorrt() -> TargetRecord:
    reason = "no NVIDIA GPU on this machine"
    return TargetRecord(
        target="tensorrt-rtx",
        precision="fp16",
        device="sm89",
        status="built",
        sha256={"tensorrt-rtx-sm89-fp16/model.engine": "ab" * 32},
        sites={"attention": SiteCount(found=6, lifted=5, lowered_to={"Attention": 5})},
        ops={"golden": GOLDEN, "lifted": LIFTED, "target": {"MatMul": 36, "Attention": 5, "Cast": 14}},
        build=Build(runtime="tensorrt-rtx", versions={"tensorrt-rtx": "1.7"}, seconds=2.9, bytes=50_112_000),
        verified=Verified(verdict="no device here", reason=reason),
    )


def failed() -> TargetRecord:
    return TargetRecord(
        target="openvino",
        precision="int8",
        status="failed",
        reason="the parser has no rule for operator 'Attention' (node encoder.layer.0)",
        verified=Verified(verdict="no device here"),
    )


def sites() -> list[SiteRecord]:
    attention = [
        SiteRecord(
            kind="attention",
            path=f"encoder.layer.{at}.attention.self",
            status="lifted",
            spelling="sdpa, masked, scale folded into the query",
        )
        for at in range(5)
    ]
    missed = SiteRecord(
        kind="attention",
        path="encoder.layer.5.attention.self",
        status="missed",
        spelling="softmax over a matmul",
        reason="the mask is added after the softmax: node Add_412 takes Softmax_411",
    )
    norms = [SiteRecord(kind="norm", path=f"encoder.layer.{at}.norm", status="lifted") for at in range(13)]
    gelu = SiteRecord(kind="gelu", path="pooler.act", status="declined", reason="tanh, not erf")
    return [*attention, missed, *norms, gelu]


def whole() -> Manifest:
    rows = summarize(timed(), "torch", SHAPES)
    return Manifest(
        source={"name": "minilm", "spec": "examples/minilm.py:spec", "weights sha256": "53" * 32},
        reference=Reference(runtime="torch", precision="fp32", version="2.13.0", latency=rows["torch"]),
        dynamic={"batch": [1, 1, 8], "sequence": [1, 128, 512]},
        golden="golden.safetensors",
        sites=sites(),
        targets=[
            built("fp32", rows["ort-cpu:fp32"]),
            built("int8-dynamic", rows["ort-cpu:int8-dynamic"]),
            tensorrt(),
            failed(),
        ],
    )


def page_of(manifest: Manifest, tmp_path: Path, samples: dict[str, list[float]] | None = None) -> str:
    out = tmp_path / "report.html"
    measured = {name: own.ms for name, own in timed().items()} if samples is None else samples
    write_report(manifest, measured, out, {**machine(), "load average before": "0.31"})
    return out.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The tags with their attributes, the text, and the cells of each table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.within = tag if tag in ("style", "td", "th", "sup") else self.within
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.within = "" if tag == self.within else self.within

    def handle_data(self, data: str) -> None:
        self.text += data if self.within != "style" else ""
        if self.within in ("td", "th", "sup"):
            self.rows[-1][-1] += data.strip()

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)


def test_each_target_has_a_line_in_plain_words(tmp_path: Path) -> None:
    text = Reader(page_of(whole(), tmp_path)).text
    assert re.search(r"ort-cpu:int8-dynamic: passed, 2\.\d\dx faster than torch \(95% CI", text)
    assert "tensorrt-rtx@sm89:fp16: no device here (no NVIDIA GPU on this machine)" in text
    assert "openvino:int8: not built: the parser has no rule for operator 'Attention'" in text


def test_wrong_results_are_said_and_their_speed_is_not(tmp_path: Path) -> None:
    manifest = whole()
    manifest.targets[0].verified.verdict = "failed"
    manifest.targets[0].verified.reason = "pooler_output: max abs 0.3, allowed 1e-4"
    text = Reader(page_of(manifest, tmp_path)).text
    assert "ort-cpu:fp32: wrong results (pooler_output: max abs 0.3, allowed 1e-4)\n" in text


def test_the_summary_holds_the_numbers(tmp_path: Path) -> None:
    manifest = whole()
    reader = Reader(page_of(manifest, tmp_path))
    row = reader.row("ort-cpu:fp32")
    latency = manifest.targets[0].latency
    assert latency is not None
    assert row[1:5] == ["built", "\N{CHECK MARK} passed", "2.4e-06", "0.999997"]
    assert row[5:7] == [f"{latency.median_ms:.1f}", f"{latency.p90_ms:.1f}"]
    assert row[7:] == [f"{latency.ratio_to_reference:.2f}", "90.9 MB"]
    assert reader.row("torch:fp32")[7] == "1.00"


def test_a_missing_number_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    manifest = whole()
    few = {name: Samples(own.blocks[:2]) for name, own in timed().items()}
    manifest.targets[0].latency = summarize(few, "torch", SHAPES)["ort-cpu:fp32"]
    some = {name: Samples(own.blocks[:7]) for name, own in timed().items()}
    manifest.targets[1].latency = summarize(some, "torch", SHAPES)["ort-cpu:int8-dynamic"]
    reader = Reader(page_of(manifest, tmp_path))
    notes = [html.unescape(note) for note in re.findall(r"<li>(.*?)</li>", page_of(manifest, tmp_path))]

    def reason(target: str, column: int) -> str:
        cell = reader.row(target)[column]
        assert cell[0] == "\N{EN DASH}"
        return str(notes[int(cell[1:]) - 1])

    assert reason("ort-cpu:fp32", 5) == "too few samples (10 of 11): raise --budget"
    assert reason("ort-cpu:int8-dynamic", 6) == "a 90th percentile needs 64 samples, here are 35"
    assert reason("tensorrt-rtx@sm89:fp16", 3) == "no NVIDIA GPU on this machine"
    assert reason("tensorrt-rtx@sm89:fp16", 5) == "no NVIDIA GPU on this machine"
    assert {reason("openvino:int8", at) for at in range(2, 9)} == {failed().reason}
    assert reader.row("ort-cpu:int8-dynamic")[5] != "\N{EN DASH}"


def test_parity_is_shown_for_each_output_with_its_tolerance(tmp_path: Path) -> None:
    reader = Reader(page_of(whole(), tmp_path))
    assert reader.row("pooler_output")[1:4] == ["\N{CHECK MARK} passed", "9.6e-07", "7.2e-05"]
    assert f"Tolerance: {TOLERANCE}" in reader.text
    assert "passed; 14 cases, 1,536 rows" in reader.text
    assert "Largest difference: last_hidden_state in case padded, shape 8\N{MULTIPLICATION SIGN}512" in reader.text


def test_a_cosine_below_one_never_reads_one_and_odd_numbers_are_shown(tmp_path: Path) -> None:
    manifest = whole()
    first, second = manifest.targets[0].verified.outputs
    first.cosine, second.cosine, second.max_abs = 0.99999997, math.nan, math.inf
    reader = Reader(page_of(manifest, tmp_path))
    assert reader.row("last_hidden_state")[4:6] == ["0.999999", "1.000000"]
    assert [reader.row("pooler_output")[at] for at in (2, 4)] == ["inf", "nan"]


def test_every_attention_site_is_listed_and_other_kinds_are_summed(tmp_path: Path) -> None:
    reader = Reader(page_of(whole(), tmp_path))
    missed = reader.row("encoder.layer.5.attention.self")
    assert missed[1:3] == ["softmax over a matmul", "missed"]
    assert "Add_412 takes Softmax_411" in missed[4]
    assert sum(row[0].startswith("encoder.layer.") for row in reader.rows if row) == 6
    assert ["norm", "13", "13", "0", "0", ""] in reader.rows
    assert ["gelu", "1", "0", "1", "0", "declined: tanh, not erf (1)"] in reader.rows
    became = "12 com.microsoft.SkipLayerNormalization, 1 LayerNormalization"
    assert ["norm", became, became, "\N{EN DASH}", "\N{EN DASH}"] in reader.rows


def test_operators_are_counted_stage_by_stage_sorted_and_only_if_they_occur(tmp_path: Path) -> None:
    manifest = whole()
    for record in manifest.targets[:3]:
        record.ops["golden"] = {**GOLDEN, "Unused": 0}
    reader = Reader(page_of(manifest, tmp_path))
    head = ["golden", "lifted", *(f"{name} target" for name in ("ort-cpu:fp32", "ort-cpu:int8-dynamic"))]
    assert reader.row("operator")[1:] == [*head, "tensorrt-rtx@sm89:fp16 target"]
    assert reader.row("all")[1:3] == ["242", "122"]
    assert reader.row("Softmax")[1:] == ["6", "0", "0", "0", "0"]
    at = reader.rows.index(reader.row("all"))
    assert [row[0] for row in reader.rows[at + 1 : at + 4]] == ["Add", "MatMul", "Reshape"]
    assert "Unused" not in reader.text


def test_stages_that_differ_between_targets_are_not_shared(tmp_path: Path) -> None:
    manifest = whole()
    manifest.targets[1].ops["lifted"] = {**LIFTED, "Cast": 3}
    head = Reader(page_of(manifest, tmp_path)).row("operator")
    assert head[1:4] == ["golden", "ort-cpu:fp32 lifted", "ort-cpu:fp32 target"]
    assert "ort-cpu:int8-dynamic lifted" in head


def test_build_machine_and_digests_are_there(tmp_path: Path) -> None:
    reader = Reader(page_of(whole(), tmp_path))
    assert reader.row("option graph_optimization_level")[1] == "all"
    assert reader.row("version of onnxruntime")[1] == "1.31.1"
    assert reader.row("note 1")[1].startswith("MatMul of layer 5 left in fp32")
    assert reader.row("load average before")[1] == "0.31"
    assert reader.row("dim sequence (min, opt, max)")[1] == "1, 128, 512"
    assert ["tensorrt-rtx@sm89:fp16", "tensorrt-rtx-sm89-fp16/model.engine", "ab" * 32] in reader.rows


HOSTILE = "<script>alert('&')</script>"


def hostile() -> Manifest:
    manifest = whole()
    manifest.source = {"name": HOSTILE, HOSTILE: HOSTILE}
    manifest.reference.runtime = manifest.reference.version = HOSTILE
    manifest.dynamic = {HOSTILE: [1, 2, 3]}
    manifest.sites[0].path = manifest.sites[0].spelling = manifest.sites[0].reason = HOSTILE
    manifest.sites[-1].kind = manifest.sites[-1].reason = HOSTILE
    record = manifest.targets[0]
    record.target = record.device = record.verified.tolerance = HOSTILE
    record.sha256 = {HOSTILE: HOSTILE}
    record.ops = {HOSTILE: {HOSTILE: 3}}
    record.sites = {"attention": SiteCount(found=1, lifted=1, lowered_to={HOSTILE: 1})}
    record.verified.outputs[0].output = record.verified.outputs[0].reason = HOSTILE
    if record.build and record.latency:
        record.build.notes, record.build.options, record.build.versions = (
            [HOSTILE],
            {HOSTILE: HOSTILE},
            {HOSTILE: HOSTILE},
        )
        record.latency.verdict, record.latency.inputs = HOSTILE, {HOSTILE: [1]}
    manifest.targets[3].reason = HOSTILE
    return manifest


def test_names_stay_text(tmp_path: Path) -> None:
    page = page_of(hostile(), tmp_path, {HOSTILE: [1.0, 2.0], f"{HOSTILE}@{HOSTILE}:fp32": [1.0], "$x_$": [2.0]})
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 30
    assert "$x_$" in draw([Series("$x_$", [1.0], None)], "torch")


@pytest.mark.parametrize("make", [whole, hostile])
def test_the_page_loads_nothing(make: Callable[[], Manifest], tmp_path: Path) -> None:
    page = page_of(make(), tmp_path)
    reader = Reader(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)|@font-face", page)
    assert "default-src 'none'" in page
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<html") == page.count("<!DOCTYPE") == 1


def test_the_page_is_the_same_for_the_same_run_and_small(tmp_path: Path) -> None:
    many = {f"target-{at}": list(np.random.default_rng(at).lognormal(2, 0.3, 5000)) for at in range(12)}
    first = page_of(whole(), tmp_path, many)
    assert first == page_of(whole(), tmp_path, many)
    assert len(first.encode()) < 2_000_000


def test_a_run_without_samples_or_sites_still_has_a_page(tmp_path: Path) -> None:
    empty = Manifest(
        source={"name": "empty"},
        reference=Reference(runtime="torch", precision="fp32", version="2.13.0"),
        targets=[failed()],
    )
    reader = Reader(page_of(empty, tmp_path, {}))
    assert "No latency was measured." in reader.text
    assert "None recorded." in reader.text
    assert reader.row("torch:fp32")[5].startswith("\N{EN DASH}")
