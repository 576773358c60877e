"""The GPU suite: its contestants' batching and packing on a CPU, and what a GPU's run is."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kosine.errors import InputError
from kosine_bench import command
from kosine_bench.contestants import environment
from kosine_bench.contestants.contestant import Absent, Checkpoint, Contestant, Setting
from kosine_bench.contestants.kosine import KosineOnnxCuda, KosineOwnCuda
from kosine_bench.contestants.onnxruntime_cuda import OnnxRuntimeCuda
from kosine_bench.contestants.pytorch_cuda import (
    SentenceTransformersFloat32Cuda,
    TorchPadded,
    TorchVarlen,
)
from kosine_bench.contestants.registry import GPU_OURS, GPU_REFERENCE, GPU_RIVALS, find
from kosine_bench.contestants.rivals import OpenVinoInt8
from kosine_bench.measuring import machine, models, worker
from kosine_bench.measuring.duration import part_seconds
from kosine_bench.measuring.machine import Gpu
from kosine_bench.measuring.plan import GPU_FULL, Part
from kosine_bench.measuring.work_file import write_work
from kosine_bench.measuring.workload import WORKLOADS

SAMPLE = Path(__file__).parent.parent / "export" / "sample"
H200 = Gpu("NVIDIA H200", "9.0", 132, 139.8, "13.0")
TEXTS = [
    "한 남자가 기타를 치고 있다.",
    "비행기",
    "여자가 양파를 썰고 있다. 그리고 노래를 부르며 춤을 춘다.",
    "말",
    "주가가 사흘 연속 하락했다.",
]
ROWS = [[0, *range(10, 10 + n), 2] for n in (3, 126, 7, 1, 22, 7, 40)]
SETTINGS = [Setting(1), Setting(3), Setting(2, "length"), Setting(64)]


def by_sentence(q: Any, k: Any, v: Any, starts: Any, longest: int) -> Any:
    """Attention of one sentence after another: what varlen_attn must do on a GPU."""
    from torch.nn.functional import scaled_dot_product_attention

    mixed = q.new_full(q.shape, float("nan"))
    ends = starts[1:].tolist()
    for start, end in zip(starts[:-1].tolist(), ends, strict=True):
        assert 0 < end - start <= longest
        parts = [part[start:end].transpose(0, 1)[None] for part in (q, k, v)]
        mixed[start:end] = scaled_dot_product_attention(*parts)[0].transpose(0, 1)
    return mixed


class Reference(SentenceTransformersFloat32Cuda):
    target = "cpu"
    engine = True


class PaddedHere(TorchPadded):
    target = "cpu"
    dtype = "float32"


class VarlenHere(TorchVarlen):
    target = "cpu"
    dtype = "float32"

    def attention(self) -> Callable[..., Any]:
        return by_sentence


class OnnxRuntimeHere(OnnxRuntimeCuda):
    provider = "CPUExecutionProvider"
    target = "cpu"
    graph = "encoder.kosine/model.onnx"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, sample_bundle: Path) -> Checkpoint:
    cache = tmp_path_factory.mktemp("cache")
    folder = models.build(models.SIZES["sample"], cache)
    (cache / "converted").mkdir()
    (cache / "converted" / "encoder.kosine").symlink_to(sample_bundle)
    return Checkpoint(folder, cache / "converted")


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> dict[str, Any]:
    pytest.importorskip("sentence_transformers", reason="the reference needs it")
    contestant = Reference()
    contestant.load(checkpoint, threads=1)
    return {
        "texts": contestant.encode(TEXTS, Setting(8)),
        "rows": contestant.encode_ids(ROWS, Setting(8)),
    }


@pytest.mark.parametrize("kind", [PaddedHere, VarlenHere, OnnxRuntimeHere])
def test_vectors_are_the_references_however_a_call_is_cut(
    kind: type[Any], checkpoint: Checkpoint, reference: dict[str, Any]
) -> None:
    contestant = kind()
    contestant.load(checkpoint, threads=1)
    for setting in SETTINGS:
        vectors = contestant.encode_ids(ROWS, setting)
        assert vectors.dtype == np.float32
        assert np.abs(vectors - reference["rows"]).max() < 2e-6
    texts = contestant.encode(TEXTS, Setting(8))
    assert np.abs(texts - reference["texts"]).max() < 2e-6


@pytest.mark.parametrize("mode", ["single", "burst", "bulk"])
def test_every_contestant_has_settings_and_counts_its_tokens(mode: str) -> None:
    lengths = [17, 40, 5, 63] * 8
    for kind in GPU_RIVALS:
        contestant = kind()
        for setting in contestant.settings(mode):
            computed = contestant.computed_tokens(lengths, setting)
            exact = kind is TorchVarlen or setting.batch_size == 1
            assert computed == sum(lengths) if exact else computed >= sum(lengths)
            assert setting.streams == 1


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_bert_counts_positions_from_nought(tmp_path: Path, pooling: str) -> None:
    pytest.importorskip("sentence_transformers", reason="the reference needs it")
    transformers = pytest.importorskip("transformers", reason="makes a BERT")
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    shutil.copy(SAMPLE / "tokenizer.json", tmp_path / "tokenizer.json")
    models.write_modules(tmp_path, 32, 128, pooling=pooling)
    checkpoint = Checkpoint(tmp_path, tmp_path)
    vectors = []
    for kind in (Reference, PaddedHere, VarlenHere):
        contestant: Contestant = kind()
        contestant.load(checkpoint, threads=1)
        vectors.append(contestant.encode_ids(ROWS, Setting(3)))
    assert np.abs(vectors[0] - vectors[1]).max() < 2e-6
    assert np.abs(vectors[0] - vectors[2]).max() < 2e-6


def test_what_is_missing_is_a_reason(checkpoint: Checkpoint, monkeypatch: Any) -> None:
    class NoGraph(OnnxRuntimeHere):
        graph = "encoder.kosine/fp16/no.onnx"

    with pytest.raises(Absent, match="no float16 graph"):
        NoGraph().load(checkpoint, threads=1)

    class NoProvider(OnnxRuntimeHere):
        provider = "NoSuchExecutionProvider"

    with pytest.raises(Absent, match="pip install onnxruntime-gpu"):
        NoProvider().load(checkpoint, threads=1)

    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Absent, match="sees no CUDA device"):
        TorchVarlen().load(checkpoint, threads=1)


def test_no_attention_over_lengths_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    contestant = TorchVarlen()
    contestant.torch = torch

    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("kosine_bench.contestants.pytorch_cuda.importlib.import_module", refuse)
    with pytest.raises(Absent, match="no varlen_attn"):
        contestant.attention()


def test_ceilings_are_measured_with_every_precision() -> None:
    pytest.importorskip("torch")
    from kosine_bench.measuring import ceilings

    found = ceilings.measure_gpu("cpu", shapes=((32, 32, 32),), copy_bytes=1 << 16, seconds=1e-3)
    assert set(found["matrix"]) == {"float16", "bfloat16", "float32"}
    assert all(entry["flops"] > 0 for entry in found["matrix"].values())
    assert found["memory"]["bytes_per_second"] > 0


class Driver:
    """libcuda with one device; `failing` names the call that returns an error."""

    def __init__(self, count: int = 1, failing: str = "") -> None:
        self.count, self.failing = count, failing

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 100
            target = getattr(arguments[0], "_obj", None)
            if name == "cuDeviceGetCount":
                target.value = self.count
            elif name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA H200"
            elif name == "cuDeviceTotalMem_v2":
                target.value = 150_109_880_320
            elif name == "cuDriverGetVersion":
                target.value = 13_000
            elif name == "cuDeviceGetAttribute":
                target.value = {75: 9, 76: 0, 16: 132}[arguments[1]]
            return 0

        return call


def test_the_driver_is_asked_which_gpu_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cuda_driver", Driver)
    assert machine.visible_gpu() == H200
    for absent in (Driver(0), Driver(failing="cuInit"), Driver(failing="cuDeviceGetCount"), None):
        monkeypatch.setattr(machine, "_cuda_driver", lambda absent=absent: absent)
        assert machine.visible_gpu() is None


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CUDA_LIBRARIES", ("libno_such_library_at_all.so",))
    assert machine.visible_gpu() is None


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible_gpu", lambda: H200)


@pytest.mark.usefixtures("with_gpu")
def test_a_visible_gpu_is_measured_too() -> None:
    cpu, cuda = command.plans(parse())
    assert (cpu.device, cuda.device, cuda.gpu) == ("cpu", "cuda", H200)
    assert {kind.device for kind in cpu.contestants} == {"cpu"}
    assert {kind.device for kind in cuda.contestants} == {"cuda"}
    assert set(GPU_OURS) < set(cuda.contestants)
    assert "torch-compiled-float16-cuda" not in {kind.name for kind in cuda.contestants}
    assert [(part.workload.name, part.size.name) for part in cuda.parts] == [
        (name, size)
        for size in ("base", "large")
        for name in WORKLOADS
        if name not in ("documents", "long8k")  # which are longer than they take
    ]
    named = command.plan(parse("--workload", "long8k"), H200).parts
    assert [(part.workload.name, part.size.name) for part in named] == [("long8k", "large8k")]
    assert [part.modes[3:] for part in cuda.parts] == [("load",), *[()] * 9]
    assert [plan.device for plan in command.plans(parse("--device", "cpu"))] == ["cpu"]
    assert [plan.device for plan in command.plans(parse("--device", "cuda"))] == ["cuda"]
    (quick,) = command.plans(parse("--quick", "--device", "cuda"))
    assert [(part.workload.name, part.size.name) for part in quick.parts] == [("korsts", "base")]


@pytest.mark.usefixtures("with_gpu")
def test_named_rivals_say_which_device_is_measured() -> None:
    (only,) = command.plans(parse("--rivals", "torch-varlen"))
    assert {kind.name for kind in only.contestants if not kind.ours} == {
        "torch-varlen-float16-cuda"
    }
    assert [plan.device for plan in command.plans(parse("--rivals", "openvino"))] == ["cpu"]
    assert [plan.device for plan in command.plans(parse("--rivals", "none"))] == ["cpu", "cuda"]


def test_no_gpu_means_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible_gpu", lambda: None)
    assert [plan.device for plan in command.plans(parse())] == ["cpu"]
    with pytest.raises(InputError, match="no CUDA device is visible"):
        command.plans(parse("--device", "cuda"))


def test_workers_find_every_contestant_by_name() -> None:
    for kind in (*GPU_OURS, *GPU_RIVALS, GPU_REFERENCE):
        assert type(find(kind.name)) is kind


def test_the_interpreter_at_hand_is_used_where_its_pytorch_sees_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KOSINE_BENCH_GPU_PYTHON", "/named/python")
    seen: list[str] = []

    def probe(interpreter: str) -> bool:
        seen.append(interpreter)
        return len(seen) == 2

    monkeypatch.setattr(environment, "_sees_gpu", probe)
    chosen = environment.python("gpu", print, install=False)
    assert seen[0] == "/named/python"
    assert str(chosen) == seen[1] == environment.sys.executable
    monkeypatch.setattr(environment, "_sees_gpu", lambda _: False)
    monkeypatch.setattr(environment.paths, "environments_dir", lambda: Path("/nowhere"))
    with pytest.raises(Absent, match="not installed"):
        environment.python("gpu", print, install=False)


def test_packed_rows_on_a_gpu_are_counted_with_their_filler(sample: Any) -> None:
    contestant = KosineOnnxCuda()
    contestant.encoder = sample
    lengths = [17, 40, 5, 63] * 64
    computed = contestant.computed_tokens(lengths, Setting(0))
    assert sum(lengths) <= computed < 1.5 * sum(lengths)


def test_a_round_on_a_gpu_is_guessed_by_its_seconds(checkpoint: Checkpoint, tmp_path: Path) -> None:
    part = Part(WORKLOADS["faq"], models.SIZES["base"], ("single", "burst", "bulk"))
    work = write_work(part, checkpoint, GPU_FULL, tmp_path)
    assert len(work.lengths["bulk"]) == 8192
    assert json.loads(work.path.read_text("utf-8"))["burst"] == 32
    first = part_seconds(TorchVarlen, work, GPU_FULL, {}, 0)
    later = part_seconds(TorchVarlen, work, GPU_FULL, {}, 1)
    assert 2 * sum(GPU_FULL.seconds.values()) <= sum(later.values()) < sum(first.values()) < 15


class Counting:
    """Counts the texts of each call instead of computing anything."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def apply(self, setting: Setting) -> None:
        """Nothing to get ready."""

    def encode(self, texts: Any, setting: Setting) -> Any:  # noqa: ARG002
        self.calls.append(len(texts))
        return np.ones((len(texts), 4), np.float32)

    encode_ids = encode


