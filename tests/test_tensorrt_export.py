"""The target tensorrt-fp16: real plans where tensorrt-rtx is installed, a stand-in elsewhere.

Building needs no GPU; running does, and is tested elsewhere.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import factories
from conftest import SAMPLE
from fake_tensorrt import FakeTensorRT, Severity
from kosine.bundle import Bundle
from kosine.bundle.tensorfile import write_tensors
from kosine.cli import main
from kosine.errors import (
    BackendError,
    BackendUnavailable,
    MissingExtra,
    UnknownOption,
    UnsupportedCheckpoint,
)
from kosine_bench.measuring import models
from kosine_export import export as export_module
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import Exported, export
from kosine_export.graph.files import to_half
from kosine_export.graph.packed import packed_graph
from kosine_export.tensorrt import library as trt_library
from kosine_export.tensorrt.build import build_plan
from kosine_export.tensorrt.library import Library, Watch, find_library
from kosine_export.tensorrt.profiles import ONE_ROW_WIDTHS, WIDTHS, input_ranges, plan_profiles

LOG = (Path(__file__).parent / "fixtures" / "tensorrt-rtx-build.log").read_text(encoding="utf-8")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is not installed: no plan can be built here",
)


@pytest.fixture(autouse=True)
def timing_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KOSINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensorrt"


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "missing_packages", lambda **_: ("torch",))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The sample with a plan, exported without PyTorch: parity has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "missing_packages", lambda **_: ("torch",))
        path = tmp_path_factory.mktemp("tensorrt") / "sample.kosine"
        return export(SAMPLE, path, targets=("tensorrt-fp16",), trt_flavour="tensorrt-rtx")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample's float16 packed graph and weights."""
    return write_half(tmp_path_factory.mktemp("half"), SAMPLE)


def write_half(folder: Path, checkpoint: Path) -> Path:
    """`fp16/packed.onnx` and its weights, as an export writes them, and nothing else."""
    read = read_checkpoint(str(checkpoint))
    (folder / "fp16").mkdir(parents=True)
    tensors = {n: to_half(n, t) for n, t in read.tensors.items()}
    entries = write_tensors(folder / "fp16" / "weights.safetensors", tensors)
    graph, _ = packed_graph(read.spec, entries, max_tokens=read.max_tokens, precision="float16")
    (folder / "fp16" / "packed.onnx").write_bytes(graph.SerializeToString())
    return folder


# Profiles


@given(max_tokens=st.integers(3, 20_000))
def test_profiles_cover_the_longest_text_and_no_width_is_idle(max_tokens: int) -> None:
    profiles = plan_profiles(max_tokens)
    many = [p for p in profiles if p.max_rows > 1 or p.width > 128]
    widths = [p.width for p in many]
    assert widths == sorted(set(widths))
    assert widths[-1] >= max_tokens
    assert all(width < max_tokens for width in widths[:-1])
    assert widths[-1] in WIDTHS or widths[-1] == max_tokens > 512
    alone = [p for p in profiles if p not in many]
    assert [p.width for p in alone] == [w for w in widths if w in ONE_ROW_WIDTHS]
    assert all((p.min_rows, p.opt_rows, p.max_rows, p.max_slots) == (1, 1, 1, 1) for p in alone)
    assert profiles == (*many, *alone)
    for p in many:
        assert 1 == p.min_rows <= p.opt_rows <= p.max_rows
        assert p.max_slots == p.width // 5
        assert p.opt_rows == 1 or 4_000 < p.opt_rows * p.width <= 8_192


