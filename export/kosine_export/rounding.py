"""Weights rounded to bytes with their inputs in view.

Plain rounding takes each number to its nearest step. What counts is the product, though, and the
columns of an input go up and down together: the error that one row of the weight brings in can be
taken back, in part, by the rows that are rounded after it. (That is Babai's nearest plane, and
GPTQ's order and update written as one; nothing changes for who reads the bytes.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kosine.packed import Float32
from kosine_kernels.quantized import quantize_weight

__all__ = ["round_weight", "unexplained"]

Float64 = NDArray[np.float64]

# Of the mean of the diagonal, added to it. Less fits the texts of calibration better and others
# less; texts that were held out were best at 0.03 to 0.1, and flat between.
DAMPING = 0.05
# Rows whose errors are handed on one by one; of larger groups it is one matrix product.
FEW_ROWS = 8


def round_weight(
    weight: Float32, smooth: Float32, gram: Float64
) -> tuple[NDArray[np.int8], Float32]:
    """As `quantize_weight`, with less error of the products that inputs like those seen have.

    Args:
        weight: (in, out).
        smooth: (in,) what the input will be multiplied by; the weight is divided by it.
        gram: (in, in) x.T @ x of inputs x, not yet multiplied.

    Returns:
        Bytes (in, out) and a scale for each column (out,): those of `quantize_weight`, where the
        inputs say nothing or other bytes would be no better for them.
    """
    plain, scale = quantize_weight(weight, smooth)
    wide = np.asarray(weight, np.float64) / np.asarray(smooth, np.float64)[:, None] / scale
    seen = gram * np.outer(smooth, smooth)
    ordered = _factorize(seen)
    if ordered is None:
        return plain, scale
    order, factor = ordered
    rounded = np.empty_like(plain)
    rounded[order] = _round_rows(wide[order], (factor / np.diag(factor)).T)
    better = _error(rounded - wide, seen) < _error(plain - wide, seen)
    return np.where(better, rounded, plain), scale


def unexplained(gram: Float64, smooth: Float32) -> Float64 | None:
    """(in,) of the square of each column, what `round_weight` cannot take back by other columns.

    Args:
        gram: (in, in) of inputs, not yet multiplied; nor is what comes back.
        smooth: (in,) what they will be multiplied by, more or less.
    """
    ordered = _factorize(gram * np.outer(smooth, smooth))
    if ordered is None:
        return None
    order, factor = ordered
    left = np.empty(len(order))
    left[order] = np.square(np.diag(factor))
    return np.asarray(left / np.square(smooth, dtype=np.float64))


def _factorize(seen: Float64) -> tuple[NDArray[np.intp], Float64] | None:
    """The order of rows and the Cholesky factor in it; None where inputs say nothing."""
    mean = float(np.trace(seen)) / len(seen)
    if not (np.isfinite(mean) and mean > 0):
        return None
    damped = seen + np.diag(np.full(len(seen), DAMPING * mean))
    # The rows of the largest inputs are rounded first, from the end: most is taken back of those.
    order = np.argsort(np.diag(damped), kind="stable")
    try:
        factor = np.linalg.cholesky(damped[np.ix_(order, order)])
    except np.linalg.LinAlgError:
        return None
    return order, np.asarray(factor, np.float64)


def _round_rows(wanted: Float64, effect: Float64) -> NDArray[np.int8]:
    """(in, out) rounded from the last row to the first.

    Args:
        wanted: (in, out) in steps.
        effect: (in, in) upper triangle: how much of the error of a row (a column here) each of the
            rows before it takes back.
    """
    # First what is wanted with what has to be taken back; after its turn, a row's error.
    state = wanted.copy()
    rounded = np.empty(wanted.shape, np.int8)

    def go(begin: int, end: int) -> None:
        if end - begin > FEW_ROWS:
            middle = (begin + end) // 2
            go(middle, end)
            state[begin:middle] += effect[begin:middle, middle:end] @ state[middle:end]
            go(begin, middle)
            return
        for i in range(end - 1, begin - 1, -1):
            rounded[i] = np.clip(np.rint(state[i]), -127, 127)
            state[i] = wanted[i] - rounded[i]
            state[begin:i] += effect[begin:i, i, None] * state[i]

    go(0, len(wanted))
    return rounded


def _error(difference: Float64, gram: Float64) -> Float64:
    """(out,) squares of what a difference of weights makes of the inputs, summed."""
    return np.asarray((difference * (gram @ difference)).sum(axis=0))