class CountingOnGpu(Counting, TorchVarlen): ...


class CountingOnCpu(Counting, OpenVinoInt8): ...


@pytest.mark.parametrize(("kind", "passes"), [(CountingOnGpu, 2), (CountingOnCpu, 1)])
def test_every_shape_is_warm_before_the_clock_starts(
    kind: type[Any],
    passes: int,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = Part(WORKLOADS["korsts"], models.SIZES["sample"], ("burst",))
    work = write_work(part, checkpoint, replace(GPU_FULL, bulk_texts=64), tmp_path)
    contestant = kind()
    monkeypatch.setattr(worker, "find", lambda _: contestant)
    made = worker.Worker("counting", str(checkpoint.folder), str(checkpoint.converted))
    made.texts(str(work.path))
    setting = Setting(32).as_dict()
    for scope, warm in (("engine", passes * [32, 32, 32]), ("end-to-end", [32])):
        contestant.calls.clear()
        samples = made.measure("burst", scope, setting, 96)
        assert contestant.calls == [*warm, 32, 32, 32]
        assert len(samples["seconds"]) == 3
        contestant.calls.clear()
        made.measure("burst", scope, setting, 96)
        assert contestant.calls == [32, 32, 32]  # again at once: warm already


def test_a_few_bursts_settle_how_bursts_are_cut(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part(WORKLOADS["korsts"], models.SIZES["sample"], ("burst",))
    work = write_work(part, checkpoint, replace(GPU_FULL, bulk_texts=64), tmp_path)
    contestant = CountingOnGpu()
    monkeypatch.setattr(worker, "find", lambda _: contestant)
    made = worker.Worker("counting", str(checkpoint.folder), str(checkpoint.converted))
    made.texts(str(work.path))
    settings = len(contestant.settings("burst"))
    made.tune("burst", tokens=32_768)
    assert contestant.calls == settings * [32] * (3 * worker.MOST_TUNING_BURSTS + 1)


NO_GPU = machine.visible_gpu() is None


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
def test_kosines_own_kernels_are_absent_where_they_cannot_run(
    checkpoint: Checkpoint, sample_bundle: Path
) -> None:
    folder = checkpoint.converted / "kosine-cuda"
    folder.mkdir()
    (folder / "encoder.kosine").symlink_to(sample_bundle)
    try:
        with pytest.raises(Absent, match="cuda"):
            KosineOwnCuda().load(checkpoint, threads=1)
    finally:
        shutil.rmtree(folder)


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU, reason="no CUDA device is visible")
@pytest.mark.parametrize(
    "kind", [TorchPadded, TorchVarlen, OnnxRuntimeCuda, KosineOnnxCuda, KosineOwnCuda]
)
def test_float16_on_the_gpu_agrees_with_the_reference(
    kind: type[Any], checkpoint: Checkpoint, reference: dict[str, Any]
) -> None:
    contestant = kind()
    try:
        for name in contestant.converts:
            worker.Worker(kind.name, str(checkpoint.folder), str(checkpoint.converted)).convert([])
            assert (checkpoint.converted / name).is_dir()
        contestant.load(checkpoint, threads=1)
    except Absent as absent:
        pytest.skip(f"{kind.name}: {absent}")
    for setting in contestant.settings("burst"):
        vectors = contestant.encode_ids(ROWS, setting).astype(np.float64)
        cosines = (vectors * reference["rows"]).sum(axis=1) / np.linalg.norm(vectors, axis=1)
        assert cosines.min() >= 0.9998