@given(max_tokens=st.integers(3, 3_000))
def test_input_ranges_are_what_the_profile_says(max_tokens: int) -> None:
    names = ("input_ids", "position_ids", "segment_ids", "pool_ids", "slots", "sentence_index")
    for p in plan_profiles(max_tokens):
        ranges = input_ranges(p, (*names, "token_index"))
        for name in names[:4]:
            assert ranges[name] == tuple((n, p.width) for n in (p.min_rows, p.opt_rows, p.max_rows))
        for low, opt, high in ranges.values():
            assert all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
        assert (ranges["slots"][0], ranges["slots"][2]) == ((1,), (p.max_slots,))
        most = (p.max_rows * p.max_slots,)
        assert (ranges["sentence_index"][0], ranges["sentence_index"][2]) == ((1,), most)
        assert ranges["token_index"] == ranges["sentence_index"]
    assert set(input_ranges(plan_profiles(128)[0], ("slots",))) == {"slots"}
    with pytest.raises(KeyError):
        input_ranges(plan_profiles(128)[0], ("attention_mask",))


# Real plans


@needs_rtx
def test_the_manifest_says_what_the_plan_is(exported: Exported) -> None:
    bundle = Bundle(exported.path)
    bundle.verify_all()
    manifest = bundle.manifest
    assert manifest == exported.manifest
    assert manifest.targets == ("onnx", "onnx-fp16", "tensorrt-fp16")
    (plan,) = manifest.plans
    version = find_library("tensorrt-rtx").version
    assert plan.path == f"tensorrt/tensorrt-rtx-{version}-sm86-sm89-sm120.plan"
    assert (plan.flavour, plan.version) == ("tensorrt-rtx", version)
    assert plan.architectures == ("8.6", "8.9", "12.0")
    assert plan.profiles == plan_profiles(128)
    (artifact,) = (a for a in manifest.artifacts if a.name == "tensorrt-fp16")
    assert artifact.precision == "float16"
    assert [entry.path for entry in artifact.files] == [plan.path]
    assert artifact.files[0].bytes == plan.evidence["engine_bytes"] > 12_000_000
    assert len(json.dumps(plan.evidence)) < 10_000
    # The plan was not run: what is known of its range is there, and no parity is claimed.
    assert manifest.certificates["onnx-fp16"]["passed"]
    assert "tensorrt" not in json.dumps(manifest.parity)


@needs_rtx
def test_every_layer_is_one_attention_kernel_in_every_profile(exported: Exported) -> None:
    evidence = exported.manifest.plans[0].evidence
    assert evidence["attention_kernels"] == 4 * 6
    assert evidence["encoder_layers"] == 4
    assert [(p["width"], p["max_rows"]) for p in evidence["profiles"]] == [
        (32, 512), (64, 256), (128, 128), (32, 1), (64, 1), (128, 1),
    ]  # fmt: skip
    for profile in evidence["profiles"]:
        assert profile["attention"] == 4
        assert profile["softmax"] == 0
        assert len(profile["pooling_and_norm"]) == 1
        assert 30 < profile["kernels"] < 60
    assert evidence["shortfalls"] == []
    assert not any("TensorRT" in note for note in exported.notes)


@needs_rtx
def test_the_network_as_parsed_has_float32_islands(exported: Exported) -> None:
    network = exported.manifest.plans[0].evidence["network"]
    names = ("input_ids", "position_ids", "segment_ids", "slots", "sentence_index")
    assert network["inputs"] == dict.fromkeys(names, "int64")
    assert network["outputs"] == {"vectors": "float32", "norms": "float32"}
    layers = network["layers"]
    assert layers["normalization"] == {"float32": 2 * 4 + 1}
    assert layers["softmax"] == {"float32": 4}
    assert layers["reduce"] == {"float32": 2}  # the mean's counts, the norm's squares
    # Six products a layer; the pooling's is the only one in float32.
    assert layers["matrix_multiply"] == {"float16": 6 * 4, "float32": 1}
    assert layers["unary"] == {"float16": 4, "float32": 1}  # Erf a layer, one square root


@needs_rtx
@pytest.mark.parametrize("architecture", ["8.6", "8.9", "12.0"])
def test_each_architecture_alone_is_fused_too(architecture: str, half: Path) -> None:
    """One log is written for all that a plan is for; this is each one's own."""
    plan = build(half, find_library("tensorrt-rtx"), architectures=(architecture,))
    assert plan.evidence["attention_kernels"] == 4 * 2
    assert plan.evidence["shortfalls"] == []
    assert plan.path.endswith(f"-sm{architecture.replace('.', '')}.plan")


