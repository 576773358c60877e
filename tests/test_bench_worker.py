"""The worker process and what runs it, on the sample encoder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kosine
from kosine_bench.contestants.contestant import Absent, Checkpoint
from kosine_bench.measuring import models
from kosine_bench.measuring.plan import Effort, Part
from kosine_bench.measuring.work_file import WorkFile, write_work
from kosine_bench.measuring.worker_process import WorkerFailed, WorkerProcess, import_seconds
from kosine_bench.measuring.workload import WORKLOADS

EFFORT = Effort(2, 1, 8, 3, 64, 1e12, 1e12, 1e12, 0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, sample_bundle: Path) -> Checkpoint:
    cache = tmp_path_factory.mktemp("cache")
    folder = models.build(models.SIZES["sample"], cache)
    converted = cache / "converted"
    (converted / "kosine").mkdir(parents=True)
    (converted / "kosine" / "encoder.kosine").symlink_to(sample_bundle)
    return Checkpoint(folder, converted)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> WorkFile:
    folder = tmp_path_factory.mktemp("work")
    return write_work(Part(WORKLOADS["korsts"], models.SIZES["sample"]), checkpoint, EFFORT, folder)


def start(checkpoint: Checkpoint, folder: Path, name: str = "kosine-onnx-float32") -> WorkerProcess:
    return WorkerProcess(
        *(Path(sys.executable), name, checkpoint.folder, checkpoint.converted),
        *(1, {}, folder / "worker.log"),
    )


@pytest.fixture
def worker(checkpoint: Checkpoint, work: WorkFile, tmp_path: Path) -> Iterator[WorkerProcess]:
    with start(checkpoint, tmp_path) as process:
        process.ask("load", threads=1)
        process.ask("texts", file=str(work.path))
        yield process


def test_outputs_are_the_encoders(
    worker: WorkerProcess, work: WorkFile, tmp_path: Path, sample: kosine.Encoder
) -> None:
    assert worker.ask("outputs", file=str(tmp_path / "o.npz")) == ["end-to-end", "engine"]
    import json

    texts = json.loads(work.path.read_text("utf-8"))["parts"]["parity"]["texts"]
    expected = sample.encode(texts)
    with np.load(tmp_path / "o.npz") as arrays:
        for scope in ("end-to-end", "engine"):
            assert np.abs(arrays[scope] - expected).max() < 1e-5


@pytest.mark.parametrize("scope", ["engine", "end-to-end"])
def test_samples_say_what_was_done(worker: WorkerProcess, work: WorkFile, scope: str) -> None:
    for mode in ("single", "burst", "bulk"):
        tuned = worker.ask("tune", mode=mode, tokens=512)
        assert tuned["tokens_per_second"] > 0
        setting = tuned["best"]
        samples = worker.ask("measure", mode=mode, scope=scope, setting=setting)
        assert len(samples["seconds"]) == len(work.calls(mode))
        assert min(samples["seconds"]) > 0
        assert samples["cpu_seconds"] > 0
        assert samples["sentences"] == len(work.lengths[mode])
        assert samples["tokens"] == sum(work.lengths[mode])
        # Packed rows: hardly any filler, where padding would more than double a burst.
        assert samples["tokens"] <= samples["computed_tokens"] < 1.3 * samples["tokens"]


def test_fewer_texts_are_measured_where_that_is_asked(
    worker: WorkerProcess, work: WorkFile
) -> None:
    setting = {"batch_size": 0, "order": "arrival", "streams": 1}
    asked = {"scope": "engine", "setting": setting, "texts": 32}
    for mode, calls in (("burst", 1), ("bulk", 1)):
        samples = worker.ask("measure", mode=mode, **asked)
        assert (len(samples["seconds"]), samples["sentences"]) == (calls, 32)
        assert samples["tokens"] == sum(work.lengths[mode][:32])


def test_load_has_one_point_per_share(worker: WorkerProcess) -> None:
    setting = {"batch_size": 0, "order": "arrival", "streams": 1}
    answer = worker.ask("load_test", setting=setting, shares=[0.3, 0.6], seconds=0.2, seed=1)
    assert answer["capacity"] > 0
    for point, share in zip(answer["points"], (0.3, 0.6), strict=True):
        assert point["rate"] == pytest.approx(share * answer["capacity"])
        assert 1 <= point["batches"] <= len(point["latencies"])
    assert worker.ask("peak_rss") > 2**24
    assert worker.ask("versions")["kosine"]


def test_a_failure_is_an_answer_and_the_worker_lives_on(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerFailed, match="LookupError"):
        worker.ask("no_such_request")
    with pytest.raises(WorkerFailed, match="FileNotFoundError"):
        worker.ask("texts", file="/nowhere/at/all.json")
    assert worker.ask("peak_rss") > 0


def test_an_unknown_contestant_ends_its_process(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with (
        start(checkpoint, tmp_path, "nobody") as process,
        pytest.raises(WorkerFailed, match="nobody"),
    ):
        process.ask("load", threads=1)


def test_a_contestant_that_cannot_run_is_absent(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KOSINE_BENCH_TEI_URL", raising=False)
    monkeypatch.delenv("KOSINE_BENCH_TEI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        start(checkpoint, tmp_path, "tei-float32") as process,
        pytest.raises(Absent, match="text-embeddings-router"),
    ):
        process.ask("load", threads=1)


def test_import_time_is_a_fresh_interpreters() -> None:
    python = Path(sys.executable)
    assert 0 < import_seconds(python, "import json", 1, {}) < 5
    with pytest.raises(Absent, match="ModuleNotFoundError"):
        import_seconds(python, "import no_such_module_at_all", 1, {})


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells no better")
def test_the_peak_is_not_that_of_who_started_the_process() -> None:
    code = (
        "from kosine_bench.contestants.contestant import Contestant; "
        "print(Contestant.peak_rss(None))"
    )
    held = np.ones(1 << 27, np.uint8).repeat(4)  # 512 MiB
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**24 < int(done.stdout) < held.nbytes
