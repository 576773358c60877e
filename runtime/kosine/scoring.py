"""From vectors to scores: plain functions of arrays.

Vectors may be numbers (floats of any width) or what `encode` gives with another `precision`.
int8 and uint8 stand for the middle of each step of their ranges; a bit stands for +1 or -1, so
that the cosine of two rows of bits is 1 - 2 * (Hamming distance) / d, their dot product
d - 2 * (Hamming distance), and so on. Every similarity is then the one of those float32 vectors,
also between float32 queries and a smaller corpus.

An array of int8 or uint8 does not say which of the two it is. `precision` does; without it the
width tells, where it can: against float32 rows of d dimensions, or with ranges of d dimensions,
ceil(d / 8) columns are bits and more are integers. Where it cannot, the call is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kosine import native_search
from kosine.errors import InputError, UnknownOption
from kosine.packed import Float32
from kosine.quantization import (
    BITS,
    INTEGERS,
    PRECISIONS,
    Precision,
    Ranges,
    affine,
    dequantize,
    ranges_dim,
)

__all__ = [
    "SIMILARITIES",
    "Similarity",
    "TopK",
    "as_rows",
    "best_of",
    "cosine",
    "pairwise",
    "score_matrix",
    "top_k",
]

Similarity: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
BLOCK = 1 << 20  # scores, and numbers of the corpus, that top_k holds at once: 4 MiB of float32
MOST_QUERIES = 1 << 11  # that are scored together: a block of the corpus is read once for them all
MOST_SORTED = 4  # times k, for each query: where more may be among the best, they are thinned first


class TopK(NamedTuple):
    """The k best rows for each query, best first: `indices` (q, k) int64, `scores` (q, k)."""

    indices: NDArray[np.int64]
    scores: Float32


def cosine(
    a: ArrayLike, b: ArrayLike, *, precision: Precision | None = None, ranges: Ranges | None = None
) -> Float32:
    """(n, m) cosine similarity of (n, d) and (m, d) vectors; 1-D input counts as one row.

    Rows need not have length 1: norms are divided out. A zero row scores 0.

    Args:
        a, b: Numbers, or int8 or uint8 arrays as `encode(precision=...)` gives them.
        precision: What int8 and uint8 arrays are: "int8", "uint8", "binary" or "ubinary", or
            "float32" for plain numbers. Needed where their width does not tell.
        ranges: The ranges of int8 and uint8 vectors: `encoder.manifest.ranges`, or what `encode`
            was given.

    Raises:
        InputError: The sides do not fit, or what they are stays unclear.
        UnknownOption: No such precision.
    """
    return score_matrix(a, b, precision=precision, ranges=ranges)


def score_matrix(
    a: ArrayLike,
    b: ArrayLike,
    similarity: str = "cosine",
    *,
    precision: Precision | None = None,
    ranges: Ranges | None = None,
    dim: int | None = None,
) -> Float32:
    """(n, m) scores; distances are negated, so that more is always more alike.

    `dim` is the length of whole vectors, where it is known without ranges; see `cosine`.
    """
    sides = _sides(a, b, precision, ranges, dim)
    left, right = (side.floats() for side in sides)
    if similarity == "cosine":
        scores = left @ right.T / left.shape[1] if sides.bits else _unit(left) @ _unit(right).T
    elif similarity == "dot":
        scores = left @ right.T
    elif similarity == "euclidean":
        # The differences cancel: float32 would leave 1e-4 between equal unit vectors.
        left, right = left.astype(np.float64), right.astype(np.float64)
        squares = np.square(left).sum(1)[:, None] + np.square(right).sum(1)[None, :]
        scores = -np.sqrt(np.maximum(squares - 2 * (left @ right.T), 0))
    elif similarity == "manhattan":
        scores = np.empty((len(left), len(right)), left.dtype)
        for i, row in enumerate(left):
            scores[i] = -np.abs(right - row).sum(axis=1)
    else:
        raise _unknown("similarity", similarity, SIMILARITIES)
    return np.asarray(scores, np.float32)


def pairwise(
    a: ArrayLike,
    b: ArrayLike,
    similarity: str = "cosine",
    *,
    precision: Precision | None = None,
    ranges: Ranges | None = None,
    dim: int | None = None,
) -> Float32:
    """(n,) scores of row i against row i; both must have n rows. See `score_matrix`."""
    sides = _sides(a, b, precision, ranges, dim)
    left, right = (side.floats() for side in sides)
    if len(left) != len(right):
        raise InputError(
            f"{len(left)} rows against {len(right)}",
            limit="as many on both sides",
            remedy="use similarity() for every row against every row",
        )
    if similarity == "cosine" and sides.bits:
        scores = np.sum(left * right, axis=1) / left.shape[1]
    elif similarity == "cosine":
        scores = np.sum(_unit(left) * _unit(right), axis=1)
    elif similarity == "dot":
        scores = np.sum(left * right, axis=1)
    elif similarity == "euclidean":
        scores = -np.sqrt(np.sum(np.square(left - right), axis=1))
    elif similarity == "manhattan":
        scores = -np.sum(np.abs(left - right), axis=1)
    else:
        raise _unknown("similarity", similarity, SIMILARITIES)
    return np.asarray(scores, np.float32)


def top_k(
    queries: ArrayLike,
    corpus: ArrayLike,
    k: int = 10,
    *,
    similarity: Similarity = "cosine",
    precision: Precision | None = None,
    ranges: Ranges | None = None,
) -> TopK:
    """The k best corpus rows for each query, best first; ties go to the lower index.

    The corpus is read, normalised and scored in blocks: beside the arrays given, and the result,
    it takes some tens of megabytes for any size, also where the corpus is a `np.memmap`. With
    fewer than k rows all of them come back. Cosine and dot products of float32 queries with a
    float32, int8, uint8 or bit corpus are found in C++, on all processors, where kosine has its
    native module; anything else by numpy.

    Args:
        queries, corpus: (q, d) and (n, d) numbers, or smaller vectors, also one of each: float32
            queries find their way in a corpus of bits or integers.
        k: At least 1.
        similarity: "cosine", "dot", "euclidean" or "manhattan" (distances negated).
        precision, ranges: What int8 and uint8 arrays are, as for `cosine`.

    Raises:
        InputError, UnknownOption: See `cosine`.
    """
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k is {k!r}", limit="at least 1", remedy="ask for one row or more")
    sides = _sides(queries, corpus, precision, ranges, None)
    left, right = sides.left.floats(), sides.right
    # Bits are all of one length: their exact dot products leave equal distances equal.
    normalise, scale = similarity == "cosine" and not sides.bits, 1
    if similarity == "cosine":
        left, similarity = (_unit(left) if normalise else left), "dot"
        scale = right.dim if sides.bits else 1
    k = min(k, len(right.array))
    parts = (slice(i, i + MOST_QUERIES) for i in range(0, len(left), MOST_QUERIES))
    if similarity == "dot" and _is_native(left, right):
        best = [_found(sides, left, part, k, normalise) for part in parts]
    else:
        best = [
            best_of(_blocks(left[part], right, k, similarity, normalise), len(left[part]), k)
            for part in parts
        ]
    best = best or [best_of((), 0, k)]
    indices = np.concatenate([part.indices for part in best])
    scores = np.concatenate([part.scores for part in best])
    return TopK(indices, np.asarray(scores / scale, np.float32))


def best_of(blocks: Iterable[Float32], queries: int, k: int) -> TopK:
    """The k best of (queries, b) scores that come block after block of the corpus.

    With fewer than k in all of them, all; ties go to the lower index, NaN comes last.
    """
    best = TopK(np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32))
    begin = 0
    for scores in blocks:
        if scores.size:
            best = _merged(best, scores, begin, k)
        begin += scores.shape[1]
    if not queries:
        return TopK(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
    return best


def _is_native(left: NDArray[Any], right: _Vectors) -> bool:
    array = right.array
    fits = left.dtype == np.float32 and array.dtype in (np.float32, np.int8, np.uint8)
    in_place = array.flags.c_contiguous and array.flags.aligned
    return bool(fits and array.size and in_place and native_search.usable())


def _found(sides: _Sides, left: NDArray[Any], part: slice, k: int, normalise: bool) -> TopK:
    """`best_of` in C++."""
    array, precision, dim = sides.right.array, sides.right.precision, sides.right.dim
    queries = np.ascontiguousarray(left[part])
    if sides.bits:
        # Both sides of "binary" have every eighth bit turned over: it differs where it did.
        bits = np.ascontiguousarray(sides.left.array[part]).view(np.uint8)
        indices, scores = native_search.top_distances(bits, array.view(np.uint8), k)
        return TopK(indices, dim + 2 * scores)
    if precision in BITS:
        if precision == "binary":  # every eighth bit is turned over: so is what it meets
            queries = queries.copy()
            queries[:, ::8] *= -1
        array, shift, scale = array.view(np.uint8), None, None
    elif array.dtype == np.float32:
        shift = scale = None
    elif precision == "float32":
        shift, scale = np.zeros(dim, np.float32), np.ones(dim, np.float32)
    else:
        shift, scale = affine(precision, sides.right.ranges, dim)
    return TopK(
        *native_search.top_products(queries, array, k, normalise, precision in BITS, shift, scale)
    )


def _blocks(
    left: NDArray[Any], right: _Vectors, k: int, similarity: str, normalise: bool
) -> Iterator[Float32]:
    """(q, b) scores of all of `right`; each is gone when the next is taken."""
    count = len(right.array)
    step = max(1, k, BLOCK // max(1, len(left)))
    rows = max(1, min(step, BLOCK // max(1, right.dim)))
    for begin in range(0, count, step):
        end = min(begin + step, count)
        scores = np.empty((len(left), end - begin), np.float32)
        for start in range(begin, end, rows):
            block = right.floats(start, min(start + rows, end))
            at = slice(start - begin, start - begin + len(block))
            block = _unit(block) if normalise else block
            if similarity == "dot" and left.dtype == block.dtype == np.float32:
                np.matmul(left, block.T, out=scores[:, at])
            else:
                scores[:, at] = score_matrix(left, block, similarity)
        yield scores


def _merged(best: TopK, scores: Float32, begin: int, k: int) -> TopK:
    """The k best of those so far and of a block whose first column is the row `begin`.

    Sorting is for the few that can be among them: more than the k-th best so far, and at least
    the k-th best of the block. An equal score so far has the lower index.
    """
    queries, width = scores.shape
    if best.scores.shape[1] == k:
        least = best.scores[:, -1]
        chosen = scores > least[:, None]
        chosen[np.isnan(least)] = True  # NaN comes last: anything else goes before it
    else:
        chosen = np.ones(scores.shape, bool)
    if width > k and np.count_nonzero(chosen) > MOST_SORTED * k * queries:
        of_block = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
        chosen &= ~(scores < of_block)  # NaN too, where there are not k others
    at = np.flatnonzero(chosen)
    if not len(at):
        return best
    row = at // width
    touched, first, per_row = np.unique(row, return_index=True, return_counts=True)
    held = best.scores.shape[1]
    # One row for each query that anything changes for: what it has, then its new ones in order.
    line = np.repeat(np.arange(len(touched)), per_row)
    column = held + np.arange(len(at)) - np.repeat(first, per_row)
    shape = (len(touched), held + int(per_row.max()))
    values, ids = np.full(shape, np.nan, np.float32), np.zeros(shape, np.int64)
    values[:, :held], ids[:, :held] = best.scores[touched], best.indices[touched]
    values[line, column], ids[line, column] = scores.reshape(-1)[at], at - row * width + begin
    # A stable sort over ascending ids settles ties; the filling comes last, as all NaN does.
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    values, ids = (np.take_along_axis(x, order, axis=1) for x in (values, ids))
    if len(touched) == queries:
        return TopK(ids, values)
    best.indices[touched], best.scores[touched] = ids, values
    return best


@dataclass(frozen=True, slots=True)
class _Vectors:
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


class _Sides(NamedTuple):
    left: _Vectors
    right: _Vectors

    @property
    def bits(self) -> bool:
        return self.left.precision in BITS and self.right.precision in BITS


def _sides(
    a: ArrayLike, b: ArrayLike, precision: str | None, ranges: Ranges | None, dim: int | None
) -> _Sides:
    """Both sides, once it is clear what they are and that they fit."""
    left, right = _numbers(a), _numbers(b)
    if precision not in (None, *PRECISIONS):
        raise _unknown("precision", str(precision), PRECISIONS)
    if left.ndim != 2 or right.ndim != 2:
        raise _misfit(left, right)
    floats = [x.shape[1] for x in (left, right) if not _small(x)]
    whole = floats[0] if floats else dim if ranges is None else ranges_dim(ranges)
    sides = _Sides(
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
) -> _Vectors:
    """How one side is read; `whole` and `exact` as for `_precision_by_width`."""
    width = array.shape[1]
    if not _small(array):
        if precision not in (None, "float32") and array.dtype.kind in "iu":
            raise InputError(
                f"vectors of {array.dtype} are not of precision {precision!r}",
                limit="int8 or uint8, as `encode` gives them, or floats",
                remedy="convert them with .astype(np.int8) or .astype(np.uint8)",
            )
        return _Vectors(array, "float32", None, width)
    if precision is None:
        precision = _precision_by_width(array, whole, exact=exact)
    if precision in BITS:
        width = whole if whole is not None and width == -(-whole // 8) else 8 * width
    return _Vectors(array, precision, ranges, width)


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


def _unit(x: NDArray[Any]) -> NDArray[Any]:
    squares = np.einsum("ij,ij->i", x, x)
    # Where squares of float32 may overflow or vanish: in float64, row by row, so that no row's
    # rounding depends on another row.
    odd = ~((squares > 1e-30) & (squares < 1e30))
    squares[odd] = 1
    out = np.asarray(x / np.sqrt(squares)[:, None], x.dtype)
    if odd.any():
        rows = x[odd].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        out[odd] = rows / np.where(norms == 0, 1, norms)[:, None]
    return out


def _unknown(what: str, value: str, known: tuple[str, ...]) -> UnknownOption:
    return UnknownOption(
        f"unknown {what} {value!r}", limit=f"known: {', '.join(known)}", remedy=f"choose a {what}"
    )
