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

from kosine.scoring.matrix import SIMILARITIES, Similarity, cosine, pairwise, score_matrix
from kosine.scoring.search import TopK, best_of, top_k
from kosine.scoring.vectors import as_rows, check_count

__all__ = [
    "SIMILARITIES",
    "Similarity",
    "TopK",
    "as_rows",
    "best_of",
    "check_count",
    "cosine",
    "pairwise",
    "score_matrix",
    "top_k",
]
