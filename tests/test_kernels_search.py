"""The native search against numpy: every ISA level, in memory that ends where its arrays do."""

from __future__ import annotations

import ctypes
import mmap
import threading

import numpy as np
import pytest

from kosine_kernels import engine, search
from native_machine import needs_native

pytestmark = needs_native
RNG = np.random.default_rng(11)
LEVELS = [level for level in engine.isa_levels() if level in ("avx2", "avx512")] or ["none"]
PAGE = mmap.PAGESIZE


@pytest.fixture(params=LEVELS)
def isa(request):
    return request.param


def at_the_end(array):
    """A copy whose last byte is the last of its mapping: reading past it ends the process."""
    room = -(-max(array.nbytes, 1) // PAGE) * PAGE
    whole = mmap.mmap(-1, room + PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + room), PAGE, 0) == 0
    copy = np.frombuffer(whole, array.dtype, array.size, room - array.nbytes)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


def best(scores, k):
    """As documented: the best first, ties by index, NaN last."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def check(found, scores, k, atol=1e-5):
    """Indices may differ only where scores are as good as equal."""
    _, values = best(scores, k)
    assert found[0].dtype == np.int64
    assert found[1].dtype == np.float32
    np.testing.assert_allclose(found[1], values, atol=atol, rtol=1e-5)
    theirs = np.take_along_axis(scores, found[0], axis=1)
    np.testing.assert_allclose(theirs, values, atol=2 * atol, rtol=2e-5)
    for row in found[0]:
        assert len(set(row.tolist())) == len(row)


SHAPES = [
    # queries, rows, dimensions
    *[(q, 50, 20) for q in (1, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 65)],
    *[(q, n, 33) for q in (2, 40) for n in (1, 2, 13, 14, 15, 83, 84, 85, 1000)],
    *[(q, 60, d) for q in (7, 12) for d in (1, 2, 7, 8, 15, 16, 17, 64, 65, 127, 768)],
]


@pytest.mark.parametrize("normalise", [False, True])
def test_floats(isa, normalise):
    for q, n, d in SHAPES:
        queries = at_the_end(RNG.standard_normal((q, d)).astype(np.float32))
        corpus = at_the_end(RNG.standard_normal((n, d)).astype(np.float32))
        scores = queries.astype(np.float64) @ corpus.T
        if normalise:
            scores /= np.linalg.norm(corpus.astype(np.float64), axis=1)
        for k in {1, min(10, n), n}:
            found = search.top_products(queries, corpus, k, normalise=normalise, isa=isa)
            check(found, scores, k, 1e-5 * np.sqrt(d))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_bytes(isa, dtype):
    for q, n, d in SHAPES:
        info = np.iinfo(dtype)
        corpus = at_the_end(RNG.integers(info.min, info.max + 1, (n, d)).astype(dtype))
        scale = at_the_end(RNG.uniform(0.001, 0.01, d).astype(np.float32))
        shift = at_the_end(RNG.uniform(-0.5, 0.5, d).astype(np.float32))
        queries = at_the_end(RNG.standard_normal((q, d)).astype(np.float32))
        floats = shift + corpus.astype(np.float64) * scale
        scores = queries @ floats.T / np.linalg.norm(floats, axis=1)
        k = min(7, n)
        found = search.top_products(
            queries, corpus, k, normalise=True, shift=shift, scale=scale, isa=isa
        )
        check(found, scores, k, 1e-5 * np.sqrt(d))


def test_no_queries(isa):
    nothing = at_the_end(np.empty((0, 24), np.float32))
    for corpus in (np.ones((9, 24), np.float32), np.ones((9, 24), np.int8)):
        row = np.ones(24, np.float32)
        indices, scores = search.top_products(nothing, corpus, 2, shift=row, scale=row, isa=isa)
        assert indices.shape == scores.shape == (0, 2)


def test_bits(isa):
    for q, n, d in SHAPES:
        signs = RNG.integers(0, 2, (n, d)).astype(np.uint8)
        corpus = at_the_end(np.packbits(signs, axis=1))
        queries = at_the_end(RNG.standard_normal((q, d)).astype(np.float32))
        k = min(7, n)
        found = search.top_products(queries, corpus, k, bits=True, isa=isa)
        check(found, queries @ (2.0 * signs.T - 1), k, 1e-5 * np.sqrt(d))


@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 16, 31, 32, 96])
def test_distances(isa, width):
    """Whole numbers tie often: exactly the order of the documents."""
    for q, n in ((1, 1), (3, 40), (20, 700)):
        queries, corpus = (
            at_the_end(RNG.integers(0, 256, (rows, width)).astype(np.uint8)) for rows in (q, n)
        )
        scores = -np.unpackbits(queries[:, None] ^ corpus, axis=2).sum(axis=2).astype(np.float32)
        for k in {1, min(10, n), n}:
            indices, values = best(scores, k)
            for threads in (1, 3):
                found = search.top_distances(queries, corpus, k, threads=threads, isa=isa)
                np.testing.assert_array_equal(found[0], indices)
                np.testing.assert_array_equal(found[1], values)


@pytest.mark.parametrize("queries", [3, 50])
def test_ties_go_to_the_lower_index_and_nan_comes_last(isa, queries):
    """Small whole numbers have exact products, so every thread count gives the same."""
    corpus = RNG.integers(-2, 3, (5000, 4)).astype(np.float32)
    corpus[100:103], corpus[4000] = np.nan, [np.inf, 0, 0, 0]
    asked = RNG.integers(-2, 3, (queries, 4)).astype(np.float32)
    asked[0] = np.nan
    with np.errstate(invalid="ignore"):
        scores = asked @ corpus.T
    for k in (1, 10, 5000):
        indices, values = best(scores, k)
        for threads in (1, 2, 5):
            found = search.top_products(asked, corpus, k, threads=threads, isa=isa)
            np.testing.assert_array_equal(found[0], indices)
            np.testing.assert_array_equal(found[1], values)


@pytest.mark.parametrize("order", ["best first", "worst first"])
def test_any_order_of_the_corpus(isa, order):
    values = np.arange(3000, dtype=np.float32)
    corpus = np.stack([values, np.ones_like(values)], axis=1)[:: -1 if order == "best first" else 1]
    corpus = np.ascontiguousarray(corpus)
    queries = np.tile(np.array([[1, 0]], np.float32), (40, 1))
    indices, scores = best(queries @ corpus.T, 9)
    found = search.top_products(queries, corpus, 9, threads=2, isa=isa)
    np.testing.assert_array_equal(found[0], indices)
    np.testing.assert_array_equal(found[1], scores)


@pytest.mark.parametrize("queries", [2, 20])
def test_lengths_that_squares_cannot_hold(isa, queries):
    corpus = RNG.standard_normal((200, 24)).astype(np.float32)
    expected = corpus.astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1)[:, None]
    scales = np.float32(10.0) ** RNG.integers(-35, 36, 200).astype(np.float32)
    corpus *= scales[:, None]
    corpus[7] = 0
    expected[7] = 0
    asked = RNG.standard_normal((queries, 24)).astype(np.float32)
    found = search.top_products(asked, corpus, 200, normalise=True, isa=isa)
    check(found, asked @ expected.T, 200)
    assert (found[1][found[0] == 7] == 0).all()


@pytest.mark.parametrize("queries", [1, 6, 20])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_lengths_of_bytes_that_squares_cannot_hold(isa, dtype, queries):
    """`shift + byte * scale` of rows that are all zeros, tiny, huge and plain."""
    corpus = RNG.integers(1, 100, (90, 24)).astype(dtype)
    corpus[:, :12] = 0
    corpus[40:, :12] = corpus[40:, 12:]
    corpus[60:, 12:] = 0
    corpus[7] = 0
    scale = np.repeat(np.array([1e-25, 1e25], np.float32), 12)
    shift = np.zeros(24, np.float32)
    expected = corpus.astype(np.float64) * scale
    expected /= np.where(expected.any(axis=1), np.linalg.norm(expected, axis=1), 1)[:, None]
    asked = RNG.standard_normal((queries, 24)).astype(np.float32)
    found = search.top_products(
        asked, corpus, 90, normalise=True, shift=shift, scale=scale, isa=isa
    )
    check(found, asked @ expected.T, 90)
    assert (found[1][found[0] == 7] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
@pytest.mark.parametrize("normalise", [False, True])
def test_scores_of_up_to_eight_queries_depend_on_query_and_row_alone(isa, dtype, normalise):
    """Bit for bit: not on other queries, the row's place, other rows, or threads."""
    for depth in (5, 50, 64, 200):
        rows = RNG.standard_normal((700, depth)) * 40 + (100 if dtype == np.uint8 else 0)
        corpus = rows.clip(0 if dtype == np.uint8 else -128, 127).astype(dtype)
        corpus[300] = 0
        queries = RNG.standard_normal((8, depth)).astype(np.float32)
        options = {"normalise": normalise, "isa": isa}
        if dtype != np.float32:
            options["scale"] = RNG.uniform(0.001, 0.01, depth).astype(np.float32)
            options["shift"] = RNG.uniform(-0.5, 0.5, depth).astype(np.float32)
        every = by_index(search.top_products(queries, corpus, 700, **options))
        for first, last in [(0, 1), (0, 2), (0, 3), (1, 5), (3, 8), (7, 8), (0, 7)]:
            for threads in (1, 3):
                part = search.top_products(
                    queries[first:last].copy(), corpus, 700, threads=threads, **options
                )
                np.testing.assert_array_equal(by_index(part), every[first:last])
        moved = search.top_products(queries[:3].copy(), corpus[299:].copy(), 401, **options)
        np.testing.assert_array_equal(by_index(moved), every[:3, 299:])


