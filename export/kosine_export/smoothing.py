"""The factors that an input's columns are multiplied by before it becomes bytes, and the rows of
its weights divided by.

Where a few columns are much larger than the rest, one step of 255 has to span them all; divided
out of the input they are in the weight, where a column has one step too. SmoothQuant's rule (0.5)
shares them by square roots. It knows the largest number of a column only, and not how often the
steps of rows are set by it: from there on, what rounding is expected to cost is made smaller.

    of an input    for each slice, the squares of its rows' steps, times the squares of its weights
    of weights     the squares of columns' steps, times those of the inputs that `round_weight`
                   cannot take back
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kosine.packed import Float32
from kosine_export.rounding import Float64, unexplained
from kosine_kernels.quantized import slices

__all__ = ["ATTENTION_COUNT", "WEIGHTS_COUNT", "smoothing_factors"]

# How much the weights' share counts: `int8` has both errors, `w8a16` that of the weights alone,
# and the bytes are the same. More helps w8a16 and less helps int8. For what becomes
# queries, keys and values 1 was better for int8 and no worse for w8a16, on an encoder that was
# measured (docs/benchmarks.md).
WEIGHTS_COUNT, ATTENTION_COUNT = 4.0, 1.0
# Adam, on the factors' logarithms: steps, rate, decay of both averages, epsilon.
STEPS, RATE, MEANS, SQUARES, FLOOR = 150, 0.05, 0.9, 0.99, 1e-8


def smoothing_factors(
    largest: Float32,
    rows: Float32,
    gram: Float64,
    count: int,
    weights: Sequence[Float32],
    weights_count: float = WEIGHTS_COUNT,
) -> Float32:
    """(in,) factors: 1 where one side is all zeros.

    Args:
        largest: (in,) the largest magnitude of each column of an input.
        rows: (n, in) some of its rows.
        gram: (in, in) x.T @ x of all of them.
        count: How many those are.
        weights: (in, out) each, of the products that read the input.
        weights_count: What the cost of rounding the weights is multiplied by.
    """
    widest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    with np.errstate(all="ignore"):
        start = np.sqrt(widest / largest)
    used = np.isfinite(start) & (start > 0)
    start = np.where(used, start, 1).astype(np.float32)
    left = unexplained(gram, start)
    if left is None:
        return start
    left = left * (weights_count * len(rows) / count)
    cost = _Cost(rows, left, np.concatenate(weights, axis=1))
    found = _least(cost, np.log(start.astype(np.float64)))
    return np.where(used, np.exp(found), 1).astype(np.float32)


class _Cost:
    """What rounding costs, as a function of the factors' logarithms."""

    def __init__(self, rows: Float32, left: Float64, weight: Float32) -> None:
        self._rows = rows
        self._left = left
        self._columns = np.ascontiguousarray(np.abs(weight.T))
        self._squares = np.square(weight, dtype=np.float64).sum(axis=1)

    def __call__(self, logs: Float64) -> tuple[float, Float64]:
        """The cost and its gradient (in,)."""
        factors = np.exp(logs)
        gradient = np.zeros_like(logs)
        cost = 0.0
        weights = self._squares / np.square(factors)
        for cut in slices(len(logs)):
            squares, change = _ranges(self._rows[:, cut] * factors[cut].astype(np.float32))
            others = weights[cut].sum() / 255**2
            cost += squares * others
            gradient[cut] += change * others - 2 * squares / 255**2 * weights[cut]
        scaled = self._columns / factors.astype(np.float32)
        at = scaled.argmax(axis=1)
        tops = np.square(scaled[np.arange(len(at)), at], dtype=np.float64)
        inputs = self._left * np.square(factors)
        squares, others = tops.sum(), 1 / 127**2
        gradient -= 2 * others * inputs.sum() * np.bincount(at, tops, len(logs))
        gradient += 2 * others * squares * inputs
        return float(cost + others * squares * inputs.sum()), gradient


def _ranges(rows: Float32) -> tuple[float, Float64]:
    """The sum of the squared ranges of rows, 0 included, and its gradient (columns,)."""
    each = np.arange(len(rows))
    high, low = rows.argmax(axis=1), rows.argmin(axis=1)
    top = np.maximum(rows[each, high], 0).astype(np.float64)
    bottom = np.minimum(rows[each, low], 0).astype(np.float64)
    width = top - bottom
    count = rows.shape[1]
    up, down = 2 * width * top, 2 * width * bottom
    change = np.bincount(high, up, count) - np.bincount(low, down, count)
    return float(np.square(width).sum()), np.asarray(change, np.float64)


def _least(cost: _Cost, logs: Float64) -> Float64:
    """The logarithms of the least cost that was met on the way down from `logs`."""
    least, best = np.inf, logs
    mean, square = np.zeros_like(logs), np.zeros_like(logs)
    for step in range(1, STEPS + 1):
        found, gradient = cost(logs)
        if not np.isfinite(found) or found <= 0:
            break
        if found < least:
            least, best = found, logs
        gradient /= found
        mean = MEANS * mean + (1 - MEANS) * gradient
        square = SQUARES * square + (1 - SQUARES) * np.square(gradient)
        slope = mean / (1 - MEANS**step) / (np.sqrt(square / (1 - SQUARES**step)) + FLOOR)
        logs = logs - RATE * (1 - step / STEPS) * slope
    return best
