"""int8 and w8a16 in numpy: the integers of the native engine, and its sums, product by product.

A row of more than 1024 columns is cut into slices of at most 512, multiples of 64, as even as they
can be. Each slice becomes unsigned bytes with a scale and a zero point of its own, or words of 15
bits:

    int8     x * smooth ~ (byte - zero) * scale scale = (max - min) / 255  zero = rint(-min / scale)
    w8a16    x * smooth ~ word * scale          scale = max|x| / 16383

where min and max include 0. Where a number of a slice is not finite its scale is NaN, so that
the row shows it. Weights are signed bytes with a scale for each column.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kosine_kernels.steps import Attention, FeedForward, Linear, Step

__all__ = [
    *("QuantizedRows", "gelu_of_bytes", "multiply", "products", "quantize_rows"),
    *("quantize_weight", "slices"),
]

Float32 = NDArray[np.float32]
UNIT, MOST_WHOLE, MOST_COLUMNS = 64, 1024, 512
# PhiForBytes of rowwise.h.
GELU_EDGE = 4.39
GELU = (
    *(0.16076256334781647, -0.07875586301088333, 0.055289410054683685, -0.040047820657491684),
    *(0.02671993337571621, -0.01585974544286728, 0.01083718053996563, -0.007771747652441263),
    0.0027213008143007755,
)
SMALLEST_RANGE = np.float32(1e-30)  # below it a slice is all zeros


class QuantizedRows(NamedTuple):
    """Rows as whole numbers.

    Attributes:
        values: (rows, width) uint8, or int16.
        scale: (rows, slices) float32, NaN where a slice is not finite.
        zero: (rows, slices) float32, whole numbers from 0 to 255; zeros where values are int16.
    """

    values: NDArray[np.uint8] | NDArray[np.int16]
    scale: Float32
    zero: Float32


def products(steps: Iterable[Step]) -> dict[str, str]:
    """The products whose weights are bytes, and by whose name the factors of their input go.

    A gate reads what `up` reads, so it has `up`'s.
    """
    found: dict[str, str] = {}
    for step in steps:
        match step:
            case Linear():
                found[step.name] = step.name
            case Attention():
                found |= {step.qkv: step.qkv, step.output: step.output}
            case FeedForward():
                found[step.up] = step.up
                if step.gate is not None:
                    found[step.gate] = step.up
                found[step.down] = step.down
    return found


def slices(width: int) -> list[slice]:
    """Where a row of `width` columns is cut."""
    units = -(-width // UNIT)
    parts = 1 if width <= MOST_WHOLE else -(-units // (MOST_COLUMNS // UNIT))
    each = -(-units // parts) * UNIT
    return [slice(begin, min(begin + each, width)) for begin in range(0, width, each)]


def quantize_rows(x: Float32, smooth: Float32 | None = None, *, bits: int = 8) -> QuantizedRows:
    """(rows, width) float32, times `smooth` (width,) where there is one, to whole numbers.

    Args:
        bits: Of what holds them: 8 for bytes, 16 for words, which use 15.
    """
    if smooth is not None:
        x = x * smooth
    cuts = slices(x.shape[1])
    values = np.zeros(x.shape, np.uint8 if bits == 8 else np.int16)
    scale = np.ones((len(x), len(cuts)), np.float32)
    zero = np.zeros_like(scale)
    with np.errstate(all="ignore"):
        for i, cut in enumerate(cuts):
            part = x[:, cut]
            low = np.minimum(part.min(axis=1), np.float32(0))
            high = np.maximum(part.max(axis=1), np.float32(0))
            width = high - low if bits == 8 else np.maximum(high, -low)
            wide = width > SMALLEST_RANGE
            step = np.where(wide, width / np.float32(255 if bits == 8 else 16383), np.float32(1))
            inverse = np.where(wide, np.float32(1) / step, np.float32(1))
            finite = np.isfinite(part).all(axis=1)
            scale[:, i] = np.where(finite, step, np.nan)
            whole = np.rint(part * inverse[:, None])
            if bits == 8:
                origin = np.where(wide & finite, np.rint(-low * inverse), np.float32(0))
                zero[:, i] = origin
                whole = np.clip(whole + origin[:, None], 0, 255)
            values[:, cut] = np.where(np.isfinite(whole), whole, 0)
    return QuantizedRows(values, scale, zero)


def quantize_weight(
    weight: NDArray[Any], smooth: NDArray[Any] | None = None
) -> tuple[NDArray[np.int8], Float32]:
    """(in, out) to signed bytes (in, out) and a scale for each column (out,).

    Args:
        smooth: (in,) what the input will be multiplied by; the weight is divided by it.
    """
    wide = np.asarray(weight, np.float64)
    if smooth is not None:
        wide = wide / np.asarray(smooth, np.float64)[:, None]
    scale = (np.abs(wide).max(axis=0) / 127).astype(np.float32)
    scale[scale == 0] = 1
    return np.clip(np.rint(wide / scale), -127, 127).astype(np.int8), scale


def multiply(
    rows: QuantizedRows, weight: NDArray[np.int8], scale: Float32, bias: Float32
) -> NDArray[np.float64]:
    """`rows @ weight + bias`, (rows, out) float64: exact sums of bytes, then the scales."""
    total = np.zeros((len(rows.values), weight.shape[1]))
    for i, cut in enumerate(slices(weight.shape[0])):
        # Whole numbers below 2 ** 31: float64 holds every sum of them, and BLAS multiplies it.
        bytes_ = weight[cut].astype(np.float64)
        whole = rows.values[:, cut].astype(np.float64) @ bytes_
        part = whole - rows.zero[:, i, None].astype(np.float64) * bytes_.sum(axis=0)
        total += part * rows.scale[:, i, None].astype(np.float64)
    return np.asarray(total * scale.astype(np.float64) + bias.astype(np.float64))


def gelu_of_bytes(x: NDArray[Any]) -> NDArray[Any]:
    """The erf form of GELU as the int8 kernels have it, within 3e-5: its result becomes bytes."""
    edge, one, half = (x.dtype.type(value) for value in (GELU_EDGE, 1, 0.5))
    t = np.clip(x, -edge, edge)
    s = t * t * (2 / (edge * edge)) - one
    phi = np.full_like(s, GELU[-1])
    for coefficient in GELU[-2::-1]:
        phi = phi * s + x.dtype.type(coefficient)
    return np.asarray(x * (phi * t + half))
