"""Smaller output vectors: integers and bits from float32, and back to scores' float32.

The definitions are those of sentence-transformers. int8 and uint8 cut each dimension's range into
256 steps; binary and ubinary keep the signs, eight dimensions to a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kosine.errors import InputError, UnknownOption
from kosine.packed import Float32

__all__ = [
    "BITS",
    "INTEGERS",
    "PRECISIONS",
    "Precision",
    "Ranges",
    "affine",
    "calibrated_ranges",
    "clipped_components",
    "dequantize",
    "quantize",
    "ranges_dim",
]

INTEGERS = ("int8", "uint8")
BITS = ("binary", "ubinary")
PRECISIONS = ("float32", *INTEGERS, *BITS)
# Half the width of a range, in standard deviations of its dimension. Too wide costs little (a step
# of 0.05 deviations leaves a cosine of 0.9999); too narrow clips texts unlike those of calibration.
SPREAD = 6.0
# Ends of ranges are multiples of this, so that the same checkpoint exported on another machine,
# where vectors differ in the last bits, gets the same ranges and so the same fingerprint.
GRID = 1 / 64

Precision: TypeAlias = Literal["float32", "int8", "uint8", "binary", "ubinary"]
Ranges: TypeAlias = Mapping[str, ArrayLike] | Sequence[ArrayLike] | NDArray[Any]


def calibrated_ranges(vectors: Float32) -> dict[str, list[float]]:
    """`min` and `max` per dimension for integer output vectors, from calibration vectors (n, d).

    Rows are normalised first, and rows of zeros are left out. A range reaches 6 standard
    deviations of its dimension to both sides of the mean, and over every calibration vector; a
    dimension that hardly moves gets half the average deviation. Nothing leaves [-1, 1].
    """
    rows = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    filled = lengths[:, 0] > 0
    rows = rows[filled] / lengths[filled] if filled.any() else rows
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    half = SPREAD * np.maximum(deviation, max(0.5 * float(deviation.mean()), 1e-3))
    low, high = np.minimum(mean - half, rows.min(axis=0)), np.maximum(mean + half, rows.max(axis=0))
    return {
        "min": np.maximum(np.floor(low / GRID) * GRID, -1).tolist(),
        "max": np.minimum(np.ceil(high / GRID) * GRID, 1).tolist(),
    }


def quantize(vectors: Float32, precision: str, ranges: Ranges | None) -> NDArray[Any]:
    """Smaller vectors.

    int8 and uint8 map each dimension's `ranges["min"]..ranges["max"]` to 256 steps and clip
    outside; binary and ubinary keep the signs, eight dimensions to a byte, (n, ceil(d / 8)).
    The ranges never come from the vectors given: a result must not depend on its neighbours.

    Args:
        vectors: (n, d) float32.
        precision: "float32", "int8", "uint8", "binary" or "ubinary".
        ranges: `{"min": (d,), "max": (d,)}` or a (2, d) array; for the integers only. Ranges of
            more than d dimensions are those of whole vectors, of which these are the first d
            dimensions, normalised again; the ranges of these follow from them.

    Raises:
        UnknownOption: No such precision.
        InputError: Ranges are missing or do not fit.
    """
    _check_precision(precision)
    if precision == "float32":
        return vectors
    if precision in BITS:
        packed = np.packbits(vectors > 0, axis=-1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    low, high = _limits(ranges, vectors.shape[-1], precision)
    steps = np.clip(np.floor((vectors - low) / ((high - low) / 255)), 0, 255)
    return steps.astype(np.uint8) if precision == "uint8" else (steps - 128).astype(np.int8)


def dequantize(
    vectors: NDArray[Any], precision: str, ranges: Ranges | None = None, dim: int | None = None
) -> Float32:
    """(n, d) float32 that vectors of a precision stand for.

    int8 and uint8 give the middle of each step. A bit gives +1 or -1: the cosine of two such
    vectors is 1 - 2 * (Hamming distance) / d.

    Args:
        vectors: What `quantize` gave: (n, d), or (n, ceil(d / 8)) for bits.
        precision: The precision that they were made with.
        ranges: The ranges that they were made with, for int8 and uint8.
        dim: d, for bits; None takes every bit, eight to a byte.

    Raises:
        UnknownOption: No such precision.
        InputError: Ranges are missing or do not fit, or the array is not of that precision.
    """
    _check_precision(precision)
    if precision == "float32":
        return np.asarray(vectors, np.float32)
    expected = np.int8 if precision in ("int8", "binary") else np.uint8
    if vectors.dtype != expected:
        raise InputError(
            f"vectors of {vectors.dtype} are not of precision {precision!r}",
            limit=f"{np.dtype(expected)} for {precision!r}",
            remedy="name the precision that `encode` was given, and keep its dtype",
        )
    # Without the sign: 0 to 255.
    steps = vectors if expected is np.uint8 else vectors.view(np.uint8) ^ np.uint8(128)
    if precision in BITS:
        return np.unpackbits(steps, axis=-1, count=dim) * np.float32(2) - np.float32(1)
    low, high = _limits(ranges, vectors.shape[-1], precision)
    # low + (steps + 0.5) * width, in one array
    floats = steps.astype(np.float32)
    floats += np.float32(0.5)
    floats *= (high - low) / 255
    floats += low
    return floats


def affine(precision: str, ranges: Ranges | None, dim: int) -> tuple[Float32, Float32]:
    """(shift, scale), (dim,) float32 each: an int8 or uint8 number stands for
    `shift + number * scale`, but for rounding what `dequantize` gives.

    Raises:
        InputError: Ranges are missing or do not fit.
    """
    low, high = _limits(ranges, dim, precision)
    scale = (high - low) / 255
    middle = np.float32(128.5 if precision == "int8" else 0.5)
    return np.asarray(low + scale * middle, np.float32), np.asarray(scale, np.float32)


def clipped_components(vectors: Float32, ranges: Ranges | None) -> int:
    """How many components of (n, d) vectors lie outside the ranges, as `quantize` reads them."""
    low, high = _limits(ranges, vectors.shape[-1], "int8")
    return int(np.count_nonzero((vectors < low) | (vectors > high)))


def ranges_dim(ranges: Ranges) -> int:
    """How many dimensions ranges are of."""
    return len(_ends(ranges)[0])


def _limits(ranges: Ranges | None, dim: int, precision: str) -> tuple[Float32, Float32]:
    """`low` and `high`, (dim,) float32 each."""
    if ranges is None:
        raise InputError(
            f"precision {precision!r} needs ranges, and the bundle has none",
            limit="per-dimension min and max",
            remedy="pass ranges={'min': [...], 'max': [...]} from a calibration set",
        )
    low, high = _ends(ranges)
    if len(low) < dim:
        raise _no_ranges(low, high, f" for {dim} dimensions")
    return (low, high) if len(low) == dim else _truncated(low, high, dim)


def _ends(ranges: Ranges) -> tuple[Float32, Float32]:
    if isinstance(ranges, Mapping):
        ranges = (ranges.get("min", ()), ranges.get("max", ()))
    try:
        low, high = (np.asarray(side, np.float32) for side in ranges)
    except (TypeError, ValueError):
        low, high = np.empty(0, np.float32), np.empty(0, np.float32)
    if low.ndim != 1 or low.shape != high.shape or not len(low):
        raise _no_ranges(low, high)
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise _no_ranges(low, high)
    return low, high


def _no_ranges(low: Float32, high: Float32, wanted: str = "") -> InputError:
    return InputError(
        f"ranges of shapes {low.shape} and {high.shape}{wanted}",
        limit="finite numbers, min < max in every dimension",
        remedy="compute them over a calibration set",
    )


def _truncated(low: Float32, high: Float32, dim: int) -> tuple[Float32, Float32]:
    """Ranges of the first `dim` dimensions of unit vectors, once they are normalised again.

    A range tells its dimension's mean (the middle) and standard deviation (the width over
    2 * SPREAD), so it tells which share of the squared length 1 its dimension has. The share of
    the first `dim` together is the squared length that normalising divides by.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    squares = np.square(middle, dtype=np.float64) + np.square(half / SPREAD, dtype=np.float64)
    longer = np.sqrt(squares.sum() / squares[:dim].sum())
    return (
        np.maximum(low[:dim] * longer, -1).astype(np.float32),
        np.minimum(high[:dim] * longer, 1).astype(np.float32),
    )


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UnknownOption(
            f"unknown precision {precision!r}",
            limit=f"known: {', '.join(PRECISIONS)}",
            remedy="choose a precision",
        )
