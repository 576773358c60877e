"""Scores, against the same thing written naively or by others."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import kosine
from kosine import native_search, scoring
from kosine.errors import InputError, UnknownOption
from kosine.quantization import BITS, INTEGERS, calibrated_ranges, dequantize, quantize
from kosine.scoring import SIMILARITIES, pairwise, score_matrix, top_k

RNG = np.random.default_rng(7)
A = RNG.standard_normal((5, 16)).astype(np.float32)
B = RNG.standard_normal((7, 16)).astype(np.float32)


@pytest.fixture(autouse=True)
def by_numpy(monkeypatch):
    """As where there is no native module; test_native_search.py has the other way."""
    monkeypatch.setattr(native_search, "usable", lambda: False)


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.int64, list])
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
        np.int16, st.tuples(st.integers(1, 4), st.just(2)), elements=st.integers(-2, 2)
    ),
    corpus=arrays.arrays(
        np.int16, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(-2, 2)
    ),
    k=st.integers(1, 35),
    block=st.integers(1, 40),
    most=st.integers(1, 4),
    thin=st.integers(0, 4),
)
def test_ties_and_blocks(queries, corpus, k, block, most, thin):
    """Small integers tie often and have exact scores; ties go to the lower index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring.search, "BLOCK", block)
        patch.setattr(scoring.search, "MOST_QUERIES", most)
        patch.setattr(scoring.search, "MOST_SORTED", thin)
        found = top_k(queries, corpus, k, similarity="dot")
    indices, scores = naive_top_k(score_matrix(queries, corpus, "dot"), k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.indices.shape == (len(queries), min(k, len(corpus)))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("kind", "similarity"),
    [
        *[("float32", similarity) for similarity in SIMILARITIES],
        *[(kind, "cosine") for kind in ("float16", "float64", *INTEGERS, *BITS)],
    ],
)
def test_a_mapped_corpus_is_never_copied_whole(tmp_path, similarity, kind):
    """128 MiB of zeros as float32, which take no room on the disk; a copy would show."""
    rows, dim = 1 << 17, 256
    queries, options = RNG.standard_normal((2, dim)).astype(np.float32), {}
    if kind in (*INTEGERS, *BITS):
        options = {"precision": kind, "ranges": {"min": [-1.0] * dim, "max": [1.0] * dim}}
        dtype = np.int8 if kind in ("int8", "binary") else np.uint8
        width = dim // 8 if kind in BITS else dim
    else:
        dtype, width = np.dtype(kind), dim
    corpus = np.lib.format.open_memmap(tmp_path / "c.npy", "w+", dtype, (rows, width))
    corpus[7::1000] = 1
    tracemalloc.start()
    try:
        found = top_k(queries, corpus, 3, similarity=similarity, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20, f"{peak >> 20} MiB"
    assert found.indices.shape == (2, 3)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_blocks_give_what_the_whole_gives(monkeypatch, similarity):
    """Also rows that are not numbers: those that give NaN come last, in their order."""
    corpus = RNG.standard_normal((300, 16)).astype(np.float32)
    corpus[17, 3], corpus[40, 5], corpus[41] = np.nan, np.inf, 0
    queries = np.concatenate([A, [[np.nan] * 16, [np.inf] * 16, [0.0] * 16]]).astype(np.float32)
    for k in (1, 10, 300):
        with np.errstate(invalid="ignore"):
            scores = score_matrix(queries, corpus, similarity)
            monkeypatch.setattr(scoring.search, "BLOCK", 100)
            found = top_k(queries, corpus, k, similarity=similarity)
            monkeypatch.undo()
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(found.indices, order)
        np.testing.assert_allclose(
            found.scores, np.take_along_axis(scores, order, axis=1), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("order", ["worst first", "best first", "mixed", "all the same"])
def test_any_order_of_the_corpus(monkeypatch, order):
    """Where every block is better than all before it, each is thinned before it is sorted."""
    monkeypatch.setattr(scoring.search, "BLOCK", 400)
    queries = np.array([[1.0, 0.0], [0.5, 0.0], [-1.0, 0.0]], np.float32)
    values = np.arange(1500, dtype=np.float32)
    values = {
        "worst first": values,
        "best first": values[::-1],
        "mixed": RNG.permutation(values),
        "all the same": np.ones_like(values),
    }[order]
    corpus = np.stack([values, np.zeros_like(values)], axis=1)
    found = top_k(queries, corpus, 9, similarity="dot")
    indices, scores = naive_top_k(score_matrix(queries, corpus, "dot"), 9)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, scores)


def test_top_k_of_little():
    assert top_k(A, B, 100).indices.shape == (5, 7)
    assert top_k(A, np.empty((0, 16)), 3).indices.shape == (5, 0)
    assert top_k(np.empty((0, 16)), B, 3).indices.shape == (0, 3)
    assert top_k(A[0], B, 2).scores.shape == (1, 2)


@pytest.mark.parametrize("k", [0, -1, True, 1.5, None])
def test_top_k_needs_a_k(k):
    with pytest.raises(InputError, match=f"k is {k}; at least 1"):
        top_k(A, B, k)


# int8, uint8 and bits

CORPUS = unit(RNG.standard_normal((400, 64)) * np.linspace(0.3, 1.5, 64) + 0.2).astype(np.float32)
QUERIES = unit(CORPUS[:9] + 0.05 * RNG.standard_normal((9, 64))).astype(np.float32)
WIDE = calibrated_ranges(CORPUS)


def hamming(a, b):
    """(n, m) bits that differ, counted from the packed bytes."""
    a, b = np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8)
    return np.array([[sum(int(v).bit_count() for v in x ^ y) for y in b] for x in a])


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_integers_score_like_the_vectors_that_they_stand_for(precision, similarity):
    a, b = (quantize(x, precision, WIDE) for x in (QUERIES, CORPUS))
    exact = naive_matrix(QUERIES, CORPUS, similarity)
    tolerance = 0.2 if similarity == "manhattan" else 0.02
    for left, right in ((a, b), (QUERIES, b), (a, CORPUS)):
        for named in (None, precision):
            found = score_matrix(left, right, similarity, precision=named, ranges=WIDE)
            np.testing.assert_allclose(found, exact, atol=tolerance)
        stood_for = [
            x if x.dtype == np.float32 else dequantize(x, precision, WIDE) for x in (left, right)
        ]
        np.testing.assert_allclose(
            found, naive_matrix(*stood_for, similarity), rtol=1e-4, atol=2e-5
        )
        pairs = pairwise(left, right[:9], similarity, ranges=WIDE)
        np.testing.assert_allclose(pairs, np.diag(found), rtol=1e-4, atol=1e-5)
        best = top_k(left, right, 5, similarity=similarity, ranges=WIDE)
        order = np.argsort(-found, axis=1, kind="stable")[:, :5]
        np.testing.assert_allclose(
            best.scores, np.take_along_axis(found, order, axis=1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("precision", BITS)
def test_bits_score_by_their_hamming_distance(precision):
    a, b = (quantize(x, precision, None) for x in (QUERIES, CORPUS))
    distance = hamming(a, b)
    expected = {
        "cosine": 1 - 2 * distance / 64,
        "dot": 64 - 2 * distance,
        "euclidean": -np.sqrt(4 * distance),
        "manhattan": -2 * distance,
    }
    order = np.argsort(distance, axis=1, kind="stable")[:, :20]  # with many ties
    assert len(np.unique(distance[0][order[0]])) < 20
    for similarity, scores in expected.items():
        found = score_matrix(a, b, similarity, precision=precision)
        np.testing.assert_array_equal(found, scores.astype(np.float32))
        pairs = pairwise(a, b[:9], similarity, precision=precision)
        np.testing.assert_array_equal(pairs, np.diag(found))
        best = top_k(a, b, 20, similarity=similarity, precision=precision)
        np.testing.assert_array_equal(best.indices, order)
        np.testing.assert_array_equal(best.scores, np.take_along_axis(found, order, axis=1))
    np.testing.assert_array_equal(
        kosine.cosine(a, b, precision=precision), expected["cosine"].astype(np.float32)
    )


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("dim", [64, 61, 9])
def test_float32_queries_find_their_way_in_bits(precision, dim):
    """The rescoring of sentence-transformers: a dot product with the signs; width d / 8 tells."""
    queries, corpus = unit(QUERIES[:, :dim]), CORPUS[:, :dim]
    bits = quantize(corpus, precision, None)
    signs = np.where(corpus > 0, 1.0, -1.0)
    for named in (None, precision):
        found = kosine.cosine(queries, bits, precision=named)
        np.testing.assert_allclose(found, queries @ signs.T / np.sqrt(dim), atol=1e-6)
        best = top_k(queries, bits, 4, precision=named)
        np.testing.assert_array_equal(best.indices, naive_top_k(found, 4)[0])
    np.testing.assert_allclose(kosine.cosine(bits, queries).T, found, atol=1e-6)


def test_the_ranges_width_tells_bits_from_integers():
    bits = quantize(CORPUS, "ubinary", None)
    found = kosine.cosine(bits[:3], bits, ranges=WIDE)
    np.testing.assert_array_equal(found, kosine.cosine(bits[:3], bits, precision="ubinary"))
    cut = quantize(unit(CORPUS[:, :24]).astype(np.float32), "uint8", WIDE)
    found = kosine.cosine(cut[:3], cut, ranges=WIDE)  # over an eighth: truncated integers
    np.testing.assert_allclose(found, kosine.cosine(CORPUS[:3, :24], CORPUS[:, :24]), atol=0.02)


@pytest.mark.parametrize("call", [kosine.cosine, pairwise, top_k])
@pytest.mark.parametrize(
    ("dtype", "names"), [(np.int8, ("binary", "int8")), (np.uint8, ("ubinary", "uint8"))]
)
def test_what_stays_unclear_is_refused(call, dtype, names):
    a = RNG.integers(0, 100, (4, 8)).astype(dtype)
    with pytest.raises(InputError) as caught:
        call(a, a)
    for name in names:
        assert f"precision={name!r}" in caught.value.remedy
    assert call(a, a, precision="float32") is not None  # plain numbers, by name
    assert call(a, a, precision=names[0]) is not None
    with pytest.raises(InputError, match=r"not scored without ranges; .*ranges="):
        call(a, a, precision=names[1])


@pytest.mark.parametrize(
    ("a", "b", "precision", "message"),
    [
        (np.zeros((2, 8), np.int8), np.zeros((2, 8), np.int8), "ubinary", "int8 are not of"),
        (np.zeros((2, 8), np.uint8), np.zeros((2, 8), np.uint8), "binary", "uint8 are not of"),
        (np.zeros((2, 8), np.int64), np.zeros((2, 8), np.uint8), "ubinary", "int64 are not of"),
        (A, np.zeros((2, 3), np.uint8), "ubinary", r"\(5, 16\) and \(2, 3\)"),
        (A, np.zeros((2, 3), np.uint8), None, r"\(5, 16\) and \(2, 3\)"),
        (A, np.zeros((2, 16), np.uint8), None, "without ranges"),
        (A, np.zeros((2, 16), np.uint8), "bits", "unknown precision 'bits'"),
    ],
)
def test_precisions_that_do_not_fit(a, b, precision, message):
    with pytest.raises(InputError, match=message):
        kosine.cosine(a, b, precision=precision)
    with pytest.raises(InputError, match=message):
        top_k(a, b, 1, precision=precision)


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", None])
def test_k_is_a_whole_number(k):
    with pytest.raises(InputError, match="k is"):
        top_k(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), k)
