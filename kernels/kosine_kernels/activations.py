"""Activations in plain numpy, elementwise and in the precision of their input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INNER", "activate", "erf", "gelu", "gelu_tanh", "silu"]

Array = NDArray[Any]


def erf(x: Array) -> Array:
    """Error function, elementwise, to 1e-15: Taylor's series about the nearest of a grid of
    points that `math.erf` gave. The n-th derivative is Hermite's polynomial H(n - 1) times
    (-1) ** (n - 1) * 2 / sqrt(pi) * exp(-x * x).
    """
    flat = np.ravel(x)
    out = np.empty_like(flat)
    for begin in range(0, flat.size, ERF_BLOCK):
        out[begin : begin + ERF_BLOCK] = _erf(flat[begin : begin + ERF_BLOCK])
    return out.reshape(x.shape)


def _erf(x: Array) -> Array:
    """float64 of a block that stays in the cache: whole layers took seven times as long."""
    wide = np.clip(np.asarray(x, np.float64), -GRID_END, GRID_END)
    # A NaN takes any point of the grid: its offset is NaN, and so is what comes out.
    nearest = np.rint(np.nan_to_num(wide) * GRID_STEPS).astype(np.intp)
    offset = wide - nearest / GRID_STEPS
    total = np.zeros_like(wide)
    for coefficient in reversed(_ERF_SERIES):
        total = total * offset + coefficient[nearest + GRID_END * GRID_STEPS]
    return total


def _erf_series() -> list[NDArray[np.float64]]:
    points = np.arange(-GRID_END * GRID_STEPS, GRID_END * GRID_STEPS + 1) / GRID_STEPS
    series = [np.array([math.erf(point) for point in points])]
    slope = 2 / math.sqrt(math.pi) * np.exp(-np.square(points))
    before, hermite = np.zeros_like(points), np.ones_like(points)
    for order in range(1, ERF_TERMS + 1):
        series.append((-1) ** (order - 1) * hermite * slope / math.factorial(order))
        before, hermite = hermite, 2 * points * hermite - 2 * (order - 1) * before
    return series


GRID_END = 7  # erf is 1 to float64 precision beyond 6
GRID_STEPS = 32
ERF_TERMS = 8
ERF_BLOCK = 1 << 14
_ERF_SERIES = _erf_series()


def gelu(x: Array) -> Array:
    """`x * (1 + erf(x / sqrt 2)) / 2`: the exact form, not the tanh approximation."""
    half = x.dtype.type(0.5)
    return np.asarray(half * x * (1 + erf(x / x.dtype.type(math.sqrt(2.0)))))


def gelu_tanh(x: Array) -> Array:
    """GELU's approximation by tanh."""
    half, root = x.dtype.type(0.5), x.dtype.type(math.sqrt(2 / math.pi))
    return np.asarray(half * x * (1 + np.tanh(root * (x + x.dtype.type(0.044715) * x**3))))


def silu(x: Array) -> Array:
    """`x / (1 + exp(-x))`, without an exponential that overflows."""
    small = np.exp(-np.abs(x))
    return np.asarray(x * np.where(x < 0, small, 1) / (1 + small))


INNER: Mapping[str, Callable[[Array], Array]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


def activate(x: Array, name: str) -> Array:
    """Activation of a Dense module, by its name in `steps.Dense`."""
    if name == "identity":
        return x
    if name == "tanh":
        return np.asarray(np.tanh(x))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-x)))
    if name == "gelu":
        return gelu(x)
    raise ValueError(f"activation {name!r}; known: identity, tanh, relu, sigmoid, gelu")