@needs_rtx
@pytest.mark.parametrize("name", ["cls", "dense", "prompt-out", "electra"])
def test_other_encoders_are_built(name: str, tmp_path: Path) -> None:
    variants = {
        "cls": {"pooling": "cls"},
        "dense": {"dense": [{"outputs": 48}]},
        "prompt-out": {"include_prompt": False},
        "electra": {"family": "electra"},
    }
    checkpoint = factories.build(tmp_path / "checkpoint", seed=7, **variants[name])
    folder = write_half(tmp_path / "out", checkpoint)
    plan = build(folder, find_library("tensorrt-rtx"), num_layers=2)
    assert plan.evidence["attention_kernels"] == 2 * 2
    short = plan.evidence["shortfalls"]
    if name == "cls":  # where the first token is gathered before the norm's sum, that is said
        apart = [p for p in plan.evidence["profiles"] if not p["pooling_and_norm"]]
        assert [note.partition(": ")[2] for note in short] == [
            "pooling and the norm are kernels apart"
        ] * len(apart)
        assert apart
    else:
        assert short == []
    assert ("pool_ids" in plan.evidence["network"]["inputs"]) == (name == "prompt-out")


@needs_rtx
def test_a_graph_that_the_parser_does_not_read(tmp_path: Path) -> None:
    checkpoint = factories.build(tmp_path / "checkpoint", seed=7, pooling="max")
    folder = write_half(tmp_path / "out", checkpoint)
    with pytest.raises(UnsupportedCheckpoint, match=r"ScatterND_1: .*reduction is not supported"):
        build(folder, find_library("tensorrt-rtx"), num_layers=2)
    assert not (folder / "tensorrt").exists()


@needs_rtx
@pytest.mark.usefixtures("without_torch")
def test_a_failed_build_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    """Turing has no float32 products in this library, and pooling is one."""
    checkpoint = factories.build(tmp_path / "checkpoint", seed=7)
    with pytest.raises(BackendError, match=r"built no plan: .*SM75.*FP32 GEMM") as caught:
        export(
            checkpoint,
            tmp_path / "out.kosine",
            targets=("tensorrt-fp16",),
            trt_flavour="tensorrt-rtx",
            trt_architectures=("7.5",),
        )
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


