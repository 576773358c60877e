"""Whole runs: what takes part, what is left out, and what the result holds."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from kosine_bench import command, paths
from kosine_bench.contestants.contestant import Checkpoint
from kosine_bench.contestants.conversion import STAMP, made_by
from kosine_bench.contestants.environment import ENVIRONMENTS, TORCH
from kosine_bench.contestants.kosine import KosineOnnx
from kosine_bench.contestants.rivals import OnnxRuntime, OnnxRuntimePlain
from kosine_bench.contestants.tei import TextEmbeddingsInference
from kosine_bench.measuring import models, result_file
from kosine_bench.measuring.contestant_state import ContestantState
from kosine_bench.measuring.duration import TimeEstimate, clock, part_seconds
from kosine_bench.measuring.plan import FULL, QUICK, Part, Plan
from kosine_bench.measuring.run import _Run
from kosine_bench.measuring.samples import agreement
from kosine_bench.measuring.tuning import affordable_texts, known_setting
from kosine_bench.measuring.work_file import WorkFile, calibration_ids, write_work
from kosine_bench.measuring.worker_process import WorkerFailed
from kosine_bench.measuring.workload import WORKLOADS, Column, Workload
from kosine_bench.report import tables

BENCH = Path(__file__).parent.parent / "bench"
TINY = replace(
    QUICK,
    single_texts=4,
    bursts=2,
    bulk_texts=32,
    load_seconds=0.1,
    tune_tokens=256,
    seconds={},
    repeats=2,
)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_every_package_of_an_environment_is_pinned() -> None:
    for environment in ENVIRONMENTS.values():
        lines = (BENCH / environment.constraints).read_text("utf-8").splitlines()
        pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
        names = {package.split("[")[0] for package in environment.packages}
        assert names <= pinned
        assert TORCH in lines


@pytest.fixture
def ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = {"matrix": {"float32": {"flops": 1e12}}, "memory": {"bytes_per_second": 1e11}}
    monkeypatch.setattr(_Run, "_ceilings", lambda *_: fixed)


@pytest.mark.usefixtures("ceilings")
def test_a_run_holds_figures_for_each_and_reasons_for_the_rest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sample_bundle: Path,
) -> None:
    monkeypatch.setenv("KOSINE_BENCH_CACHE", str(tmp_path / "cache"))
    converted = tmp_path / "cache" / "sample-sample" / "kosine"
    converted.mkdir(parents=True)
    (converted / "encoder.kosine").symlink_to(sample_bundle)
    (converted / STAMP).write_text(json.dumps(made_by("kosine")), "utf-8")
    monkeypatch.setattr(paths, "environments_dir", lambda: tmp_path / "venvs")
    bulk_once = Part(WORKLOADS["korsts"], models.SIZES["sample"], rounds={"bulk": 1})
    plan = Plan(
        (bulk_once,),
        (KosineOnnx, TextEmbeddingsInference),
        TINY,
        threads=1,
        quick=True,
        install=False,
    )
    monkeypatch.setattr(command, "plans", lambda _: [plan])
    output = tmp_path / "result.json"
    left: list[tuple[Any, int]] = []
    write = result_file.write

    def note(content: dict[str, Any], path: Path) -> None:
        write(content, path)
        kept = result_file.read(path)
        left.append((kept["made"].get("unfinished"), len(kept["figures"][0]["rounds"])))

    monkeypatch.setattr(result_file, "write", note)
    assert command.run(parse("--json", "--output", str(output))) == 0
    out = capsys.readouterr()
    result: dict[str, Any] = json.loads(out.out)
    assert result == {k: v for k, v in result_file.read(output).items() if k != "schema"}
    assert "round 2/2 sample" in out.err
    # What a run that is cut off leaves: all that was measured until then.
    assert left == [(True, 2), (True, 4), (None, 4)]

    keys = {(f["contestant"], f["mode"], f["scope"]) for f in result["figures"]}
    assert keys == {
        ("kosine-onnx-float32", mode, scope)
        for mode in ("single", "burst", "bulk")
        for scope in ("engine", "end-to-end")
    }
    for figure in result["figures"]:
        assert len(figure["rounds"]) == TINY.repeats * (1 if figure["mode"] == "bulk" else 2)
        assert figure["summary"]["tokens_per_second"] > 0
        assert 0 < figure["summary"]["limit_share"] < 1
    (load,) = result["load"]
    assert [row["share"] for row in load["rows"]] == [0.3, 0.5, 0.7, 0.9]
    (run,) = result["runs"]
    assert len(run["load_seconds"]) == len(run["peak_rss_bytes"]) == 2
    absent = {entry["name"]: entry["absent"] for entry in result["contestants"]}
    assert absent["kosine-onnx-float32"] is None
    assert result["workloads"]["korsts@sample"]["rounds"] == {"bulk": 1}
    assert "not installed" in absent["tei-float32"]
    assert "absent" in tables.text_table(result)

    text = output.read_text("utf-8")
    for private in (str(tmp_path), str(Path.home()), str(BENCH.parent), platform.node()):
        assert private not in text or len(private) < 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = models.build(models.SIZES["sample"], tmp_path_factory.mktemp("cache"))
    return Checkpoint(folder, folder)


def work_file(
    checkpoint: Checkpoint, folder: Path, name: str = "korsts", size: str = "base"
) -> WorkFile:
    return write_work(Part(WORKLOADS[name], models.SIZES[size]), checkpoint, FULL, folder)


def test_a_slow_contestant_is_given_fewer_texts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    work = work_file(checkpoint, tmp_path)
    total = len(work.lengths["bulk"])
    assert affordable_texts(work, "bulk", 1e9, 1.0) == total
    assert affordable_texts(work, "bulk", 1.0, None) == total
    some = affordable_texts(work, "bulk", 5_000.0, 1.0)
    assert some % 32 == 0
    assert sum(work.lengths["bulk"][:some]) <= 5_000 < sum(work.lengths["bulk"][: some + 32])
    assert affordable_texts(work, "bulk", 1.0, 1.0) == work.least("bulk") == 128
    assert affordable_texts(work, "burst", 1.0, 1.0) == work.least("burst") == 64
    assert affordable_texts(work, "single", 1.0, 1.0) == work.least("single") == 6
    assert [len(call) for call in work.calls("burst", 64)] == [32, 32]
    assert [len(call) for call in work.calls("bulk", 64)] == [64]
    assert work.flops("bulk", 64) == pytest.approx(
        sum(models.flops_per_text(work.size, n) for n in work.lengths["bulk"][:64])
    )


def test_of_texts_of_thousands_of_tokens_one_is_measured_once(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (part,) = command.plan(parse("--workload", "long8k")).parts
    folder = shutil.copytree(checkpoint.folder, tmp_path / "long")
    settings = folder / "sentence_bert_config.json"
    limit = json.loads(settings.read_text("utf-8")) | {"max_seq_length": 8192}
    settings.write_text(json.dumps(limit), "utf-8")
    checkpoint = Checkpoint(folder, folder)
    work = write_work(part, checkpoint, FULL, tmp_path)
    assert set(work.lengths["single"]) == {8192}
    assert affordable_texts(work, "single", 100.0, FULL.seconds["single"]) == 1
    one = work.flops("single", 1) / (0.65 * CEILINGS["matrix"]["float32"]["flops"])
    seconds = part_seconds(OnnxRuntime, work, FULL, CEILINGS, 0)
    assert {mode: round(spent / one, 3) for mode, spent in seconds.items()} == {
        "single": 2, "tune": 1, "check": 1,
    }  # fmt: skip
    assert not part_seconds(OnnxRuntime, work, FULL, CEILINGS, 1).keys() & {"single", "tune"}
    rows = calibration_ids([part], part.size, checkpoint)
    assert {len(row) for row in rows} == {512}


CEILINGS = {"matrix": {"float32": {"flops": 2.6e11}}, "memory": {"bytes_per_second": 4e10}}


def test_the_estimate_counts_what_is_done_in_a_round(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    work = work_file(checkpoint, tmp_path)
    first = part_seconds(KosineOnnx, work, FULL, CEILINGS, 0)
    later = part_seconds(KosineOnnx, work, FULL, CEILINGS, 1)
    assert set(first) - set(later) == {"tune", "check", "load"}
    assert set(later) == {"single", "burst", "bulk"}
    # Two ways in, each for about its seconds or, where that is longer, its least.
    for mode, seconds in FULL.seconds.items():
        least = work.flops(mode, work.least(mode)) / (0.65 * 2.6e11)
        assert 2 * max(seconds, least) <= later[mode] < 2 * max(seconds, least) + 10
    assert "tune" not in part_seconds(KosineOnnx, work, FULL, CEILINGS, 0, settled=True)
    rival = part_seconds(OnnxRuntime, work, FULL, CEILINGS, 0)
    assert rival["tune"] > first["tune"]
    assert "load" not in rival
    plain = part_seconds(OnnxRuntimePlain, work, FULL, CEILINGS, 0)
    # A slower machine needs longer for 100 arrivals; a fast one has them in the seconds of each.
    slow = {"matrix": {"float32": {"flops": 2.6e10}}}
    assert plain["load"] > 4 * FULL.load_seconds
    assert part_seconds(OnnxRuntimePlain, work, FULL, slow, 0)["load"] > 2 * plain["load"]
    quick = {"matrix": {"float32": {"flops": 2.6e13}}}
    assert sum(part_seconds(KosineOnnx, work, FULL, quick, 1).values()) < sum(later.values())


def test_a_setting_is_settled_once_for_all_sizes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pairs = (("korsts", "base"), ("korsts", "large"), ("faq", "base"))
    files = [work_file(checkpoint, tmp_path, name, size) for name, size in pairs]
    best = {"batch_size": 8, "order": "length", "streams": 1}
    tuning = {("x", "korsts@base", "burst"): {"best": best, "tokens_per_second": 3_600.0}}
    settled = known_setting(tuning, files, "x", files[1], "burst")
    assert settled is not None
    assert (settled["best"], settled["settled_by"]) == (best, "korsts@base")
    assert settled["tokens_per_second"] == pytest.approx(1_000, rel=0.05)
    assert known_setting(tuning, files, "x", files[0], "burst") is None
    assert known_setting(tuning, files, "x", files[2], "burst") is None


def test_bursts_settle_bulk_on_texts_of_one_length(checkpoint: Checkpoint, tmp_path: Path) -> None:
    equal = Workload("equal", (Column(16, 16.0, 16),), (0,))
    part = Part(equal, models.SIZES["sample"], rounds={"bulk": 1})
    work = write_work(part, checkpoint, FULL, tmp_path)
    burst = {"best": {"batch_size": 16, "order": "length", "streams": 2}, "tokens_per_second": 9.0}
    tuning = {("x", work.key, "burst"): burst}
    settled = known_setting(tuning, [work], "x", work, "bulk")
    assert settled == {**burst, "trials": [], "settled_by": "burst"}
    assert known_setting(tuning, [work], "x", work, "bulk", on_gpu=True) is None
    assert known_setting(tuning, [work], "x", work, "burst") is None
    mixed = work_file(checkpoint, tmp_path)
    tuning = {("x", mixed.key, "burst"): burst}
    assert known_setting(tuning, [mixed], "x", mixed, "bulk") is None
    tuned = part_seconds(OnnxRuntime, work, FULL, CEILINGS, 0)
    alone = replace(work, part=replace(part, modes=("bulk",)))
    assert "tune" in part_seconds(OnnxRuntime, alone, FULL, CEILINGS, 0)
    assert "bulk" in tuned
    assert "bulk" not in part_seconds(OnnxRuntime, work, FULL, CEILINGS, 1)


def test_what_remains_is_corrected_by_what_was_seen(checkpoint: Checkpoint, tmp_path: Path) -> None:
    work = work_file(checkpoint, tmp_path)
    mine, theirs = ContestantState(KosineOnnx), ContestantState(OnnxRuntime)
    steps = [(number, work.size, entry) for number in (0, 1) for entry in (mine, theirs)]
    remaining = TimeEstimate(FULL, [work], CEILINGS)
    guessed = remaining.of(steps)
    assert guessed == pytest.approx(sum(remaining.parts(steps).values()))
    first = remaining.of(steps[:1])
    remaining.saw(steps[0], 2 * first)
    # Half speed is expected of everyone, until there is more to go by.
    assert remaining.of(steps) == pytest.approx(2 * guessed)
    remaining.saw(steps[1], remaining.of(steps[1:2]) / 2)
    assert remaining.of(steps[:1]) == pytest.approx(2 * first)
    assert remaining.of(steps) < 2 * guessed
    theirs.reason = "it failed"
    assert remaining.of(steps[1:2]) == 0
    said: list[str] = []
    remaining.say(steps, said.append)
    assert said[0] == f"about {clock(sum(remaining.parts(steps).values()))} of measuring"
    assert [clock(s) for s in (40, 185, 3720)] == ["40 s", "3 min 05 s", "1 h 02 min"]


def test_agreement_divides_norms_out_and_reports_them() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = agreement(np.array([[2.0, 0.0], [1.0, 1.0]], np.float32), expected)
    assert found["min_cosine"] == pytest.approx(2**-0.5)
    assert found["mean_cosine"] == pytest.approx((1 + 2**-0.5) / 2)
    assert found["max_norm_error"] == pytest.approx(1.0)
    one_is_nan = agreement(np.array([[1.0, 0.0], [np.nan, 1.0]], np.float32), expected)
    assert (one_is_nan["min_cosine"], one_is_nan["mean_cosine"]) == (-1.0, 0.0)


def test_random_checkpoints_are_the_same_everywhere_and_readable(tmp_path: Path) -> None:
    from kosine_export.checkpoint.checkpoint import read_checkpoint

    size = models.ModelSize("tiny", 32_000, 32, 2, 2, 64, 66)
    first = models.build(size, tmp_path / "a")
    again = models.build(size, tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert models.build(size, tmp_path / "a") == first
    read = read_checkpoint(first)
    spec = read.spec
    assert (spec.hidden_size, len(spec.layers), spec.layers[0].attention.num_heads) == (32, 2, 2)
    assert (spec.family, spec.pooling.modes, read.max_tokens) == ("roberta", ("mean",), 64)
    checkpoint = Checkpoint(first, tmp_path)
    assert (checkpoint.dim, checkpoint.pad_id, checkpoint.max_tokens) == (32, 1, 64)


def test_who_dies_while_it_is_measured_is_left_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As a contestant does that runs out of memory on long texts."""
    part = Part(WORKLOADS["korsts"], models.SIZES["sample"])
    plan = Plan((part,), (KosineOnnx,), TINY, threads=1, quick=True)
    run = _Run(plan, lambda _: None, tmp_path)
    work = write_work(part, checkpoint, TINY, tmp_path)
    run.work, run.checkpoints = [work], {"sample": checkpoint}
    (state,) = run.states
    tuned = {"best": {"batch_size": 0}, "texts": 4, "tokens_per_second": 1.0}
    for mode in ("single", "burst", "bulk"):
        run.samples.tuning[state.kind.name, work.key, mode] = tuned

    class Worker:
        def ask(self, what: str, **_: object) -> Any:
            raise WorkerFailed(f"{what}: the process was killed")

    with pytest.raises(WorkerFailed, match="measure: the process was killed"):
        run._modes(cast(Any, Worker()), 0, state, work)
    state.reason = "the process was killed"
    result = run._result(unfinished=True)
    assert result["figures"] == []
    assert [each["absent"] for each in result["contestants"]] == [state.reason]


