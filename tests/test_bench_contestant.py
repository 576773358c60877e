"""Batching, ordering and padding that the contestants share."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from kosine_bench.contestants.contestant import Checkpoint, PaddedContestant, Setting, normalise

SAMPLE = Path(__file__).parent.parent / "export" / "sample"


class Sums(PaddedContestant):
    """Vectors that tell their row apart: the sum of its real ids, and their number."""

    name = "sums"
    label = "sums"
    precision = "float32"
    most_streams = 2
    opened: ClassVar[list[tuple[int, int]]] = []

    def open(self, threads: int, streams: int) -> None:
        self.opened.append((threads, streams))
        self.shapes: list[tuple[int, ...]] = []
        self.threads_used: set[int] = set()

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Any:
        self.shapes.append(ids.shape)
        self.threads_used.add(threading.get_ident())
        assert (ids[mask == 0] == 1).all()
        vectors = np.zeros((len(ids), 256), np.float32)
        vectors[:, 0] = (ids * mask).sum(axis=1)
        vectors[:, 1] = mask.sum(axis=1)
        return vectors


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Sums:
    monkeypatch.setattr(Checkpoint, "max_tokens", 128)
    monkeypatch.setattr(Checkpoint, "pooling", "mean")
    monkeypatch.setattr(Sums, "opened", [])
    contestant = Sums()
    contestant.load(Checkpoint(SAMPLE, SAMPLE), threads=2)
    return contestant


ROWS = [[0, *range(10, 10 + n), 2] for n in (3, 40, 7, 1, 22, 7)]


@pytest.mark.parametrize(
    "setting", [Setting(2), Setting(4, "length"), Setting(32), Setting(2, "length", streams=2)]
)
def test_rows_come_back_in_the_order_they_went_in(sums: Sums, setting: Setting) -> None:
    vectors = sums.encode_ids(ROWS, setting)
    assert vectors[:, 0].tolist() == [sum(row) for row in ROWS]
    assert vectors[:, 1].tolist() == [len(row) for row in ROWS]
    computed = sum(int(np.prod(shape)) for shape in sums.shapes)
    assert computed == sums.computed_tokens([len(row) for row in ROWS], setting)
    sums.close()


def test_sorting_pads_less() -> None:
    lengths = [len(row) for row in ROWS]
    sums = Sums()
    arrival = sums.computed_tokens(lengths, Setting(2))
    by_length = sums.computed_tokens(lengths, Setting(2, "length"))
    assert (arrival, by_length) == (2 * 42 + 2 * 9 + 2 * 24, 2 * 42 + 2 * 9 + 2 * 5)


def test_a_batch_is_no_larger_than_its_streams_share_of_a_call() -> None:
    assert Setting(32, "length").within(4) == Setting(4)
    assert Setting(8, "length", streams=2).within(4) == Setting(2, "length", streams=2)
    assert Setting(8, "length").within(32) == Setting(8, "length")
    assert Setting(0).within(32) == Setting(0)


def test_streams_share_the_threads(sums: Sums) -> None:
    sums.apply(Setting(8, "length", streams=2))
    sums.apply(Setting(4, "length", streams=2))
    sums.apply(Setting(4))
    assert sums.opened == [(2, 1), (1, 2), (2, 1)]
    assert any(setting.streams == 2 for setting in sums.settings("bulk"))
    assert [setting.batch_size for setting in sums.settings("single")] == [1]
    sums.close()


def test_texts_are_tokenised_with_their_special_tokens(sums: Sums) -> None:
    tokenizer = Checkpoint(SAMPLE, SAMPLE).tokenizer()
    texts = ["한 남자가 기타를 치고 있다.", "비행기"]
    vectors = sums.encode(texts, Setting(8))
    assert vectors[:, 0].tolist() == [sum(tokenizer.encode(text).ids) for text in texts]


def test_normalised_rows() -> None:
    rows = normalise(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    assert rows.dtype == np.float32
