"""Scores of every row against every row, and of row against row."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from kosine.errors import InputError
from kosine.packed import Float32
from kosine.quantization import Precision, Ranges
from kosine.scoring.vectors import read_sides, unit, unknown_option

__all__ = ["SIMILARITIES", "Similarity", "cosine", "pairwise", "score_matrix"]

Similarity: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


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
    sides = read_sides(a, b, precision, ranges, dim)
    left, right = (side.floats() for side in sides)
    if similarity == "cosine":
        scores = left @ right.T / left.shape[1] if sides.bits else unit(left) @ unit(right).T
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
        raise unknown_option("similarity", similarity, SIMILARITIES)
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
    sides = read_sides(a, b, precision, ranges, dim)
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
        scores = np.sum(unit(left) * unit(right), axis=1)
    elif similarity == "dot":
        scores = np.sum(left * right, axis=1)
    elif similarity == "euclidean":
        scores = -np.sqrt(np.sum(np.square(left - right), axis=1))
    elif similarity == "manhattan":
        scores = -np.sum(np.abs(left - right), axis=1)
    else:
        raise unknown_option("similarity", similarity, SIMILARITIES)
    return np.asarray(scores, np.float32)
