"""Packed batches: sentences end to end, taken apart and put together again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosine import Packed, Pooled

SENTENCES = st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), max_size=9)


@given(SENTENCES)
def test_of_lays_sentences_end_to_end(sentences):
    batch = Packed.of(sentences)
    assert len(batch) == len(sentences)
    assert batch.ids.dtype == batch.starts.dtype == np.int32
    assert batch.ids.tolist() == [token for sentence in sentences for token in sentence]
    assert batch.starts[0] == 0
    assert batch.starts[-1] == batch.num_tokens == sum(map(len, sentences))
    assert batch.lengths.tolist() == [len(sentence) for sentence in sentences]
    assert batch.skip is None


@given(SENTENCES, st.data())
def test_take_keeps_each_sentence_with_its_skip(sentences, data):
    skip = np.arange(len(sentences), dtype=np.int32)
    batch = Packed.of(sentences, skip)
    wanted = (
        data.draw(st.lists(st.integers(0, len(sentences) - 1), max_size=12)) if sentences else []
    )
    taken = batch.take(wanted)
    assert len(taken) == len(wanted)
    assert taken.skip.tolist() == wanted
    for i, index in enumerate(wanted):
        own = taken.ids[taken.starts[i] : taken.starts[i + 1]]
        assert own.tolist() == sentences[index]


def test_take_of_arrays_and_without_skip():
    batch = Packed.of([np.array([1, 2], np.int32), np.array([3], np.int32)])
    taken = batch.take(np.array([1, 0, 1]))
    assert taken.ids.tolist() == [3, 1, 2, 3]
    assert taken.starts.tolist() == [0, 1, 3, 4]
    assert taken.skip is None


@pytest.mark.parametrize(
    "made", [Packed.of([[1]]), Pooled(np.zeros((1, 2), np.float32), np.zeros(1, np.float32))]
)
def test_batches_cannot_be_changed(made):
    name = dataclasses.fields(made)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, None)
