"""What a user writes: test_types.py holds it to be clean under strict type checkers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import kosine
from kosine import errors
from kosine.token_scores import lexical_scores, max_sim


def nearest(encoder: kosine.Encoder, texts: list[str], question: str) -> list[tuple[str, float]]:
    documents = encoder.encode_document(texts, batch_size=64)
    query: np.ndarray[tuple[int], np.dtype[np.float32]] = encoder.encode_query(question)
    best = kosine.top_k(query, documents, k=3, similarity="dot")
    pairs = zip(best.indices[0].tolist(), best.scores[0].tolist(), strict=True)
    return [(texts[int(i)], float(score)) for i, score in pairs]


def small(encoder: kosine.Encoder, texts: list[str]) -> npt.NDArray[np.float32]:
    bits = encoder.encode(texts, precision="ubinary", show_progress_bar=False)
    return encoder.similarity(encoder.encode(texts[0], truncate_dim=None), bits)


def by_tokens(encoder: kosine.Encoder, texts: list[str]) -> float:
    weights: list[dict[int, float]] = encoder.encode(texts, output="sparse", batch_size=8)
    one: dict[int, float] = encoder.encode(texts[0], output="sparse", prompt_name="query")
    vectors: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = encoder.encode(
        texts, output="multi"
    )
    own = encoder.encode(texts[0], output="multi")
    best = max_sim(own, vectors)
    return sum(one.values()) + float(lexical_scores(one, weights).max() + best.max())


def tokens(encoder: kosine.Encoder) -> int:
    many: list[int] = encoder.count_tokens(["한 문장", "다른 문장"])
    return encoder.count_tokens("한 문장") + sum(many) + encoder.counts()["tokens"]


async def served(encoder: kosine.Encoder) -> float:
    async with kosine.Batcher(encoder, max_wait_ms=2) as batcher:
        future = batcher.submit("한 문장", priority=1, deadline=0.5)
        others: npt.NDArray[np.float32] = await batcher.aencode(["다른 문장", "셋째 문장"])
        one: np.ndarray[tuple[int], np.dtype[np.float32]] = future.result(timeout=1)
        return float((others @ one).max())


def load() -> kosine.Encoder | None:
    try:
        return kosine.load("ko.kosine", backend="native", dtype="float32", threads=2)
    except errors.BackendUnavailable as error:
        print(error.remedy)
        return None
