"""Position rows, against the rule written out one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosine.packed import Packed
from kosine.positions import distance_buckets, position_ids
from kosine.spec import Buckets, Positions


def one_by_one(sentence, rule, pad):
    if rule == "absolute":
        return list(range(len(sentence)))
    places, count = [], 0
    for token in sentence:
        count += token != pad
        places.append(pad + count if token != pad else pad)
    return places


@pytest.mark.parametrize(
    ("rule", "pad", "sentences", "expected"),
    [
        ("absolute", 0, [[5, 6, 7], [8]], [0, 1, 2, 0]),
        ("absolute", 5, [[5, 6, 5]], [0, 1, 2]),
        ("roberta", 1, [[5, 6, 7], [8]], [2, 3, 4, 2]),
        ("roberta", 1, [[5, 1, 7], [1, 8]], [2, 1, 3, 1, 2]),
        ("roberta", 0, [[5, 0, 0, 7]], [1, 0, 0, 2]),
    ],
)
def test_table(rule, pad, sentences, expected):
    batch = Packed.of(sentences)
    found = position_ids(batch.ids, batch.starts, Positions(rule, 64, pad))
    assert found.dtype == np.int32
    assert found.tolist() == expected


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=9),
    st.sampled_from(["absolute", "roberta"]),
    st.integers(0, 3),
)
def test_packed_positions_are_those_of_each_sentence_alone(sentences, rule, pad):
    batch = Packed.of(sentences)
    expected = [place for s in sentences for place in one_by_one(s, rule, pad)]
    assert position_ids(batch.ids, batch.starts, Positions(rule, 64, pad)).tolist() == expected


def test_the_rule_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

    ids = [3, 9, 1, 9, 1, 1, 4]
    theirs = RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([ids]), 1)
    batch = Packed.of([ids])
    assert (
        position_ids(batch.ids, batch.starts, Positions("roberta", 64, 1)).tolist()
        == theirs[0].tolist()
    )


def test_buckets_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = np.arange(-600, 601)
    theirs = MPNetEncoder.relative_position_bucket(torch.tensor(distances)).numpy()
    ours = distance_buckets(Buckets(32, 128))[np.clip(distances, -128, 128) + 128]
    np.testing.assert_array_equal(ours, theirs)
    assert set(ours.tolist()) == set(range(32)) - {16}  # a key behind is never at distance 0
