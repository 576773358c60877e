"""Two sets of vectors of the same texts, held against one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kosine.packed import Float32
from kosine.scoring import cosine, pairwise, top_k

__all__ = ["NEIGHBOURS", "Comparison", "compare"]

NEIGHBOURS = 10
BLOCK = 1 << 20  # scores that are held at once


@dataclass(frozen=True, slots=True)
class Comparison:
    """What has changed between two sets of n vectors.

    Attributes:
        cosines: (n,) of each text with itself; None between vectors of different lengths.
        score_changes: (n,) largest change of a text's cosine with any other text.
        overlaps: (n,) share of its nearest neighbours that a text keeps; the text itself counts
            for none.
        neighbours: How many those are: 10, or all others where there are fewer.
    """

    cosines: Float32 | None
    score_changes: Float32
    overlaps: Float32
    neighbours: int

    @property
    def min_cosine(self) -> float | None:
        return None if self.cosines is None else float(self.cosines.min())

    @property
    def overlap(self) -> float:
        return float(self.overlaps.mean())

    def most_moved(self, count: int) -> list[int]:
        """Texts by the lowest cosine, or where there is none by the lowest overlap."""
        first = self.overlaps if self.cosines is None else self.cosines
        order = np.lexsort((-self.score_changes, first))
        return [int(i) for i in order[:count]]


def compare(a: NDArray[np.float32], b: NDArray[np.float32]) -> Comparison:
    """Compare (n, d) with (n, e), finite, n at least 1; what it holds grows with n, not n²."""
    n = len(a)
    k = min(NEIGHBOURS, n - 1)
    changes, overlaps = np.zeros(n, np.float32), np.ones(n, np.float32)
    step = max(1, BLOCK // n)
    for begin in range(0, n, step):
        rows = np.arange(begin, min(begin + step, n))
        change = np.abs(cosine(a[rows], a) - cosine(b[rows], b))
        change[rows - begin, rows] = 0  # with itself
        changes[rows] = change.max(axis=1)
        if k:
            ours, theirs = (_neighbours(side, rows, k) for side in (a, b))
            kept = (ours[:, :, None] == theirs[:, None, :]).sum(axis=(1, 2))
            overlaps[rows] = kept / k
    if a.shape[1] != b.shape[1]:
        return Comparison(None, changes, overlaps, k)
    own = pairwise(a, b)
    own[(a == b).all(axis=1)] = 1  # rounding would have it miss a gate of 1
    return Comparison(own, changes, overlaps, k)


def _neighbours(vectors: NDArray[np.float32], rows: NDArray[np.intp], k: int) -> NDArray[np.int64]:
    """(r, k) the nearest others of each row."""
    found: NDArray[np.int64] = top_k(vectors[rows], vectors, k + 1).indices
    itself = found == rows[:, None]
    itself[~itself.any(axis=1), -1] = True  # as many equal texts stand before it: the last goes
    return np.reshape(found[~itself], (len(rows), k))
