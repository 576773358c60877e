"""A result never depends on its neighbours: the same text alone and in every company.

On ONNX Runtime in float32 "the same" is a cosine distance of 1e-9, computed in float64 with the
norms divided out. That the check can fail is shown with three encoders that do mix neighbours.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kosine
from factories import build
from kosine import Encoder, Pooled
from kosine.backends.onnx import cpu as onnx_backend
from kosine_export.export import export
from kosine_export.texts import canary_texts, long_texts

LIMIT = 1e-9
PROPERTY = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
POOL = [*canary_texts()[:40], *long_texts([3, 9, 20, 45, 90, 200])]
TEXTS = st.lists(st.sampled_from(POOL), min_size=1, max_size=12)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def distances(a, b):
    """(n,) cosine distances; 0 where both rows are zero."""
    a, b = np.atleast_2d(np.float64(a)), np.atleast_2d(np.float64(b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    empty = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(empty, 0, 1 - dots / np.where(lengths == 0, 1, lengths))


def worst_over_ragged_batches(encoder, texts, alone, rounds=8):
    """The largest distance between texts in random company and the same texts alone."""
    rng = np.random.default_rng(11)
    worst = 0.0
    for size in (1, 2, 3, 7, 16, 33, 48, 64)[:rounds]:
        chosen = rng.integers(0, len(texts), size)  # duplicates included
        together = encoder.encode([texts[i] for i in chosen])
        worst = max(worst, distances(together, alone[chosen]).max())
    return worst


@pytest.fixture(scope="module")
def one_by_one(sample):
    return np.stack([sample.encode(text) for text in POOL])


def test_alone_and_in_ragged_batches(sample, one_by_one):
    assert worst_over_ragged_batches(sample, POOL, one_by_one) <= LIMIT


def test_a_thousand_needles(sample):
    """Each of 1000 texts alone, then all of them in batches of every size from 1 to 64."""
    words = [word for text in POOL for word in text.split()][:900]
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(1000)]
    alone = np.stack([sample.encode(text) for text in texts])
    order = rng.permutation(1000)
    begin, size, worst = 0, 1, 0.0
    while begin < 1000:
        chosen = order[begin : begin + size]
        worst = max(
            worst, distances(sample.encode([texts[i] for i in chosen]), alone[chosen]).max()
        )
        begin, size = begin + size, size % 64 + 1
    assert worst <= LIMIT


def test_all_at_once_in_any_order(sample, one_by_one):
    order = np.random.default_rng(0).permutation(len(POOL))
    for chosen in (np.arange(len(POOL)), np.arange(len(POOL))[::-1], order, np.repeat(order, 2)):
        found = sample.encode([POOL[i] for i in chosen])
        assert distances(found, one_by_one[chosen]).max() <= LIMIT


# The check can fail: encoders that mix neighbours


class Wrapped:
    """A backend whose vectors `change` sees a batch at a time."""

    def __init__(self, backend, change):
        self.backend, self.change = backend, change
        for name in ("dim", "name", "dtype", "device", "threads", "batch_tokens"):
            setattr(self, name, getattr(backend, name))

    def run(self, batch):
        pooled = self.backend.run(batch)
        return Pooled(self.change(pooled.vectors), pooled.norms)


def dynamic_scale(vectors):
    """What per-tensor dynamic quantisation does: the largest entry of the batch sets the grid."""
    step = np.abs(vectors).max() / 127
    return (np.round(vectors / step) * step).astype(np.float32)


def leaking(vectors):
    """A ten-thousandth of each neighbour's vector."""
    return (vectors + 1e-4 * np.roll(vectors, 1, axis=0)).astype(np.float32)


@pytest.mark.parametrize("change", [dynamic_scale, leaking])
def test_mixing_neighbours_fails_the_check(sample, change):
    mixing = Encoder(sample.bundle, Wrapped(sample.backend, change))
    alone = np.stack([mixing.encode(text) for text in POOL])
    assert worst_over_ragged_batches(mixing, POOL, alone) > 2 * LIMIT


def test_a_wrong_segment_layout_fails_the_check(sample, monkeypatch, one_by_one):
    """One token of each second sentence in a row is given to its neighbour."""
    right = onnx_backend.fill_rows

    def wrong(batch, positions, plan, pad_id):
        rows = right(batch, positions, plan, pad_id)
        segments = rows.segment_ids.copy()
        for row in segments:
            if (row == 2).any():
                row[np.flatnonzero(row == 2)[0]] = 1
        return dataclasses.replace(rows, segment_ids=segments)

    assert worst_over_ragged_batches(sample, POOL, one_by_one) <= LIMIT
    monkeypatch.setattr(onnx_backend, "fill_rows", wrong)
    assert worst_over_ragged_batches(sample, POOL, one_by_one) > 10 * LIMIT


