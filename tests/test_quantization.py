"""Smaller vectors: what sentence-transformers gives, and back again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosine.errors import InputError, UnknownOption
from kosine.quantization import (
    BITS,
    INTEGERS,
    PRECISIONS,
    SPREAD,
    calibrated_ranges,
    clipped_components,
    dequantize,
    quantize,
)

RNG = np.random.default_rng(7)
A = RNG.standard_normal((5, 16)).astype(np.float32)
RANGES = np.stack([A.min(axis=0) * 0.8, A.max(axis=0) * 0.8])


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def cosines(a, b):
    a, b = np.float64(a), np.float64(b)
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


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
        RANGES[None],
        np.where(RANGES[1, 3] == RANGES, np.inf, RANGES),
        RANGES[::-1],
        np.zeros((2, 16)),
        {"min": RANGES[0]},
        {},
        [RANGES[0]],
        5,
        ["a", "b"],
        np.full((2, 16), np.nan),
    ],
)
def test_ranges_that_are_none(ranges):
    with pytest.raises(InputError, match=r"ranges of shapes .*min < max in every dimension"):
        quantize(A, "int8", ranges)


def test_unknown_precision():
    with pytest.raises(UnknownOption, match=r"unknown precision 'int4'.*float32, int8"):
        quantize(A, "int4", None)


# And back


@pytest.mark.parametrize("precision", INTEGERS)
def test_integers_come_back_to_the_middle_of_their_step(precision):
    steps = (RANGES[1] - RANGES[0]) / 255
    back = dequantize(quantize(A, precision, RANGES), precision, RANGES)
    assert back.dtype == np.float32
    inside = np.clip(A, *RANGES)
    assert (np.abs(back - inside) <= steps * 0.5001).all()
    assert (np.abs(back - inside) > steps * 0.4).any()  # no finer than a step
    again = quantize(back, precision, RANGES)
    np.testing.assert_array_equal(again, quantize(A, precision, RANGES))


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("dim", [1, 7, 8, 9, 16])
def test_bits_come_back_as_signs(precision, dim):
    vectors = A[:, :dim].copy()
    vectors[0, 0] = 0
    back = dequantize(quantize(vectors, precision, None), precision, dim=dim)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, np.where(vectors > 0, 1, -1))
    assert dequantize(quantize(vectors, precision, None), precision).shape[1] % 8 == 0


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("int8", np.uint8), ("uint8", np.int8), ("binary", np.uint8), ("ubinary", np.int64)],
)
def test_an_array_of_another_precision(precision, dtype):
    with pytest.raises(InputError, match=f"are not of precision '{precision}'"):
        dequantize(np.zeros((2, 16), dtype), precision, RANGES)


def test_float32_comes_back_as_it_is():
    np.testing.assert_array_equal(dequantize(A, "float32"), A)
    with pytest.raises(UnknownOption, match="unknown precision 'int4'"):
        dequantize(A, "int4", RANGES)


def test_clipped_components_are_counted():
    outside = int(((RANGES[0] > A) | (RANGES[1] < A)).sum())
    assert outside >= 16 * 2  # the ranges leave out the largest and the smallest of each column
    assert clipped_components(A, RANGES) == outside
    assert clipped_components(A * 0.5, RANGES) == 0


# Ranges


def model(n, dim=96, seed=3):
    """Unit vectors with a common part, and dimensions of very different spread."""
    rng = np.random.default_rng(seed)
    common = 2.0 * rng.standard_normal(dim) * (np.arange(dim) % 3 == 0)
    spread = np.geomspace(0.2, 3, dim)[rng.permutation(dim)]
    rng = np.random.default_rng(seed + n)
    return unit(common + spread * rng.standard_normal((n, dim)))


def test_ranges_hold_what_they_were_made_of_and_six_deviations():
    vectors = model(50)
    vectors[3, 7] = 0.9  # an outlier, which its range must hold, too
    rows = unit(vectors)
    ranges = calibrated_ranges(vectors)
    low, high = np.array(ranges["min"]), np.array(ranges["max"])
    assert (rows.min(axis=0) >= low).all()
    assert (rows.max(axis=0) <= high).all()
    mean, deviation = rows.mean(axis=0, dtype=float), rows.std(axis=0, dtype=float)
    assert (low <= np.maximum(mean - SPREAD * deviation, -1) + 1e-6).all()
    assert (high >= np.minimum(mean + SPREAD * deviation, 1) - 1e-6).all()
    width = np.minimum(2 * SPREAD * np.maximum(deviation, deviation.mean() / 2), 2)
    assert (high - low)[np.arange(96) != 7] == pytest.approx(
        width[np.arange(96) != 7], abs=0.05, rel=0.05
    )
    assert calibrated_ranges(3 * vectors) == ranges  # lengths do not count


def test_ranges_of_little():
    for rows in ([[0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]):
        ranges = calibrated_ranges(np.array(rows, np.float32))
        low, high = np.array(ranges["min"]), np.array(ranges["max"])
        assert (low < high).all()
        assert (low >= -1).all()
        assert (high <= 1).all()
    with_empty = np.concatenate([model(50), np.zeros((50, 96), np.float32)])
    assert calibrated_ranges(with_empty) == calibrated_ranges(model(50))


def test_rounding_elsewhere_gives_the_same_ranges():
    """Another machine's last bits must not change the fingerprint."""
    vectors = model(150)
    noise = RNG.standard_normal(vectors.shape) * 1e-7
    assert calibrated_ranges(vectors + noise.astype(np.float32)) == calibrated_ranges(vectors)


@pytest.mark.parametrize("dim", [1, 2, 5, 16, 40, 95, 96])
@pytest.mark.parametrize("precision", INTEGERS)
def test_ranges_of_whole_vectors_serve_truncated_ones(precision, dim):
    ranges = calibrated_ranges(model(150))
    cut = unit(model(3000)[:, :dim])
    assert clipped_components(cut, ranges) <= 0.001 * cut.size
    back = dequantize(quantize(cut, precision, ranges), precision, ranges)
    found = cosines(back, cut)
    assert found.mean() >= 0.9998
    assert found.min() >= 0.999
    if dim == 1:  # every vector is 1 or -1
        return
    # As narrow as ranges made from truncated vectors, but for the share that texts differ by.
    own = calibrated_ranges(unit(model(150)[:, :dim]))
    step, other = (np.abs(dequantize(quantize(cut, precision, r), precision, r) - cut).mean()
                   for r in (ranges, own))  # fmt: skip
    assert step < 1.3 * other


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), dim=st.integers(1, 40))
def test_any_vectors_have_ranges(seed, rows, dim):
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((rows, dim)) * rng.choice([0, 1e-20, 1, 1e20], dim)).astype(
        np.float32
    )
    ranges = calibrated_ranges(vectors)
    for width in range(1, dim + 1):
        found = quantize(unit_or_zero(vectors[:, :width]), "int8", ranges)
        assert found.shape == (rows, width)


def unit_or_zero(x):
    lengths = np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    return (x / np.where(lengths == 0, 1, lengths)).astype(np.float32)
