"""Weights rounded with their inputs in view."""

from __future__ import annotations

import numpy as np
import pytest

from kosine_export.rounding import round_weight
from kosine_kernels.quantized import quantize_weight


def inputs(rows, columns, seed=0, factors=8):
    """Rows whose columns go up and down together, as those of an encoder do: (rows, columns)."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((factors, columns))
    x = rng.standard_normal((rows, factors)) @ mix + 0.3 * rng.standard_normal((rows, columns))
    return x.astype(np.float32)


def weight(rows, columns, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def product_error(x, w, smooth, found):
    """Root mean square error of products, over their root mean square."""
    bytes_, scale = found
    rounded = bytes_.astype(np.float64) * scale * smooth.astype(np.float64)[:, None]
    exact = x.astype(np.float64) @ w
    return np.sqrt(np.mean((x @ rounded - exact) ** 2) / np.mean(exact**2))


@pytest.mark.parametrize(("depth", "columns"), [(96, 40), (64, 1), (7, 5), (1, 3)])
@pytest.mark.parametrize("smoothed", [False, True])
def test_products_of_other_rows_err_less(depth, columns, smoothed):
    w, seen = weight(depth, columns), inputs(600, depth)
    smooth = np.ones(depth, np.float32)
    if smoothed:
        smooth = np.random.default_rng(2).uniform(0.3, 3, depth).astype(np.float32)
    found = round_weight(w, smooth, seen.T @ seen)
    plain = quantize_weight(w, smooth)
    assert found[0].dtype == np.int8
    assert found[0].shape == (depth, columns)
    assert np.array_equal(found[1], plain[1])  # the scales stay
    other = inputs(400, depth, seed=5)
    ratio = product_error(other, w, smooth, found) / product_error(other, w, smooth, plain)
    assert ratio <= (0.6 if depth >= 64 else 1.0)
    again = round_weight(w, smooth, seen.T @ seen)
    assert np.array_equal(again[0], found[0])


def test_inputs_that_do_not_go_together_leave_plain_rounding():
    w, smooth = weight(64, 16), np.ones(64, np.float32)
    found, scale = round_weight(w, smooth, np.eye(64))
    plain = quantize_weight(w, smooth)
    assert np.array_equal(found, plain[0])
    assert np.array_equal(scale, plain[1])


@pytest.mark.parametrize("gram", [0.0, np.nan, np.inf, -1.0])
def test_inputs_that_say_nothing_leave_plain_rounding(gram):
    w, smooth = weight(32, 8), np.ones(32, np.float32)
    with np.errstate(invalid="ignore"):
        found, scale = round_weight(w, smooth, np.full((32, 32), gram))
    plain = quantize_weight(w, smooth)
    assert np.array_equal(found, plain[0])
    assert np.array_equal(scale, plain[1])


def test_a_column_that_is_always_zero_is_rounded_as_before():
    w, seen = weight(48, 8), inputs(300, 48)
    seen[:, 5] = 0
    smooth = np.ones(48, np.float32)
    found, _ = round_weight(w, smooth, seen.T @ seen)
    plain, _ = quantize_weight(w, smooth)
    # Nothing goes with it: its errors hand nothing on, and nothing is handed to it.
    assert np.array_equal(found[5], plain[5])


def test_no_column_gets_worse_for_the_inputs_seen():
    w, seen, smooth = weight(40, 64), inputs(50, 40, factors=40), np.ones(40, np.float32)
    found, scale = round_weight(w, smooth, seen.T @ seen)
    plain, _ = quantize_weight(w, smooth)
    error = [np.square(seen @ (each * scale - w)).sum(axis=0) for each in (found, plain)]
    assert (error[0] <= error[1] * (1 + 1e-6)).all()
    assert (error[0] < error[1]).any()
