"""Micro-benchmarks of the stages between a text and its score, on the sample encoder.

`pytest tests/bench --benchmark-autosave` keeps a run, `--benchmark-compare` holds the next one
against it. Figures are comparable on one machine only, so nothing here fails on an absolute
time; each benchmark checks what it computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kosine
from kosine import scoring
from kosine.backends.rows.fill import fill_rows
from kosine.backends.rows.plan import plan_rows
from kosine.batching import split_batches
from kosine.packed import Packed
from kosine.positions import position_ids
from kosine.spec import Positions
from kosine.tokenizer import Tokenizer
from kosine_bench.measuring.workload import WORKLOADS, Texts, make_texts

pytest.importorskip("pytest_benchmark", reason="micro-benchmarks need the test extra")

SAMPLE = Path(__file__).parents[2] / "export" / "sample"
pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=0.2)


@pytest.fixture(scope="module")
def burst() -> Texts:
    return texts_of(32)


@pytest.fixture(scope="module")
def bulk() -> Texts:
    return texts_of(1024)


def texts_of(count: int) -> Texts:
    from tokenizers import Tokenizer as HubTokenizer

    tokenizer = HubTokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return make_texts(WORKLOADS["korsts"], tokenizer, count, seed=11)


@pytest.fixture(scope="module")
def tokenizer(sample_bundle: Path) -> Tokenizer:
    from kosine.bundle import Bundle

    return Tokenizer(Bundle(sample_bundle))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = np.random.default_rng(0).standard_normal((10_000, 256)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_tokenise_one(benchmark: Any, tokenizer: Tokenizer, burst: Texts) -> None:
    prepared = benchmark(tokenizer.tokenize, burst.texts[:1])
    assert prepared.batch.num_tokens == burst.lengths[0]


def test_tokenise_bulk(benchmark: Any, tokenizer: Tokenizer, bulk: Texts) -> None:
    prepared = benchmark(tokenizer.tokenize, bulk.texts)
    assert prepared.batch.num_tokens == bulk.lengths.sum()


def test_pack_burst(benchmark: Any, burst: Texts) -> None:
    packed = benchmark(Packed.of, burst.ids)
    assert packed.lengths.tolist() == burst.lengths.tolist()


def test_split_bulk(benchmark: Any, bulk: Texts) -> None:
    batches = benchmark(split_batches, bulk.lengths, 2048)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1024))


def test_plan_rows_of_a_burst(benchmark: Any, burst: Texts) -> None:
    plans = benchmark(plan_rows, burst.lengths)
    assert sum(len(plan.indices) for plan in plans) == 32


def test_fill_rows_of_a_burst(benchmark: Any, burst: Texts) -> None:
    packed = Packed.of(burst.ids)
    positions = position_ids(packed.ids, packed.starts, Positions("roberta", 514, 1))
    plan = plan_rows(packed.lengths)[0]
    rows = benchmark(fill_rows, packed, positions, plan, 1)
    assert rows.input_ids.shape == (plan.num_rows, plan.width)


def test_cosine_matrix(benchmark: Any, vectors: Any) -> None:
    scores = benchmark(scoring.cosine, vectors[:16], vectors)
    assert scores.shape == (16, 10_000)


def test_top_k(benchmark: Any, vectors: Any) -> None:
    best = benchmark(scoring.top_k, vectors[:16], vectors, 10)
    assert best.indices[:, 0].tolist() == list(range(16))


def test_backend_single(benchmark: Any, sample: kosine.Encoder, burst: Texts) -> None:
    pooled = benchmark(sample.backend.run, Packed.of(burst.ids[:1]))
    assert np.abs(np.linalg.norm(pooled.vectors, axis=1) - 1).max() < 1e-6


def test_backend_burst(benchmark: Any, sample: kosine.Encoder, burst: Texts) -> None:
    pooled = benchmark(sample.backend.run, Packed.of(burst.ids))
    assert pooled.vectors.shape == (32, 256)


def test_encode_burst(benchmark: Any, sample: kosine.Encoder, burst: Texts) -> None:
    vectors = benchmark(sample.encode, burst.texts)
    assert vectors.shape == (32, 256)