def by_index(found):
    """(q, n) scores in the order of the corpus, of a search for all its rows."""
    scores = np.empty_like(found[1])
    np.put_along_axis(scores, found[0], found[1], axis=1)
    return scores


@pytest.mark.parametrize("threads", [1, 2])
def test_scores_of_more_than_eight_queries_do_not_depend_on_one_another(isa, threads):
    """The last queries may share a narrower tile: bit for bit the same sums."""
    corpus = RNG.standard_normal((500, 50)).astype(np.float32)
    queries = RNG.standard_normal((100, 50)).astype(np.float32)
    every = search.top_products(queries, corpus, 7, normalise=True, isa=isa)
    for count in (9, 15, 16, 17, 24, 32, 33, 40, 48, 49, 64, 65, 99):
        asked = queries[100 - count :].copy()
        found = search.top_products(asked, corpus, 7, normalise=True, threads=threads, isa=isa)
        for mine, theirs in zip(found, every, strict=True):
            np.testing.assert_array_equal(mine, theirs[100 - count :])


def test_many_threads_at_once(isa):
    """Each call has threads and heaps of its own."""
    corpus = RNG.standard_normal((3000, 16)).astype(np.float32)
    queries = RNG.standard_normal((40, 16)).astype(np.float32)
    alone = search.top_products(queries, corpus, 5, isa=isa)
    wrong = []

    def ask():
        for _ in range(10):
            found = search.top_products(queries, corpus, 5, threads=2, isa=isa)
            wrong.extend(not np.array_equal(a, b) for a, b in zip(found, alone, strict=True))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong)


def test_what_does_not_fit():
    floats, row = np.ones((2, 8), np.float32), np.ones(8, np.float32)
    small = np.ones((2, 8), np.uint8)
    for corpus, options in (
        (floats[:, :4].copy(), {}),
        (floats.astype(np.float64), {}),
        (small, {}),
        (small, {"shift": row[:4].copy(), "scale": row}),
        (small, {"bits": True}),
        (floats[:0], {}),
    ):
        with pytest.raises(ValueError, match=r"fit|is not|empty"):
            search.top_products(floats, corpus, 1, **options)
    for k in (0, 3):
        with pytest.raises(ValueError, match="k is out of range"):
            search.top_products(floats, floats, k)
    with pytest.raises(TypeError):
        search.top_products(floats.astype(np.float64), floats, 1)
    with pytest.raises(TypeError):
        search.top_products(floats, floats[:, ::2], 1)
    with pytest.raises(ValueError, match="do not fit"):
        search.top_distances(small, small[:, :4].copy(), 1)
    with pytest.raises(ValueError, match="unknown ISA level 'avx9'"):
        search.top_products(floats, floats, 1, isa="avx9")
