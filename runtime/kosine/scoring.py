"""From vectors to scores and to smaller vectors: plain functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kosine.errors import InputError, UnknownOption
from kosine.packed import Float32

__all__ = [
    "PRECISIONS",
    "SIMILARITIES",
    "Ranges",
    "TopK",
    "cosine",
    "pairwise",
    "quantize",
    "score_matrix",
    "top_k",
]

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
BLOCK_SCORES = 1 << 22  # scores held at once by top_k: 16 MiB of float32


Ranges: TypeAlias = Mapping[str, ArrayLike] | Sequence[ArrayLike] | NDArray[Any]


class TopK(NamedTuple):
    """The k best rows for each query, best first: `indices` (q, k) int64, `scores` (q, k)."""

    indices: NDArray[np.int64]
    scores: Float32


def cosine(a: ArrayLike, b: ArrayLike) -> Float32:
    """(n, m) cosine similarity of (n, d) and (m, d) vectors; 1-D input counts as one row.

    Rows need not have length 1: norms are divided out. A zero row scores 0.
    """
    return score_matrix(a, b, "cosine")


def score_matrix(a: ArrayLike, b: ArrayLike, similarity: str = "cosine") -> Float32:
    """(n, m) scores; distances are negated, so that more is always more alike."""
    left, right = _matched(a, b)
    if similarity == "cosine":
        scores = _unit(left) @ _unit(right).T
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


def pairwise(a: ArrayLike, b: ArrayLike, similarity: str = "cosine") -> Float32:
    """(n,) scores of row i against row i; both must have n rows."""
    left, right = _matched(a, b)
    if len(left) != len(right):
        raise InputError(
            f"{len(left)} rows against {len(right)}",
            limit="as many on both sides",
            remedy="use similarity() for every row against every row",
        )
    if similarity == "cosine":
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
    queries: ArrayLike, corpus: ArrayLike, k: int = 10, *, similarity: str = "cosine"
) -> TopK:
    """The k best corpus rows for each query, best first; ties go to the lower index.

    The corpus is scored in blocks, so memory stays bounded for any size. With fewer than k rows
    all of them come back.
    """
    if k < 1:
        raise InputError(f"k is {k}", limit="at least 1", remedy="ask for one row or more")
    left, right = _matched(queries, corpus)
    if similarity == "cosine":
        left, right, similarity = _unit(left), _unit(right), "dot"
    k = min(k, len(right))
    best_scores = np.empty((len(left), 0), np.float32)
    best = np.empty((len(left), 0), np.int64)
    step = max(1, k, BLOCK_SCORES // max(1, len(left)))
    for begin in range(0, len(right), step):
        scores = score_matrix(left, right[begin : begin + step], similarity)
        ids = np.broadcast_to(np.arange(begin, begin + scores.shape[1]), scores.shape)
        best_scores = np.concatenate([best_scores, scores], axis=1)
        best = np.concatenate([best, ids], axis=1)
        # A stable sort over ascending ids settles ties; argpartition would not.
        order = np.argsort(-best_scores, axis=1, kind="stable")[:, :k]
        best_scores = np.take_along_axis(best_scores, order, axis=1)
        best = np.take_along_axis(best, order, axis=1)
    return TopK(best, best_scores)


def quantize(vectors: Float32, precision: str, ranges: Ranges | None) -> NDArray[Any]:
    """Smaller output vectors, with sentence-transformers' definitions.

    int8 and uint8 map each dimension's `ranges["min"]..ranges["max"]` to 256 steps and clip
    outside; binary and ubinary keep the signs, eight dimensions to a byte, (n, ceil(d / 8)).
    The ranges never come from the vectors given: a result must not depend on its neighbours.

    Args:
        vectors: (n, d) float32.
        precision: "float32", "int8", "uint8", "binary" or "ubinary".
        ranges: `{"min": (d,), "max": (d,)}` or a (2, d) array; for the integers only.
    """
    if precision not in PRECISIONS:
        raise _unknown("precision", precision, PRECISIONS)
    if precision == "float32":
        return vectors
    dim = vectors.shape[-1]
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=-1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        raise InputError(
            f"precision {precision!r} needs ranges, and the bundle has none",
            limit="per-dimension min and max",
            remedy="pass ranges={'min': [...], 'max': [...]} from a calibration set",
        )
    if isinstance(ranges, Mapping):
        ranges = (ranges.get("min", ()), ranges.get("max", ()))
    low, high = (np.asarray(side, np.float32) for side in ranges)
    if low.shape != (dim,) or high.shape != (dim,) or not np.all(low < high):
        raise InputError(
            f"ranges of shapes {low.shape} and {high.shape} for {dim} dimensions",
            limit="min < max in every dimension",
            remedy="compute them over a calibration set",
        )
    steps = np.clip(np.floor((vectors - low) / ((high - low) / 255)), 0, 255)
    return steps.astype(np.uint8) if precision == "uint8" else (steps - 128).astype(np.int8)


def _matched(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    left, right = _floats(a), _floats(b)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise InputError(
            f"vectors of shapes {left.shape} and {right.shape}",
            limit="(n, d) and (m, d)",
            remedy="encode both sides with the same encoder and truncate_dim",
        )
    return left, right


def _floats(x: ArrayLike) -> NDArray[Any]:
    """float64 as it is, anything else as float32: halves would overflow in a dot product."""
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
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _unit(x: NDArray[Any]) -> NDArray[Any]:
    # In float64, where the squares of no float32 overflow or vanish.
    norms = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))[:, None]
    out = np.empty(x.shape, x.dtype)
    np.divide(x, np.where(norms == 0, 1, norms), out=out, casting="same_kind")
    return out


def _unknown(what: str, value: str, known: tuple[str, ...]) -> UnknownOption:
    return UnknownOption(
        f"unknown {what} {value!r}", limit=f"known: {', '.join(known)}", remedy=f"choose a {what}"
    )
