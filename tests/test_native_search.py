"""`top_k` in C++ against the same by numpy, and which of the two is taken when."""

from __future__ import annotations

import numpy as np
import pytest

import kosine
from kosine import native_search, scoring
from kosine.quantization import calibrated_ranges, quantize
from native_machine import needs_native

pytestmark = needs_native
RNG = np.random.default_rng(23)
DIM = 44  # bits of five and a half bytes


def unit(rows):
    vectors = RNG.standard_normal((rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


CORPUS, MANY, FEW = unit(700), unit(90), unit(3)
RANGES = calibrated_ranges(CORPUS)
KINDS = ("float32", "int8", "uint8", "binary", "ubinary", "plain int8", "plain uint8")


@pytest.fixture
def taken(monkeypatch):
    """How often the native search was called."""
    calls = []
    for name in ("top_products", "top_distances"):
        search = getattr(native_search, name)
        monkeypatch.setattr(
            native_search, name, lambda *a, search=search: calls.append(1) or search(*a)
        )
    return calls


def by_numpy(*args, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_search, "usable", lambda: False)
        return kosine.top_k(*args, **options)


def same(found, expected):
    """Indices may differ where scores are as good as equal."""
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5, rtol=2e-5)
    assert np.mean(found.indices == expected.indices) > 0.99


def stored(vectors, kind):
    """Vectors as they are kept, and what `top_k` is to be told of them."""
    if kind.startswith("plain "):
        dtype = np.dtype(kind.split()[1])
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        return np.round(vectors * 200).clip(least, most).astype(dtype), {"precision": "float32"}
    if kind == "float32":
        return vectors, {}
    return quantize(vectors, kind, RANGES), {"precision": kind, "ranges": RANGES}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("queries", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("both", [False, True], ids=["floats ask", "both sides alike"])
def test_the_same_as_numpy(taken, monkeypatch, kind, similarity, queries, both):
    monkeypatch.setattr(scoring.search, "MOST_QUERIES", 37)
    corpus, options = stored(CORPUS, kind)
    asked = stored(queries, kind)[0] if both else queries
    for k in (1, 10, 700, 2000):
        found = kosine.top_k(asked, corpus, k, similarity=similarity, **options)
        same(found, by_numpy(asked, corpus, k, similarity=similarity, **options))
    assert taken


def test_bits_tie_as_documented(taken):
    bits, options = stored(CORPUS, "ubinary")
    found, expected = (
        search(bits[:20], bits, 30, **options) for search in (kosine.top_k, by_numpy)
    )
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert taken


def test_a_memory_map(taken, tmp_path):
    np.save(tmp_path / "c.npy", CORPUS)
    mapped = np.load(tmp_path / "c.npy", mmap_mode="r")
    same(kosine.top_k(MANY, mapped[100:600], 5), by_numpy(MANY, CORPUS[100:600], 5))
    assert taken


@pytest.mark.parametrize(
    ("queries", "corpus", "options"),
    [
        (FEW.astype(np.float64), CORPUS, {}),
        (FEW, CORPUS.astype(np.float64), {}),
        (FEW, CORPUS.astype(np.float16), {}),
        (FEW, CORPUS.astype(">f4"), {}),
        (FEW, np.asfortranarray(CORPUS), {}),
        (FEW, CORPUS[::2], {}),
        (FEW, CORPUS, {"similarity": "euclidean"}),
        (FEW, CORPUS, {"similarity": "manhattan"}),
        (FEW, CORPUS[:0], {}),
        (FEW[:0], CORPUS[:0], {}),
    ],
)  # fmt: skip
def test_what_it_does_not_know_goes_to_numpy(taken, queries, corpus, options):
    found = kosine.top_k(queries, corpus, 5, **options)
    assert not taken
    np.testing.assert_array_equal(found.indices, by_numpy(queries, corpus, 5, **options).indices)


def test_without_the_level_numpy_does_it(taken, monkeypatch):
    """An engine says what is wrong with KOSINE_ISA; scores can be had all the same."""
    for level in ("avx9", "amx_bf16_emulated_too"):
        monkeypatch.setenv("KOSINE_ISA", level)
        same(kosine.top_k(FEW, CORPUS, 3), by_numpy(FEW, CORPUS, 3))
    assert not taken


def test_mining_takes_it(taken):
    kosine.semantic_search(MANY, CORPUS, top_k=3)
    assert taken
