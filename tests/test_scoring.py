"""Scores and smaller vectors, against the same thing written naively or by others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import kosine
from kosine import scoring
from kosine.errors import InputError, UnknownOption
from kosine.scoring import PRECISIONS, SIMILARITIES, pairwise, quantize, score_matrix, top_k

RNG = np.random.default_rng(7)
A = RNG.standard_normal((5, 16)).astype(np.float32)
B = RNG.standard_normal((7, 16)).astype(np.float32)


def naive(a, b, similarity):
    a, b = np.float64(a), np.float64(b)
    if similarity == "cosine":
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / lengths if lengths else 0.0
    if similarity == "dot":
        return a @ b
    if similarity == "euclidean":
        return -np.linalg.norm(a - b)
    return -np.abs(a - b).sum()


def naive_matrix(a, b, similarity):
    return np.array([[naive(x, y, similarity) for y in b] for x in a])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_matrix_and_pairs_are_the_naive_ones(similarity):
    found = score_matrix(A, B, similarity)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive_matrix(A, B, similarity), rtol=1e-5, atol=1e-6)
    pairs = pairwise(A, B[:5], similarity)
    assert pairs.shape == (5,)
    assert pairs.dtype == np.float32
    np.testing.assert_allclose(pairs, np.diag(found), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_similarities_are_those_of_sentence_transformers(similarity):
    torch = pytest.importorskip("torch")
    from sentence_transformers import SimilarityFunction

    theirs = SimilarityFunction.to_similarity_fn(similarity)(torch.tensor(A), torch.tensor(B))
    np.testing.assert_allclose(score_matrix(A, B, similarity), theirs.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_equal_unit_vectors_have_no_distance(similarity):
    unit = A / np.linalg.norm(A, axis=1, keepdims=True)
    assert np.abs(np.diag(score_matrix(unit, unit, similarity))).max() < 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 0.5, 1.0, 300.0, 1e19, 1e30])
def test_cosine_divides_any_length_out(scale):
    found = kosine.cosine(A * np.float32(scale), B)
    np.testing.assert_allclose(found, naive_matrix(A, B, "cosine"), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, list])
def test_vectors_of_any_number_type(dtype):
    a, b = np.round(A * 20), np.round(B * 20)
    given_as = (a.tolist(), b.tolist()) if dtype is list else (a.astype(dtype), b.astype(dtype))
    for similarity in ("cosine", "dot"):
        found = score_matrix(*given_as, similarity)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, naive_matrix(a, b, similarity), rtol=1e-6, atol=1e-6)


def test_stored_halves_do_not_overflow():
    a = np.full((1, 64), 100.0, np.float16)
    assert kosine.cosine(a, a)[0, 0] == pytest.approx(1)
    assert score_matrix(a, a, "dot")[0, 0] == 640_000


def test_one_dimension_counts_as_one_row():
    assert kosine.cosine(A[0], B).shape == (1, 7)
    assert kosine.cosine(A[0], A[0]).shape == (1, 1)
    assert pairwise(A[0], A[0])[0] == pytest.approx(1)


def test_zero_rows_score_zero():
    zero = np.zeros((1, 16), np.float32)
    assert kosine.cosine(zero, B).tolist() == [[0.0] * 7]
    assert pairwise(zero, zero).tolist() == [0.0]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_empty_sides(similarity):
    none = np.empty((0, 16), np.float32)
    assert score_matrix(none, B, similarity).shape == (0, 7)
    assert score_matrix(B, none, similarity).shape == (7, 0)
    assert pairwise(none, none, similarity).shape == (0,)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (A, B[:, :8]),
        (A[None], B),
        (A, B[None]),
        ([[1.0, 2.0], [3.0]], [[1.0, 2.0]]),
        (["a text"], ["a text"]),
        (None, A),
        ([[None, 1.0]], [[1.0, 1.0]]),
    ],
)
@pytest.mark.parametrize("function", [kosine.cosine, pairwise, top_k])
def test_what_does_not_fit_is_an_input_error(function, a, b):
    with pytest.raises(InputError, match=r"vectors.*\(n, d\)"):
        function(a, b)


def test_pairs_need_as_many_rows():
    with pytest.raises(InputError, match="5 rows against 7"):
        pairwise(A, B)


@pytest.mark.parametrize(
    "call", [lambda s: score_matrix(A, B, s), lambda s: pairwise(A, A, s),
             lambda s: top_k(A, B, similarity=s)]
)  # fmt: skip
def test_unknown_similarity(call):
    with pytest.raises(UnknownOption, match=r"'jaccard'.*cosine, dot, euclidean, manhattan"):
        call("jaccard")


# top_k


def naive_top_k(scores, k):
    order = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores.tolist()]
    return np.array(order), np.take_along_axis(scores, np.array(order), axis=1)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_is_the_naive_one(similarity, k):
    found = top_k(A, B, k, similarity=similarity)
    indices, scores = naive_top_k(score_matrix(A, B, similarity), k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=1e-6)
    assert found.indices.dtype == np.int64
    assert found.scores.dtype == np.float32


SMALL = st.integers(-2, 2)


@settings(deadline=None, max_examples=150)
@given(
    queries=arrays.arrays(
        np.int8, st.tuples(st.integers(1, 4), st.just(2)), elements=st.integers(-2, 2)
    ),
    corpus=arrays.arrays(
        np.int8, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(-2, 2)
    ),
    k=st.integers(1, 35),
    block=st.integers(1, 40),
)
def test_ties_and_blocks(queries, corpus, k, block):
    """Small integers tie often and have exact scores; ties go to the lower index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "BLOCK_SCORES", block)
        found = top_k(queries, corpus, k, similarity="dot")
    indices, scores = naive_top_k(score_matrix(queries, corpus, "dot"), k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.indices.shape == (len(queries), min(k, len(corpus)))


def test_blocks_keep_memory_bounded(monkeypatch):
    seen = []
    monkeypatch.setattr(scoring, "BLOCK_SCORES", 50)
    inner = scoring.score_matrix
    monkeypatch.setattr(
        scoring, "score_matrix", lambda a, b, s: seen.append(len(a) * len(b)) or inner(a, b, s)
    )
    top_k(A, RNG.standard_normal((1000, 16)), 3)
    assert max(seen) <= 50
    assert sum(seen) == 5000


def test_top_k_of_little():
    assert top_k(A, B, 100).indices.shape == (5, 7)
    assert top_k(A, np.empty((0, 16)), 3).indices.shape == (5, 0)
    assert top_k(np.empty((0, 16)), B, 3).indices.shape == (0, 3)
    assert top_k(A[0], B, 2).scores.shape == (1, 2)


@pytest.mark.parametrize("k", [0, -1])
def test_top_k_needs_a_k(k):
    with pytest.raises(InputError, match=f"k is {k}; at least 1"):
        top_k(A, B, k)


# Smaller vectors

RANGES = np.stack([A.min(axis=0) * 0.8, A.max(axis=0) * 0.8])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [5, 1, 0])
def test_precisions_are_those_of_sentence_transformers(precision, rows):
    pytest.importorskip("torch")
    from sentence_transformers.util.quantization import quantize_embeddings

    theirs = quantize_embeddings(A[:rows], precision, ranges=RANGES)
    for ranges in (RANGES, {"min": RANGES[0], "max": RANGES[1].tolist()}, tuple(RANGES)):
        ours = quantize(A[:rows], precision, ranges)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


