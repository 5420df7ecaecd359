"""Device profiles: what each takes and lacks, jobs for them, and whether a machine is one."""

from __future__ import annotations

import platform
import re

import pytest

from graphwright.availability import builder_missing, missing, survey
from graphwright.devices import DEVICES, build_name, named, names
from graphwright.errors import UsageError
from graphwright.passes import TARGETS, parse_job
from graphwright.passes.lower import devices_of, legal_ops
from graphwright.runtimes import RUNTIMES
from graphwright.runtimes.cuda import cuda_missing
from graphwright.runtimes.machine import cpu_flags, cpu_misfit, flags_of, gpu_misfit
from graphwright.spec import PRECISIONS, Job


def test_the_profiles_of_a_target_are_those_of_the_table() -> None:
    for name, target in TARGETS.items():
        assert tuple(filter(None, target.devices)) == names(name)
    assert TARGETS["tensorrt-rtx"].devices[0] == "sm89", "the default"
    assert all(target in TARGETS for device in DEVICES.values() for target in device.targets)


def test_what_a_device_lacks() -> None:
    lacks = {name: [p for p in PRECISIONS if device.lacks(p)] for name, device in DEVICES.items()}
    assert lacks["jetson-orin"] == ["fp8", "nvfp4"]
    assert lacks["rtx-4090"] == lacks["l4"] == lacks["h100"] == ["nvfp4"]
    assert lacks["rtx-5090"] == []
    assert lacks["sm75"] == ["bf16", "int4", "fp8", "nvfp4"]
    assert lacks["x86-vnni"] == lacks["arm64-dotprod"] == ["fp16", "bf16", "fp8", "nvfp4"]


@pytest.mark.parametrize(
    ("text", "job", "built_for"),
    [
        ("tensorrt@jetson-orin:fp16", Job("tensorrt", "fp16", "jetson-orin"), "sm87"),
        ("tensorrt-rtx@rtx-4090+rtx-5090:bf16", Job("tensorrt-rtx", "bf16", "rtx-4090+rtx-5090"), "sm89+sm120"),
        ("tensorrt-rtx@rtx-4090+sm89", Job("tensorrt-rtx", "fp32", "rtx-4090+sm89"), "sm89"),
        ("ort-cuda@h100:bf16", Job("ort-cuda", "bf16", "h100"), "sm90"),
        ("ort-cpu@arm64-dotprod", Job("ort-cpu", "fp32", "arm64-dotprod"), "arm64-dotprod"),
    ],
)
def test_a_job_for_a_device(text: str, job: Job, built_for: str) -> None:
    assert parse_job(text) == job
    assert build_name(job.device) == built_for
    assert [device.name for device in devices_of(job)] == job.device.split("+")


def test_a_job_without_a_device_is_for_the_targets_default() -> None:
    assert devices_of(Job("ort-cpu")) == devices_of(Job("tensorrt")) == ()
    assert devices_of(Job("tensorrt-rtx")) == (DEVICES["sm89"],)
    assert build_name("") == ""
    assert named("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tensorrt@jetson-orin:fp8",
            "fp8 on jetson-orin: SM87 has no fp8 products; they came with SM89. Ask for another",
        ),
        ("tensorrt-rtx@sm89+sm75:bf16", "bf16 on sm75: SM75 has no bf16 products; they came with SM80."),
        ("ort-cpu@x86-avx2:fp8", "fp8 on x86-avx2: no CPU has fp8 products."),
        (
            "tensorrt-rtx@h100:fp16",
            "tensorrt-rtx makes nothing for 'h100'. It is H100, compute capability 9.0: for it there",
        ),
        ("tensorrt-rtx@jetson-orin", "for it there is tensorrt@jetson-orin."),
        (
            "ort-cuda@x86-vnni",
            "ort-cuda makes nothing for 'x86-vnni'. It is x86 with VNNI: for it there is ort-cpu@x86-vnni",
        ),
        ("tensorrt@l4+h100", "tensorrt makes one artifact for one device, but came 'l4+h100'"),
        ("tensorrt@jetson", "Unknown device for tensorrt 'jetson'. Did you mean 'jetson-orin'?"),
    ],
)
def test_what_a_device_cannot_do_is_said_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_job(text)


