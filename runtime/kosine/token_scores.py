"""Scores of texts by their tokens: of weights that tokens share, and of vectors that find theirs.

They take what `Encoder.encode` gives with `output="sparse"` and `output="multi"`, and are those of
FlagEmbedding for BGE-M3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.errors import InputError
from kosine.packed import Float32, Matrix, TokenWeights

__all__ = ["lexical_scores", "max_sim"]


def lexical_scores(
    queries: TokenWeights | Sequence[TokenWeights], documents: TokenWeights | Sequence[TokenWeights]
) -> Float32:
    """(n, m) float32: the sum of products of weights over the token ids that both texts have.

    Args:
        queries, documents: As `encode(..., output="sparse")` gives them; one text's counts as a
            list of it.
    """
    lefts, rights = (
        [side] if isinstance(side, dict) else list(side) for side in (queries, documents)
    )
    holders: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for column, weights in enumerate(rights):
        for token, weight in weights.items():
            holders[token].append((column, weight))
    scores = np.zeros((len(lefts), len(rights)))
    for row, weights in enumerate(lefts):
        for token, weight in weights.items():
            for column, other in holders.get(token, ()):
                scores[row, column] += weight * other
    return scores.astype(np.float32)


def max_sim(queries: Matrix | Sequence[Matrix], documents: Matrix | Sequence[Matrix]) -> Float32:
    """(n, m) float32: late interaction. Each token of a query takes its best dot product with a
    token of the document, and the score is their mean.

    Args:
        queries, documents: As `encode(..., output="multi")` gives them, (tokens, d) each; one
            text's counts as a list of it.

    Raises:
        InputError: Vectors of different lengths, or a text without tokens.
    """
    lefts, rights = _texts(queries), _texts(documents)
    widths = {each.shape[1] for each in (*lefts, *rights)}
    if len(widths) > 1:
        raise InputError(
            f"vectors of {' and '.join(map(str, sorted(widths)))} columns",
            limit="the same on both sides",
            remedy="encode both sides with the same bundle",
        )
    scores: Float32 = np.empty((len(lefts), len(rights)), np.float32)
    if not lefts:
        return scores
    lengths = np.array([len(each) for each in lefts])
    rows, begins = np.concatenate(lefts), np.cumsum(lengths) - lengths
    for column, document in enumerate(rights):
        best = (rows @ document.T).max(axis=1)
        scores[:, column] = np.add.reduceat(best, begins) / lengths
    return scores


def _texts(side: Any) -> list[NDArray[np.float32]]:
    alone = isinstance(side, np.ndarray) and side.ndim == 2
    texts = [np.asarray(each, np.float32) for each in ([side] if alone else side)]
    for each in texts:
        if each.ndim != 2 or not len(each):
            raise InputError(
                f"vectors of shape {each.shape}",
                limit="(tokens, d) for each text, of at least one token",
                remedy="pass what encode gives with output='multi'",
            )
    return texts
