"""A checkpoint of one's own beside the known sizes."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kosine.errors import InputError, UnknownOption, UnsupportedCheckpoint
from kosine_bench import command
from kosine_bench.contestants import conversion
from kosine_bench.contestants.contestant import Checkpoint
from kosine_bench.contestants.kosine import KosineOnnx
from kosine_bench.contestants.registry import FORCED
from kosine_bench.contestants.rivals import _pool
from kosine_bench.measuring import models, own_model
from kosine_bench.measuring.contestant_state import ContestantState
from kosine_bench.measuring.plan import FULL, MODES, Part, Plan
from kosine_bench.measuring.run import _Run
from kosine_bench.measuring.tuning import known_setting
from kosine_bench.measuring.work_file import WorkFile
from kosine_bench.measuring.worker import Worker
from kosine_bench.measuring.workload import WORKLOADS

SAMPLE = Path(__file__).parent.parent / "export" / "sample"
TINY = models.ModelSize("tiny", 12_000, 32, 2, 2, 64, 66)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample under another name."""
    monkeypatch.setenv("KOSINE_BENCH_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(SAMPLE, tmp_path / "my-model"))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`tiny(config, pooling)`: a small encoder of random weights, those fields changed."""
    monkeypatch.setenv("KOSINE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "_tokenizer", lambda _: SAMPLE / "tokenizer.json")

    def make(config: dict[str, Any], pooling: dict[str, bool]) -> Path:
        folder = shutil.copytree(models.build(TINY, tmp_path / "built"), tmp_path / "mine")
        for name, changes in (("config.json", config), ("1_Pooling/config.json", pooling)):
            content = json.loads((folder / name).read_text("utf-8"))
            (folder / name).write_text(json.dumps(content | changes), "utf-8")
        return Path(folder)

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_a_trained_size_with_its_own_shape(mine: Path, tmp_path: Path) -> None:
    before = contents(mine)
    size = own_model.read(mine)
    known = models.SIZES["sample"]
    assert (size.name, size.family, size.max_tokens) == ("my-model", "roberta", 128)
    assert size.describe() == known.describe()
    assert models.flops_per_text(size, 20) == models.flops_per_text(known, 20)
    folder = models.build(size)
    assert folder.is_relative_to(tmp_path / "cache" / "checkpoints")
    assert contents(mine) == before
    checkpoint = Checkpoint(folder, tmp_path)
    assert (checkpoint.dim, checkpoint.pad_id, checkpoint.max_tokens) == (256, 1, 128)
    assert (checkpoint.pooling, checkpoint.trained) == ("mean", True)
    text = "한 남자가 기타를 치고 있다."
    whole = Checkpoint(models.build(known, tmp_path / "known"), tmp_path)
    assert checkpoint.tokenizer().encode(text).ids == whole.tokenizer().encode(text).ids
    # The same content is the same folder, wherever it lies; other weights are another.
    moved = own_model.read(Path(shutil.move(mine, tmp_path / "moved" / "my-model")))
    assert moved == size
    assert (folder / "model.safetensors").read_bytes()
    weights = tmp_path / "moved" / "my-model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\0\1")
    assert own_model.read(weights.parent).folder != folder


def test_bert_and_cls_are_read(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"], "pad_token_id": 1}
    cls = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    size = own_model.read(tiny(config, cls))
    assert (size.family, size.position_rows, size.max_tokens) == ("bert", 66, 64)
    assert models.flops_per_text(size, 9) == models.flops_per_text(TINY, 9)
    assert Checkpoint(models.build(size), tmp_path).pooling == "cls"


@pytest.mark.parametrize(
    ("config", "pooling", "message"),
    [
        ({"model_type": "mpnet"}, {}, r"model_type 'mpnet'.*bert, roberta, xlm-roberta"),
        ({"model_type": "t5"}, {}, r"model_type 't5'.*bert, roberta, xlm-roberta"),
        ({}, {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "pooling max"),
        ({}, {"pooling_mode_cls_token": True}, r"pooling cls\+mean.*mean or cls"),
    ],
)
def test_what_some_contestant_would_get_wrong_is_refused(
    tiny: Callable[..., Path], config: dict[str, Any], pooling: dict[str, bool], message: str
) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=message):
        own_model.read(tiny(config, pooling))


def test_names_tell_models_apart(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(mine)
    with pytest.raises(InputError, match="called 'base'"):
        command.plan(parse("--model", str(tmp_path / "base")))
    with pytest.raises(UnknownOption, match=r"unknown model 'bose'.*known: sample"):
        command.plan(parse("--model", "bose"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / mine.name).symlink_to(mine)
    with pytest.raises(InputError, match="two folders are called 'my-model'"):
        command.plan(parse("--model", str(mine), "--model", str(tmp_path / "other" / mine.name)))


def test_a_folder_stands_beside_known_sizes(mine: Path) -> None:
    words = ("--model", str(mine), "--model", "base", "--workload", "korsts", "--workload", "long")
    plan = command.plan(parse(*words))
    assert [(part.workload.name, part.size.name) for part in plan.parts] == [
        *(("korsts", "base"), ("long", "base"), ("korsts", "my-model")),
    ]
    own = plan.parts[-1]
    assert (own.modes, own.omits) == (MODES, FORCED)
    tuning = {("x", "korsts@base", "burst"): {"best": {}, "tokens_per_second": 1.0}}
    files = [WorkFile(part.workload, part.size, mine, "generated", {}, part) for part in plan.parts]
    assert known_setting(tuning, files, "x", files[-1], "burst") is None
    with pytest.raises(InputError, match="model my-model takes fewer"):
        command.plan(parse("--model", str(mine), "--workload", "long"))


@pytest.mark.parametrize("name", ["sample", "base"])
def test_trained_weights_meet_the_gates_as_they_are(
    name: str, mine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The conversion is told; models of random weights alone go without the centred gates."""
    seen: list[bool] = []
    made = (lambda checkpoint, *_: seen.append(checkpoint.trained), (), ())
    monkeypatch.setitem(conversion.CONVERSIONS, "kosine", made)
    size = models.SIZES[name]
    part = Part(WORKLOADS["korsts"], size)
    plan = Plan((part,), (KosineOnnx,), FULL, 1, quick=True)
    run = _Run(plan, print, tmp_path)
    run.work = [WorkFile(part.workload, size, mine, "generated", {}, part)]

    class Here:
        """Answers in this process."""

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, do: str, **arguments: Any) -> Any:
            worker = Worker(KosineOnnx.name, str(mine), str(tmp_path / "converted"))
            return getattr(worker, do)(**arguments)

    monkeypatch.setattr(run, "_worker", lambda *_: Here())
    state = ContestantState(KosineOnnx)
    run._convert(state, size, [])
    assert state.reason is None
    assert seen == [name == "sample"]


def test_the_first_token_or_the_mean_of_the_real_ones() -> None:
    hidden = np.array([[[3.0, 4.0], [0.0, 2.0], [9.0, 9.0]]], np.float32)
    mask = np.array([[1, 1, 0]])
    assert _pool(hidden, mask, "cls").tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    mean = np.array([1.5, 3.0]) / np.hypot(1.5, 3.0)
    assert _pool(hidden, mask, "mean")[0].tolist() == pytest.approx(mean.tolist())
