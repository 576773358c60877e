"""The best rows of a corpus, which is read in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kosine import native_search
from kosine.packed import Float32
from kosine.quantization import BITS, Precision, Ranges, affine
from kosine.scoring.matrix import SIMILARITIES, Similarity, score_matrix
from kosine.scoring.vectors import (
    Sides,
    Vectors,
    check_count,
    read_sides,
    unit,
    unknown_option,
)

__all__ = ["TopK", "best_of", "top_k"]

BLOCK = 1 << 20  # scores, and numbers of the corpus, that top_k holds at once: 4 MiB of float32
MOST_QUERIES = 1 << 11  # that are scored together: a block of the corpus is read once for them all
MOST_SORTED = 4  # times k, for each query: where more may be among the best, they are thinned first


class TopK(NamedTuple):
    """The k best rows for each query, best first: `indices` (q, k) int64, `scores` (q, k)."""

    indices: NDArray[np.int64]
    scores: Float32


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
    check_count("k", k)
    if similarity not in SIMILARITIES:
        raise unknown_option("similarity", similarity, SIMILARITIES)
    sides = read_sides(queries, corpus, precision, ranges, None)
    left, right = sides.left.floats(), sides.right
    # Bits are all of one length: their exact dot products leave equal distances equal.
    normalise, scale = similarity == "cosine" and not sides.bits, 1
    if similarity == "cosine":
        left, similarity = (unit(left) if normalise else left), "dot"
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


def _is_native(left: NDArray[Any], right: Vectors) -> bool:
    array = right.array
    fits = left.dtype == np.float32 and array.dtype in (np.float32, np.int8, np.uint8)
    in_place = array.flags.c_contiguous and array.flags.aligned
    return bool(fits and array.size and in_place and native_search.usable())


def _found(sides: Sides, left: NDArray[Any], part: slice, k: int, normalise: bool) -> TopK:
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
    left: NDArray[Any], right: Vectors, k: int, similarity: str, normalise: bool
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
            block = unit(block) if normalise else block
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
