"""Workloads: texts come out at the lengths that the model cards report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from kosine.errors import InputError
from kosine_bench.measuring.workload import WORKLOADS, Column, Workload, draw_lengths, make_texts

SAMPLE = Path(__file__).parent.parent / "export" / "sample"
COUNT = 600


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


@pytest.mark.parametrize("name", WORKLOADS)
def test_columns_reproduce_minimum_mean_and_maximum(name: str, tokenizer: Tokenizer) -> None:
    workload = WORKLOADS[name]
    for i, column in enumerate(workload.columns):
        texts = make_texts(workload, tokenizer, COUNT, seed=3, columns=[i])
        encoded = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts.texts)]
        assert texts.lengths.tolist() == encoded
        assert (min(encoded), max(encoded)) == (column.minimum, column.maximum)
        assert np.mean(encoded) == pytest.approx(column.mean, abs=0.51 / COUNT)
        assert texts.source == "generated"


@pytest.mark.parametrize("name", WORKLOADS)
def test_real_sentences_reproduce_them_too(
    name: str, tokenizer: Tokenizer, shared: Callable[[str], Path]
) -> None:
    data = shared("data/korsts-dev.tsv").parent
    workload = WORKLOADS[name]
    texts = make_texts(workload, tokenizer, COUNT, seed=3, data=data)
    assert texts.source == "real"
    assert texts.lengths.min() == min(column.minimum for column in workload.columns)
    assert texts.lengths.max() == max(column.maximum for column in workload.columns)
    assert texts.lengths.mean() == pytest.approx(workload.mean, abs=0.51 * 2 / COUNT)


def test_klue_tokenizer(shared: Callable[[str], Path]) -> None:
    klue = Tokenizer.from_file(str(shared("tokenizers/klue/tokenizer.json")))
    klue.no_truncation()
    klue.no_padding()
    texts = make_texts(WORKLOADS["legal"], klue, COUNT, seed=1)
    assert (texts.lengths.min(), texts.lengths.max()) == (26, 128)
    assert sum(text.startswith("Represent this sentence for ") for text in texts.texts) == COUNT


def test_the_same_seed_gives_the_same_texts(tokenizer: Tokenizer) -> None:
    first = make_texts(WORKLOADS["korsts"], tokenizer, 64, seed=5)
    assert first == make_texts(WORKLOADS["korsts"], tokenizer, 64, seed=5)
    assert first.texts != make_texts(WORKLOADS["korsts"], tokenizer, 64, seed=6).texts


def test_columns_alternate_in_arrival_order(tokenizer: Tokenizer) -> None:
    lengths = make_texts(WORKLOADS["faq"], tokenizer, 64, seed=5).lengths
    queries = lengths <= 14
    assert queries.sum() == 32
    assert 0 < queries[:32].sum() < 32


def test_a_text_too_short_for_its_prompt_goes_without(tokenizer: Tokenizer) -> None:
    workload = Workload(
        "short", (Column(5, 5.0, 5, prompt="a prompt of more than five tokens "),), (0,)
    )
    texts = make_texts(workload, tokenizer, 4, seed=0)
    assert texts.lengths.tolist() == [5] * 4
    assert not any(text.startswith("a prompt") for text in texts.texts)


@pytest.mark.parametrize(
    ("column", "count", "expected"),
    [
        (Column(5, 17.0, 63), 1, [17]),
        (Column(5, 17.0, 63), 2, [5, 63]),
        (Column(9, 9.0, 9), 3, [9, 9, 9]),
    ],
)
def test_few_lengths(column: Column, count: int, expected: list[int]) -> None:
    drawn = draw_lengths(column, count, np.random.default_rng(0))
    assert sorted(drawn.tolist()) == expected


def test_a_mean_out_of_reach_ends_at_the_edge() -> None:
    drawn = draw_lengths(Column(5, 5.5, 60), 3, np.random.default_rng(0))
    assert sorted(drawn.tolist()) == [5, 5, 60]


def test_a_tokenizer_that_does_not_split_on_whitespace_is_refused() -> None:
    whole = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="came out at 1 tokens"):
        make_texts(WORKLOADS["korsts"], whole, 8, seed=0)