@needs_rtx
def test_ctrl_c_stops_the_build(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def interrupt(share: float) -> None:
        seen.append(share)
        if share > 0.3:
            raise KeyboardInterrupt

    monkeypatch.setattr("kosine_export.tensorrt.build._bar_updates", lambda _: interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(half, find_library("tensorrt-rtx"))
    assert 0.3 < seen[-1] < 0.9
    assert seen == sorted(seen)


@needs_rtx
def test_the_librarys_log_goes_to_logging_alone(
    half: Path,
    timing_cache: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG, logger="kosine.tensorrt"):
        build(half, find_library("tensorrt-rtx"))
    assert any("_gemm_mha" in record.message for record in caplog.records)
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    assert capfd.readouterr() == ("", "")
    assert not timing_cache.exists()  # this flavour times nothing


@needs_rtx
def test_a_bar_is_drawn_where_it_is_asked_for(
    half: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build(half, find_library("tensorrt-rtx"), show_progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    last = err.rpartition("\r")[2]
    assert last.startswith("tensorrt-rtx: 100%")
    assert "text" not in last


@needs_rtx
@pytest.mark.usefixtures("without_torch")
def test_the_command_prints_the_plan_and_where_it_falls_short(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = factories.build(tmp_path / "checkpoint", seed=7, pooling="cls", max_length=32)
    out = tmp_path / "out.kosine"
    words = ["export", str(checkpoint), str(out), "--target", "tensorrt-fp16"]
    assert main([*words, "--trt-arch", "8.9", "--trt-flavour", "tensorrt-rtx"]) == 0
    text, err = capfd.readouterr()
    assert err == ""
    assert "for compute capability 8.9; 2 profiles, rows of 32 tokens; 4 fused" in text
    assert "not run, which takes its GPU" in text
    notes = [line for line in text.split("\n") if line.startswith("note: TensorRT: ")]
    assert notes
    assert main([*words, "--trt-arch", "8.6", "--trt-arch", "8.9", "--force", "--json"]) == 0
    text, err = capfd.readouterr()
    assert err == ""
    value = json.loads(text)
    assert value["targets"] == ["onnx", "onnx-fp16", "tensorrt-fp16"]
    assert value["plans"][0]["architectures"] == ["8.6", "8.9"]
    assert [f"note: {n}" for n in value["notes"] if n.startswith("TensorRT: ")] == notes


PEAK = """
import sys
from pathlib import Path
from kosine_export.tensorrt.build import build_plan
from kosine_export.tensorrt.library import find_library
import json

def peak():
    # VmHWM is this process's own; ru_maxrss would count the parent's before the exec.
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024

library = find_library("tensorrt-rtx")
before = peak()
plan = build_plan(Path(sys.argv[1]), library, max_tokens=512, num_layers=12,
                  architectures=library.architectures())
print(json.dumps({"bytes": peak() - before, "evidence": plan.evidence}))
"""


@needs_rtx
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_base_size(tmp_path: Path) -> None:
    checkpoint = models.build(models.SIZES["base"], tmp_path / "checkpoints")
    folder = write_half(tmp_path / "base", checkpoint)
    weights = (folder / "fp16" / "weights.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder)], capture_output=True, check=True, text=True
    )
    value = json.loads(done.stdout)
    evidence = value["evidence"]
    print(
        f"base: {evidence['build_seconds']} s, peak {value['bytes'] / 2**20:.0f} MiB = "
        f"{value['bytes'] / weights:.2f} x weights, plan {evidence['engine_bytes'] / 1e6:.0f} MB"
    )
    assert value["bytes"] <= 6 * weights
    assert evidence["engine_bytes"] <= 1.5 * weights
    assert evidence["attention_kernels"] == 12 * 8
    assert {p["attention"] for p in evidence["profiles"]} == {12}
    assert evidence["shortfalls"] == []
    layers = evidence["network"]["layers"]
    assert layers["normalization"] == {"float32": 25}
    assert layers["softmax"] == {"float32": 12}
    assert layers["matrix_multiply"] == {"float16": 72, "float32": 1}


# Choosing a library


def build(folder: Path, library: Library, **changes: object):
    options = {"max_tokens": 32, "num_layers": 4, "architectures": ("8.6",), **changes}
    return build_plan(folder, library, **options)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """Put a stand-in where `import tensorrt` finds it; no other TensorRT, and a GPU."""
    monkeypatch.setattr(trt_library, "gpu_architecture", lambda: "9.0")

    def put(*words: object, **options: object) -> FakeTensorRT:
        module = FakeTensorRT(*words, **options)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        return module

    return put


def test_no_tensorrt_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 'kosine\[tensorrt\]'") as caught:
        export(SAMPLE, tmp_path / "out.kosine", targets=("tensorrt-fp16",))
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(MissingExtra, match="tensorrt-rtx: "):
        find_library("tensorrt-rtx")


def test_a_package_without_its_libraries_is_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingExtra, match=r"libnvinfer.so.10: cannot open"):
        find_library("tensorrt")


@pytest.mark.parametrize("flavour", ["", "tensorrt_rtx", "rtx", "os"])
def test_unknown_flavours(flavour: str) -> None:
    with pytest.raises(UnknownOption, match="known: tensorrt, tensorrt-rtx"):
        find_library(flavour)


def test_of_both_the_one_that_can_build_here(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRT("1.7.1.116"))
    assert find_library().flavour == "tensorrt"
    monkeypatch.setattr(trt_library, "gpu_architecture", lambda: None)
    assert find_library().flavour == "tensorrt-rtx"
    assert find_library("tensorrt").flavour == "tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert find_library().flavour == "tensorrt"


def test_the_data_centre_flavour_builds_for_the_gpu_at_hand(
    fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    library = find_library()
    assert library.architectures() == ("9.0",)
    assert library.architectures(("9.0", "9.0")) == ("9.0",)
    with pytest.raises(UnknownOption, match=r"'8.6' here; known: 9.0"):
        library.architectures(("8.6",))
    monkeypatch.setattr(trt_library, "gpu_architecture", lambda: None)
    with pytest.raises(BackendUnavailable, match="there is none"):
        library.architectures()


@needs_rtx
@pytest.mark.parametrize("architecture", ["9.0", "86", "", "8.6.0", "CURRENT", "8.9; 1"])
def test_architectures_that_rtx_does_not_have(architecture: str) -> None:
    with pytest.raises(UnknownOption, match=r"known: 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"):
        find_library("tensorrt-rtx").architectures((architecture,))


def test_the_gpu_at_hand() -> None:
    """None on a machine without a driver or without a GPU, whatever its driver says."""
    found = trt_library.gpu_architecture()
    assert found is None or float(found) >= 5


@pytest.mark.parametrize(
    "words",
    [
        ["--target", "tensorrt-fp16", "--trt-flavour", "trt"],
        ["--trt-flavour", "tensorrt-rtx"],
        ["--trt-arch", "8.6"],
        ["--target", "tensorrt"],
    ],
)
def test_wrong_options_are_one_line(words: list[str], tmp_path: Path, kosine_command) -> None:
    done = kosine_command("export", SAMPLE, tmp_path / "out.kosine", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


# What the data-centre flavour does otherwise, with a stand-in


def test_version_10(fake, half: Path) -> None:
    module = fake("10.13.3.9", log=((Severity.VERBOSE, LOG),))
    plan = build(half, find_library(), architectures=("9.0",))
    (built,) = module.built
    assert built["flags"] == 1 << 1  # STRONGLY_TYPED
    assert built["profiling_verbosity"] == "detailed"
    assert [flag.name for flag in built["cleared"]] == ["TF32"]
    names = ("input_ids", "position_ids", "segment_ids", "slots", "sentence_index")
    assert built["profiles"] == [input_ranges(p, names) for p in plan_profiles(32)]
    assert plan.path == "tensorrt/tensorrt-10.13.3.9-sm90.plan"
    assert (half / plan.path).read_bytes() == b"engine"
    assert plan.architectures == ("9.0",)
    # The log is of one layer, and the stand-in's softmax is in float16: both are told.
    assert plan.evidence["attention_kernels"] == 2
    assert plan.evidence["shortfalls"] == [
        "at width 32, up to 512 rows: 1 fused attention kernels for 4 layers, "
        "0 separate softmax kernels",
        "at width 32, up to 1 rows: 1 fused attention kernels for 4 layers, "
        "0 separate softmax kernels",
        "1 softmax layers are not in float32",
    ]


def test_version_11_has_no_flags_to_set_and_no_monitor(fake, half: Path) -> None:
    module = fake("11.0.0.1")
    plan = build(half, find_library(), architectures=("9.0",))
    (built,) = module.built
    assert built["flags"] == 0
    assert built["cleared"] == []
    assert built["progress_monitor"] is None
    assert "lists no kernels" in plan.evidence["shortfalls"][0]


def test_timings_are_kept_between_builds(fake, half: Path, timing_cache: Path) -> None:
    module = fake()
    for _ in range(3):
        build(half, find_library(), architectures=("9.0",))
    assert [built["timings"] for built in module.built] == [b"", b"+", b"++"]
    assert {path.name: path.read_bytes() for path in timing_cache.iterdir()} == {
        "tensorrt-10.13.3.9-9.0.timing": b"+++"
    }


@pytest.mark.parametrize("held", [b"foreign", b"raises", b"nothing"])
def test_timings_of_another_build_are_ignored_with_a_log_line(
    held: bytes, fake, half: Path, timing_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = fake(rejects=(b"foreign",))
    timing_cache.mkdir(parents=True)
    path = timing_cache / "tensorrt-10.13.3.9-9.0.timing"
    path.write_bytes(held)
    with caplog.at_level(logging.INFO, logger="kosine.tensorrt"):
        build(half, find_library(), architectures=("9.0",))
    assert module.built[0]["timings"] == b""
    assert any("damaged, and not used" in record.message for record in caplog.records)
    assert path.read_bytes() == b"+"


def test_a_cache_that_cannot_be_written_costs_a_log_line(
    fake, half: Path, timing_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake()
    timing_cache.parent.write_bytes(b"a file where the folder would be")
    with caplog.at_level(logging.INFO, logger="kosine.tensorrt"):
        build(half, find_library(), architectures=("9.0",))
    assert any("is not kept" in record.message for record in caplog.records)


ERRORS = tuple((Severity.ERROR, f"error {n}:\nsecond line " + "x" * 500) for n in range(5))


def test_a_failure_ends_in_the_librarys_last_errors(fake, half: Path) -> None:
    fake(log=ERRORS, engine=None)
    with pytest.raises(
        BackendError, match=r"tensorrt 10\.13\.3\.9 built no plan: error 2: "
    ) as caught:
        build(half, find_library())
    message = str(caught.value)
    assert "error 4: second line" in message
    assert "error 1" not in message
    assert "\n" not in message
    assert len(message) < 1_500


@pytest.mark.parametrize("name", ["Builder", "build_serialized_network"])
def test_what_the_bindings_raise_is_typed(name: str, fake, half: Path) -> None:
    fake(broken=(name,))
    with pytest.raises(BackendError, match=r"failed \(TypeError: .* it logged no error") as caught:
        build(half, find_library())
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_refused_profile_is_an_error(fake, half: Path) -> None:
    fake(broken=("add_optimization_profile",))
    with pytest.raises(BackendError, match="refused the profile of width 32"):
        build(half, find_library())


def test_parser_errors_are_listed(fake, half: Path) -> None:
    fake(parse_errors=(("Erf_1", "no importer"), ("Where_1", "bad\nbroadcast")))
    with pytest.raises(UnsupportedCheckpoint, match=r"Erf_1: no importer \| Where_1: bad broad"):
        build(half, find_library())


def test_progress_is_the_share_of_the_phase_that_takes_the_time(fake) -> None:
    module = fake()
    seen: list[float] = []
    watch = Watch(find_library(), seen.append)
    module.Builder(watch.logger)
    config = module.create_builder_config()
    config.progress_monitor = watch.monitor
    module.build_serialized_network(module.create_network(0), config)
    assert seen == [0.5, 0.75, 1.0]


def test_an_exception_in_a_callback_is_raised_after_the_call(fake) -> None:
    module = fake()

    def fail(_: float) -> None:
        raise KeyboardInterrupt

    watch = Watch(find_library(), fail)
    module.Builder(watch.logger)
    config = module.create_builder_config()
    config.progress_monitor = watch.monitor
    assert module.build_serialized_network(module.create_network(0), config) is None
    with pytest.raises(KeyboardInterrupt):
        watch.reraise()


def test_write_half_is_what_an_export_writes(half: Path, sample_bundle: Path) -> None:
    """So that the builds above are builds of an export's own graph."""
    for name in ("fp16/packed.onnx", "fp16/weights.safetensors"):
        assert (half / name).read_bytes() == (sample_bundle / name).read_bytes()
    graph = onnx.load(str(half / "fp16" / "packed.onnx"))
    assert any(np.prod(t.dims) > 1_000_000 for t in graph.graph.initializer)