def test_a_device_takes_away_the_ops_that_its_software_lacks() -> None:
    everywhere, orin = (legal_ops(parse_job(text))[""] for text in ("tensorrt", "tensorrt@jetson-orin"))
    assert everywhere is not None
    assert orin is not None
    assert everywhere - orin >= {"Attention", "RMSNormalization", "RotaryEmbedding", "Swish"}
    assert {"Gelu", "LayerNormalization", "InstanceNormalization", "QuantizeLinear"} <= orin
    assert legal_ops(parse_job("ort-cpu@x86-avx2"))[""] is None


# --- this machine, and others by what they would tell

X86, ARM = "x86-64", "arm64"
AVX2, VNNI = ["avx2", "fma"], ["avx2", "fma", "avx512_vnni"]


@pytest.mark.parametrize(
    ("device", "precision", "kind", "flags", "reason"),
    [
        ("x86-avx2", "fp32", X86, AVX2, None),
        ("x86-avx2", "fp32", X86, VNNI, None),
        ("x86-avx2", "int8-dynamic", X86, AVX2, None),
        ("x86-avx2", "int8-dynamic", X86, VNNI, "has avx512_vnni, with which integer products give other numbers"),
        ("x86-avx2", "fp32", X86, ["avx2"], "does not tell of fma"),
        ("x86-vnni", "fp32", X86, AVX2, "does not tell of avx_vnni or avx512_vnni"),
        ("x86-vnni", "int8-dynamic", X86, [*AVX2, "avx_vnni"], None),
        ("x86-vnni", "fp32", ARM, VNNI, "x86-vnni is x86-64, and the CPU here is arm64"),
        ("arm64-dotprod", "int8-dynamic", ARM, ["asimd", "asimddp"], None),
        ("arm64-dotprod", "fp32", ARM, ["asimd"], "does not tell of asimddp"),
        ("arm64-dotprod", "fp32", X86, VNNI, "arm64-dotprod is arm64, and the CPU here is x86-64"),
    ],
)
def test_which_cpu_stands_for_a_device(
    device: str, precision: str, kind: str, flags: list[str], reason: str | None
) -> None:
    found = cpu_misfit(DEVICES[device], precision, kind, flags)  # type: ignore[arg-type]
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


def test_which_gpu_is_a_device() -> None:
    assert gpu_misfit(DEVICES["jetson-orin"], "sm87") is None
    assert gpu_misfit(DEVICES["rtx-4090"], "sm89") is None
    assert gpu_misfit(DEVICES["rtx-5090"], "sm89") == "rtx-5090 is sm120, and the GPU here is sm89"


def test_the_features_are_read_as_linux_writes_them() -> None:
    assert flags_of("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n") == {
        "fpu",
        "avx2",
        "fma",
    }
    assert flags_of("processor\t: 0\nFeatures\t: fp asimd asimddp\n") == {"fp", "asimd", "asimddp"}
    assert flags_of("processor: 0") == frozenset()
    if platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64"):
        assert cpu_flags()


def test_what_is_missing_here_is_the_runtime_first_then_the_device() -> None:
    other = "arm64-dotprod" if platform.machine() in ("x86_64", "AMD64") else "x86-avx2"
    job = parse_job(f"ort-cpu@{other}")
    assert missing(parse_job("ort-cpu")) is None
    assert other in str(missing(job))
    assert builder_missing(job) == missing(job), "it is lowered only"
    rtx = RUNTIMES["tensorrt-rtx"]
    for device in ("rtx-4090", "rtx-5090"):
        assert builder_missing(parse_job(f"tensorrt-rtx@{device}")) == rtx.builder_missing(), "for any device"
    if cuda_missing() is not None:
        assert missing(parse_job("ort-cuda@h100:fp16")) == cuda_missing()


def test_the_survey_holds_every_target_and_device() -> None:
    found = {each.name: each for each in survey()}
    assert set(found) == set(TARGETS)
    for name, each in found.items():
        assert [profile.name for profile in each.profiles] == list(names(name))
        for profile in each.profiles:
            assert set(profile.precisions) | set(profile.lacks) == set(TARGETS[name].precisions)
            assert bool(profile.why) == (profile.does != "runs")
        assert each.as_json()["here"] == (f"{each.does} ({each.why})" if each.why else each.does)
    orin = {profile.name: profile for profile in found["tensorrt"].profiles}["jetson-orin"]
    assert (orin.compute_capability, orin.tensorrt) == ("8.7", "10.3")
    assert found["ort-cpu"].does == "runs"
