"""Factors between an input of bytes and its weights: both lose less than by square roots."""

from __future__ import annotations

import numpy as np
import pytest

from kosine_export.rounding import round_weight
from kosine_export.smoothing import smoothing_factors
from kosine_kernels.quantized import multiply, quantize_rows

WIDTH, OUT = 128, 192


def inputs(seed: int, count: int = 600) -> np.ndarray:
    """Columns of many sizes, some of which are large in a few rows only; not independent."""
    rng = np.random.default_rng(seed)
    shape = np.random.default_rng(0)  # what kind of input it is
    mixed = rng.standard_normal((count, WIDTH)) @ (
        np.eye(WIDTH) + 0.1 * shape.standard_normal((WIDTH, WIDTH))
    )
    mixed *= np.exp(shape.standard_normal(WIDTH))
    rare = rng.random((count, WIDTH)) < 0.01 * (shape.random(WIDTH) < 0.2)
    return np.where(rare, 20 * mixed, mixed).astype(np.float32)


@pytest.fixture
def weight() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.standard_normal((WIDTH, OUT)) / np.sqrt(WIDTH)).astype(np.float32)


def factors(rows: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of SmoothQuant, and ours."""
    largest = np.abs(rows).max(axis=0)
    with np.errstate(divide="ignore"):
        roots = np.sqrt(np.abs(weight).max(axis=1) / largest)
    gram = rows.astype(np.float64).T @ rows
    return roots, smoothing_factors(largest, rows[::2], gram, len(rows), [weight])


def errors(rows: np.ndarray, weight: np.ndarray, smooth: np.ndarray) -> tuple[float, float]:
    """Squared errors of products of other rows: with both sides rounded, and the weight alone."""
    found, scale = round_weight(weight, smooth, rows.astype(np.float64).T @ rows)
    others = inputs(3)
    exact = others.astype(np.float64) @ weight
    in_bytes = multiply(quantize_rows(others, smooth), found, scale, np.zeros(OUT, np.float32))
    alone = (others * smooth).astype(np.float64) @ (found * scale.astype(np.float64))
    return float(np.square(in_bytes - exact).sum()), float(np.square(alone - exact).sum())


def test_products_of_bytes_err_less_and_those_of_floats_hardly_more(weight):
    rows = inputs(2)
    roots, ours = factors(rows, weight)
    both, alone = errors(rows, weight, roots)
    both_now, alone_now = errors(rows, weight, ours)
    print(both_now / both, alone_now / alone)
    assert both_now < 0.9 * both
    assert alone_now < 1.15 * alone


def test_the_less_the_weights_count_the_more_they_err(weight):
    rows = inputs(2)
    largest, gram = np.abs(rows).max(axis=0), rows.astype(np.float64).T @ rows
    found = []
    for count in (4.0, 1.0, 0.25):
        smooth = smoothing_factors(largest, rows[::2], gram, len(rows), [weight], count)
        both, alone = errors(rows, weight, smooth)
        found.append((both - alone, alone))
    assert found[0][0] > found[1][0] > found[2][0]
    assert found[0][1] < found[1][1] < found[2][1]


def test_a_column_without_numbers_is_left_as_it_is(weight):
    rows = inputs(2)
    rows[:, 5] = 0
    weight[9] = 0
    ours = factors(rows, weight)[1]
    assert ours.dtype == np.float32
    assert (ours[5], ours[9]) == (1, 1)
    assert (np.isfinite(ours) & (ours > 0)).all()


def test_inputs_that_say_nothing_leave_square_roots(weight):
    rows = inputs(2)
    largest = np.abs(rows).max(axis=0)
    for nothing in (0.0, np.nan):
        gram = np.full((WIDTH, WIDTH), nothing)
        found = smoothing_factors(largest, rows, gram, len(rows), [weight])
        np.testing.assert_allclose(found, np.sqrt(np.abs(weight).max(axis=1) / largest), rtol=1e-6)
