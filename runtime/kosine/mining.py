"""Search, paraphrases and communities by sentence-transformers' names, shapes and results.

They hold blocks of scores, never a whole matrix: the chunk sizes that sentence-transformers has
are taken and not needed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kosine import scoring
from kosine.errors import InputError
from kosine.packed import Float32
from kosine.progress import progress_bar

__all__ = ["community_detection", "paraphrase_mining", "semantic_search"]

ScoreFunction = scoring.Similarity | Callable[[Any, Any], ArrayLike]
BLOCK = 1 << 21  # scores of a caller's own function, or of communities, held at once
PAIR_QUERIES = 1 << 11


def semantic_search(
    query_embeddings: ArrayLike,
    corpus_embeddings: ArrayLike,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500_000,
    top_k: int = 10,
    score_function: ScoreFunction = "cosine",
) -> list[list[dict[str, int | float]]]:
    """The best corpus rows for each query, best first: `[[{"corpus_id": 3, "score": 0.9}, ...]]`.

    Args:
        query_embeddings, corpus_embeddings: (q, d) or (d,), and (n, d) floats; the corpus may be
            a `np.memmap`.
        query_chunk_size, corpus_chunk_size: Taken for sentence-transformers' sake, and not used.
        top_k: At most so many; ties go to the lower corpus_id.
        score_function: "cosine", "dot", "euclidean" or "manhattan" (distances negated), or a
            function of (a, d) and (b, d) arrays that gives (a, b) scores.

    Raises:
        InputError, UnknownOption: As `top_k`.
    """
    del query_chunk_size, corpus_chunk_size
    best = _best(query_embeddings, corpus_embeddings, top_k, score_function)
    return [
        [{"corpus_id": i, "score": score} for i, score in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.scores.tolist(), strict=True)
    ]


def paraphrase_mining(
    model: Any,
    sentences: list[str],
    show_progress_bar: bool = False,
    batch_size: int | None = None,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: ScoreFunction = "cosine",
    truncate_dim: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> list[list[float | int]]:
    """The most similar pairs of sentences, `[[score, i, j], ...]` with i < j, best first.

    Args:
        model: A `kosine.Encoder`, or anything that encodes as one.
        sentences: The texts.
        show_progress_bar, batch_size, truncate_dim, prompt_name, prompt: For `model.encode`.
        query_chunk_size, corpus_chunk_size: Taken for sentence-transformers' sake, and not used.
        max_pairs: At most so many.
        top_k: A pair is found where one is among the other's so many best.
        score_function: Symmetric; as for `semantic_search`.

    Raises:
        InputError, UnknownOption, TextError: As `top_k` and `encode`.
    """
    del query_chunk_size, corpus_chunk_size
    scoring.check_count("max_pairs", max_pairs)
    scoring.check_count("top_k", top_k)
    vectors = np.asarray(
        model.encode(
            sentences,
            show_progress_bar=show_progress_bar,
            batch_size=batch_size,
            truncate_dim=truncate_dim,
            prompt_name=prompt_name,
            prompt=prompt,
        )
    )
    pairs: list[tuple[float, int, int]] = []  # a heap, the worst first
    held: set[tuple[int, int]] = set()
    for score, i, j in _neighbours(vectors, top_k, score_function):
        pair = (i, j) if i < j else (j, i)
        if pair in held or (len(pairs) == max_pairs and score <= pairs[0][0]):
            continue
        held.add(pair)
        if len(pairs) < max_pairs:
            heapq.heappush(pairs, (score, *pair))
        else:
            held.discard(heapq.heappushpop(pairs, (score, *pair))[1:])
    return [[score, i, j] for score, i, j in sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))]


def community_detection(
    embeddings: ArrayLike,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """Groups of rows whose cosine with a centre is at least `threshold`, the largest group first.

    Each group begins with its centre, the others follow by falling cosine. Groups do not overlap:
    a row that a larger group has taken is in no other.

    Args:
        embeddings: (n, d) floats.
        threshold: The least cosine.
        min_community_size: The least rows of a group, its centre among them.
        batch_size: Most rows that are compared with all others at once.
        show_progress_bar: Whether to show one.

    Raises:
        InputError: No array of numbers, or a size below 1.
    """
    scoring.check_count("min_community_size", min_community_size)
    scoring.check_count("batch_size", batch_size)
    vectors = scoring.as_rows(embeddings)
    n = len(vectors)
    if n < min_community_size or not vectors.size:
        return []
    step = max(1, min(batch_size, BLOCK // n))
    groups: list[tuple[int, NDArray[np.int64]]] = []
    with progress_bar(n, show_progress_bar, 0) as bar:
        for begin in range(0, n, step):
            scores = scoring.cosine(vectors[begin : begin + step], vectors, precision="float32")
            near = scores >= np.float32(threshold)
            for i in np.flatnonzero(near.sum(axis=1) >= min_community_size).tolist():
                members = np.flatnonzero(near[i])
                order = np.argsort(-scores[i, members], kind="stable")
                groups.append((begin + i, members[order]))
            if bar is not None:
                bar.update(len(scores))
    groups.sort(key=lambda group: len(group[1]), reverse=True)
    taken = np.zeros(n, bool)
    found: list[list[int]] = []
    for centre, members in groups:
        free = members[~taken[members]]
        if taken[centre] or len(free) < min_community_size:
            continue
        found.append([centre, *free[free != centre].tolist()])
        taken[found[-1]] = True
    return sorted(found, key=len, reverse=True)


def _neighbours(
    vectors: NDArray[Any], k: int, score_function: ScoreFunction
) -> Iterator[tuple[float, int, int]]:
    """(score, i, j) of the k best others j of each row i."""
    for begin in range(0, len(vectors), PAIR_QUERIES):
        best = _best(vectors[begin : begin + PAIR_QUERIES], vectors, k + 1, score_function)
        rows = zip(best.indices.tolist(), best.scores.tolist(), strict=True)
        for i, (ids, scores) in enumerate(rows, begin):
            others = [(score, i, j) for j, score in zip(ids, scores, strict=True) if j != i]
            yield from others[:k]


def _best(queries: ArrayLike, corpus: ArrayLike, k: int, score_function: ScoreFunction) -> Any:
    left, right = scoring.as_rows(queries), scoring.as_rows(corpus)
    if not callable(score_function):
        return scoring.top_k(left, right, k, similarity=score_function, precision="float32")
    scoring.check_count("k", k)
    return scoring.best_of(_blocks(left, right, score_function), len(left), min(k, len(right)))


def _blocks(
    left: NDArray[Any], right: NDArray[Any], score_function: Callable[[Any, Any], ArrayLike]
) -> Iterator[Float32]:
    """(q, b) scores, block after block of the corpus."""
    step = max(1, BLOCK // max(1, len(left)))
    for begin in range(0, len(right), step):
        scores = np.asarray(score_function(left, right[begin : begin + step]), np.float32)
        expected = (len(left), min(step, len(right) - begin))
        if scores.shape != expected:
            raise InputError(
                f"score_function gave an array of shape {scores.shape}",
                limit=f"{expected}",
                remedy="return a score for every pair of rows",
            )
        yield scores