def test_values_at_the_ends():
    ranges = {"min": [-51.0, 0.0], "max": [51.0, 255.0]}
    vectors = np.array([[-51.0, 0.0], [51.0, 255.0], [-99.0, 999.0], [0.0, 127.5]], np.float32)
    assert quantize(vectors, "uint8", ranges).tolist() == [[0, 0], [255, 255], [0, 255], [127, 127]]
    assert quantize(vectors, "int8", ranges).tolist() == [
        [-128, -128],
        [127, 127],
        [-128, 127],
        [-1, -1],
    ]


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 16])
def test_bits_of_one_row_stay_in_one_row(dim):
    vectors = RNG.standard_normal((4, dim)).astype(np.float32)
    packed = quantize(vectors, "ubinary", None)
    assert packed.shape == (4, -(-dim // 8))
    bits = np.unpackbits(packed, axis=1)
    np.testing.assert_array_equal(bits[:, :dim], vectors > 0)
    assert not bits[:, dim:].any()
    assert (quantize(vectors, "binary", None).astype(int) + 128 == packed).all()


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_row_does_not_depend_on_its_neighbours(precision):
    whole = quantize(A, precision, RANGES)
    for i in range(len(A)):
        np.testing.assert_array_equal(quantize(A[i : i + 1], precision, RANGES)[0], whole[i])
    with pytest.raises(InputError, match="needs ranges, and the bundle has none"):
        quantize(A, precision, None)


@pytest.mark.parametrize(
    "ranges",
    [
        RANGES[:, :8],
        RANGES[::-1],
        np.zeros((2, 16)),
        {"min": RANGES[0]},
        {},
        np.full((2, 16), np.nan),
    ],
)
def test_ranges_that_are_none(ranges):
    with pytest.raises(InputError, match=r"ranges of shapes .*min < max"):
        quantize(A, "int8", ranges)


def test_unknown_precision():
    with pytest.raises(UnknownOption, match=r"unknown precision 'int4'.*float32, int8"):
        quantize(A, "int4", None)