def test_who_cannot_be_made_for_a_size_takes_part_in_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [Part(WORKLOADS["korsts"], models.SIZES[name]) for name in ("sample", "base")]
    plan = Plan(tuple(parts), (KosineOnnx,), TINY, threads=1, quick=True)
    unknown = {"base"}

    class Worker:
        def __init__(self, size: models.ModelSize) -> None:
            self.size = size

        def ask(self, what: str, **_: object) -> Any:
            if what == "convert" and self.size.name in unknown:
                raise WorkerFailed("convert: no such model")
            return {"versions": {}, "convert": {}}.get(what)

    @contextlib.contextmanager
    def worker(_: _Run, __: object, size: models.ModelSize) -> Iterator[Worker]:
        yield Worker(size)

    monkeypatch.setattr(_Run, "_worker", worker)
    for reason in (None, "convert: no such model"):
        run = _Run(plan, lambda _: None, tmp_path)
        run.work = [SimpleNamespace(size=part.size, part=part) for part in parts]  # type: ignore[misc]
        (state,) = run.states
        for part in parts:
            run._convert(state, part.size, [])
        assert state.describe()["absent_from"] == dict.fromkeys(unknown, "convert: no such model")
        assert state.reason == reason
        assert len(run._work_of(models.SIZES["sample"], state)) == (reason is None)
        assert run._work_of(models.SIZES["base"], state) == []
        unknown.add("sample")
