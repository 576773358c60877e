"""What the vectors of a score are: numbers, integers of ranges, or bits; and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kosine.errors import InputError, UnknownOption
from kosine.quantization import BITS, INTEGERS, PRECISIONS, Ranges, dequantize, ranges_dim

__all__ = ["Sides", "Vectors", "as_rows", "check_count", "read_sides", "unit", "unknown_option"]


@dataclass(frozen=True, slots=True)
class Vectors:
    """An array as it was given, (n, w), and how its rows are read as numbers, (n, dim)."""

    array: NDArray[Any]
    precision: str
    ranges: Ranges | None
    dim: int

    def floats(self, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """float64 as it is, anything else as float32: halves would overflow in a dot product."""
        rows = self.array[begin:end]
        if self.precision != "float32":
            return dequantize(rows, self.precision, self.ranges, self.dim)
        return rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)


class Sides(NamedTuple):
    left: Vectors
    right: Vectors

    @property
    def bits(self) -> bool:
        return self.left.precision in BITS and self.right.precision in BITS


def read_sides(
    a: ArrayLike, b: ArrayLike, precision: str | None, ranges: Ranges | None, dim: int | None
) -> Sides:
    """Both sides, once it is clear what they are and that they fit."""
    left, right = _numbers(a), _numbers(b)
    if precision not in (None, *PRECISIONS):
        raise unknown_option("precision", str(precision), PRECISIONS)
    if left.ndim != 2 or right.ndim != 2:
        raise _misfit(left, right)
    floats = [x.shape[1] for x in (left, right) if not _small(x)]
    whole = floats[0] if floats else dim if ranges is None else ranges_dim(ranges)
    sides = Sides(
        *(_read_as(x, precision, ranges, whole, exact=bool(floats)) for x in (left, right))
    )
    if sides.left.dim != sides.right.dim:
        raise _misfit(left, right)
    if ranges is None and not {sides.left.precision, sides.right.precision}.isdisjoint(INTEGERS):
        raise InputError(
            "int8 and uint8 vectors are not scored without ranges",
            limit="the ranges that they were encoded with",
            remedy="pass ranges=encoder.manifest.ranges, or precision='float32' where they are "
            "plain numbers",
        )
    return sides


def _read_as(
    array: NDArray[Any],
    precision: str | None,
    ranges: Ranges | None,
    whole: int | None,
    *,
    exact: bool,
) -> Vectors:
    """How one side is read; `whole` and `exact` as for `_precision_by_width`."""
    width = array.shape[1]
    if not _small(array):
        if precision not in (None, "float32") and array.dtype.kind in "iu":
            raise InputError(
                f"vectors of {array.dtype} are not of precision {precision!r}",
                limit="int8 or uint8, as `encode` gives them, or floats",
                remedy="convert them with .astype(np.int8) or .astype(np.uint8)",
            )
        return Vectors(array, "float32", None, width)
    if precision is None:
        precision = _precision_by_width(array, whole, exact=exact)
    if precision in BITS:
        width = whole if whole is not None and width == -(-whole // 8) else 8 * width
    return Vectors(array, precision, ranges, width)


def _precision_by_width(array: NDArray[Any], whole: int | None, *, exact: bool) -> str:
    """What an int8 or uint8 array is: integers, or bits of eight dimensions to a column.

    Args:
        array: (n, w) int8 or uint8.
        whole: Length of whole vectors, if anything tells it.
        exact: Integers would be exactly that long; else they may be truncated, to more than an
            eighth.
    """
    width, integers = array.shape[1], str(array.dtype)
    bits = "binary" if integers == "int8" else "ubinary"
    if whole is not None:
        if width == -(-whole // 8) != whole:
            return bits
        if exact or -(-whole // 8) < width <= whole:
            return integers
    raise InputError(
        f"{integers} vectors of {width} columns may be of precision {integers!r} or {bits!r}",
        limit="the precision that they were encoded with",
        remedy=f"pass precision={bits!r}, or precision={integers!r} and its ranges, or "
        "precision='float32' for plain numbers",
    )


def _small(array: NDArray[Any]) -> bool:
    return array.dtype in (np.int8, np.uint8)


def as_rows(x: ArrayLike) -> NDArray[Any]:
    """(n, d) numbers; 1-D input counts as one row.

    Raises:
        InputError: Anything else.
    """
    array = _numbers(x)
    if array.ndim != 2:
        raise InputError(
            f"vectors of shape {array.shape}", limit="(n, d)", remedy="pass what `encode` returns"
        )
    return array


def _numbers(x: ArrayLike) -> NDArray[Any]:
    try:
        array = np.atleast_2d(np.asarray(x))
    except ValueError:  # rows of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"vectors given as {type(x).__name__} are not an array of numbers",
            limit="(n, d) numbers",
            remedy="pass what `encode` returns",
        )
    return array


def _misfit(left: NDArray[Any], right: NDArray[Any]) -> InputError:
    return InputError(
        f"vectors of shapes {left.shape} and {right.shape}",
        limit="(n, d) and (m, d)",
        remedy="encode both sides with the same encoder, precision and truncate_dim",
    )


def unit(x: NDArray[Any]) -> NDArray[Any]:
    squares = np.einsum("ij,ij->i", x, x)
    # Where squares of float32 may overflow or vanish: in float64, row by row, so that no row's
    # rounding depends on another row.
    odd = ~((squares > 1e-30) & (squares < 1e30))
    squares[odd] = 1
    out = np.asarray(x / np.sqrt(squares)[:, None], x.dtype)
    if odd.any():
        rows = x[odd].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        with np.errstate(invalid="ignore"):  # an infinite one has no direction: NaN
            out[odd] = rows / np.where(norms == 0, 1, norms)[:, None]
    return out


def check_count(name: str, value: object) -> None:
    """Refuse what is no whole number of at least 1; NumPy's are taken, booleans are not.

    Raises:
        InputError: It is none.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:  # type: ignore[operator]
        raise InputError(f"{name} is {value!r}", limit="at least 1", remedy="ask for one or more")


def unknown_option(what: str, value: object, known: tuple[str, ...]) -> UnknownOption:
    return UnknownOption(
        f"unknown {what} {value!r}", limit=f"known: {', '.join(known)}", remedy=f"choose a {what}"
    )
