"""sentence-transformers' evaluators on data of one's own."""

from __future__ import annotations

import numpy as np

TEXTS = [
    "한 남자가 기타를 치고 있다.",
    "남자가 악기를 연주하고 있다.",
    "비행기가 이륙하고 있다.",
    "비행기가 하늘로 날아오른다.",
    "한 여자가 양파를 썰고 있다.",
    "주가가 사흘 연속 하락했다.",
    "강아지에게 하루에 몇 번 밥을 줘야 하나요?",
    "고양이가 자고 있다.",
]
OTHERS = [*TEXTS[1:], TEXTS[0]]


def gold(n):
    return np.random.default_rng(3).uniform(size=n).tolist()


def evaluators(module, teacher):
    """The ten that work on any model that encodes, on data of one's own."""
    e = module
    queries = {f"q{i}": text for i, text in enumerate(TEXTS)}
    corpus = {f"d{i}": text for i, text in enumerate([*OTHERS, *(t + " 그리고" for t in TEXTS)])}
    relevant = {f"q{i}": {f"d{i}", f"d{i + len(TEXTS)}"} for i in range(len(TEXTS))}
    all_of_them = ["cosine", "dot", "euclidean", "manhattan"]
    samples = [
        {"query": TEXTS[i], "positive": [OTHERS[i]], "negative": [OTHERS[i - 2], OTHERS[i - 3]]}
        for i in range(len(TEXTS))
    ]
    pairs = {str(i): text for i, text in enumerate([*TEXTS, *(t + "!" for t in TEXTS)])}
    frame = [{"ko": a, "en": b} for a, b in zip(TEXTS, OTHERS, strict=True)]
    return {
        "similarity": lambda: e.EmbeddingSimilarityEvaluator(
            TEXTS, OTHERS, gold(len(TEXTS)), similarity_fn_names=all_of_them
        ),
        "similarity by the model's own": lambda: e.EmbeddingSimilarityEvaluator(
            TEXTS, OTHERS, gold(len(TEXTS)), truncate_dim=64
        ),
        "similarity of bits": lambda: e.EmbeddingSimilarityEvaluator(
            TEXTS, OTHERS, gold(len(TEXTS)), precision="ubinary"
        ),
        "binary classification": lambda: e.BinaryClassificationEvaluator(
            TEXTS, OTHERS, [1, 0] * (len(TEXTS) // 2), similarity_fn_names=all_of_them
        ),
        "information retrieval": lambda: e.InformationRetrievalEvaluator(
            queries, corpus, relevant, mrr_at_k=[3], ndcg_at_k=[3], accuracy_at_k=[1, 3],
            precision_recall_at_k=[1, 3], map_at_k=[10],
        ),
        "mse": lambda: e.MSEEvaluator(TEXTS, OTHERS, teacher_model=teacher),
        "mse of a frame": lambda: e.MSEEvaluatorFromDataFrame(frame, teacher, [("ko", "en")]),
        "paraphrase mining": lambda: e.ParaphraseMiningEvaluator(
            pairs, [(str(i), str(i + len(TEXTS))) for i in range(len(TEXTS))]
        ),
        "reranking": lambda: e.RerankingEvaluator(samples),
        "reranking one by one": lambda: e.RerankingEvaluator(
            samples, use_batched_encoding=False
        ),
        "translation": lambda: e.TranslationEvaluator(TEXTS, OTHERS),
        "triplet": lambda: e.TripletEvaluator(
            TEXTS, OTHERS, TEXTS[::-1], similarity_fn_names=all_of_them
        ),
        "one after another": lambda: e.SequentialEvaluator(
            [e.TranslationEvaluator(TEXTS, OTHERS), e.TripletEvaluator(TEXTS, OTHERS, TEXTS[::-1])]
        ),
    }  # fmt: skip