# Properties


@PROPERTY
@given(texts=TEXTS, data=st.data())
def test_permutation(sample, texts, data):
    order = data.draw(st.permutations(range(len(texts))))
    found = sample.encode([texts[i] for i in order])
    assert distances(found, sample.encode(texts)[order]).max() <= LIMIT


@PROPERTY
@given(texts=TEXTS, text=ANY_TEXT, at=st.integers(0, 12))
def test_any_text_among_any_others(sample, texts, text, at):
    company = [*texts[:at], text, *texts[at:]]
    place = min(at, len(texts))
    found = sample.encode(company)
    assert np.isfinite(found).all()
    assert np.abs(np.linalg.norm(np.float64(found), axis=1) - 1).max() <= 1e-6
    assert distances(found[place], sample.encode(text)).max() <= LIMIT


@PROPERTY
@given(texts=TEXTS, budget=st.integers(1, 400), batch_size=st.integers(1, 13))
def test_packing(sample, texts, budget, batch_size):
    other = Encoder(sample.bundle, sample.backend, max_batch_tokens=budget)
    found = other.encode(texts, batch_size=batch_size)
    assert distances(found, sample.encode(texts)).max() <= LIMIT


@PROPERTY
@given(texts=TEXTS, prompt=st.sampled_from(["", "질문: ", "query: ", "검색어를 나타내는 문장: "]))
def test_a_prompt_is_text_in_front(sample, texts, prompt):
    found = sample.encode(texts, prompt=prompt)
    assert distances(found, sample.encode([prompt + text for text in texts])).max() <= LIMIT


@PROPERTY
@given(texts=TEXTS, dim=st.integers(1, 256))
def test_truncated_vectors(sample, texts, dim):
    cut = np.float64(sample.encode(texts))[:, :dim]
    found = sample.encode(texts, truncate_dim=dim)
    np.testing.assert_allclose(found, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-5)


@PROPERTY
@given(words=st.integers(100, 300), tail=ANY_TEXT)
def test_what_is_cut_off_does_not_count(sample, words, tail):
    """Texts of 100 words are over 128 tokens: nothing after that reaches the vector."""
    (head,) = long_texts([words])
    assert sample.count_tokens(head) > sample.max_tokens + 8
    assert distances(sample.encode(f"{head} {tail}"), sample.encode(head)).max() <= LIMIT


# Prompts that pooling leaves out: the kind of bundle in which pooling and attention differ


@pytest.fixture(scope="module", params=["mean", "cls", "max"])
def left_out(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("left_out")
    checkpoint = build(
        folder / "checkpoint",
        family="bert",
        pooling=request.param,
        include_prompt=False,
        max_length=32,
        prompts={"query": "질문: "},
    )
    export(checkpoint, folder / "b.kosine")
    return kosine.load(folder / "b.kosine", backend="onnx"), checkpoint


def test_left_out_prompts_in_company(left_out):
    encoder, _ = left_out
    alone = np.stack([encoder.encode(text, prompt_name="query") for text in POOL])
    together = encoder.encode(POOL, prompt_name="query")
    assert distances(together, alone).max() <= LIMIT
    rng = np.random.default_rng(5)
    for size in (2, 9, 30):
        chosen = rng.integers(0, len(POOL), size)
        found = encoder.encode([POOL[i] for i in chosen], prompt_name="query")
        assert distances(found, alone[chosen]).max() <= LIMIT


def test_a_left_out_prompt_still_matters(left_out):
    """Its tokens are attended to, but not pooled: neither the plain text nor the whole."""
    encoder, _ = left_out
    texts = POOL[:6]
    found = encoder.encode(texts, prompt_name="query")
    plain = encoder.encode(texts)
    whole = encoder.encode([f"질문: {text}" for text in texts])
    assert distances(found, plain).min() > 1e-7
    assert distances(found, whole).min() > 1e-7


def test_left_out_prompts_are_those_of_sentence_transformers(left_out):
    from factories import referee

    encoder, checkpoint = left_out
    theirs = referee(checkpoint)
    texts = [text for text in POOL if text.strip()]
    expected = np.stack(
        [theirs.encode(text, prompt_name="query", show_progress_bar=False) for text in texts]
    )
    found = encoder.encode(texts, prompt_name="query", normalize_embeddings=False)
    assert distances(found, expected).max() <= 1e-6
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-4
    )
