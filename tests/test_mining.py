"""Search, paraphrases and communities, against sentence-transformers' own."""

from __future__ import annotations

import inspect
import tracemalloc

import numpy as np
import pytest

import kosine
from kosine import mining
from kosine.errors import InputError, UnknownOption

RNG = np.random.default_rng(5)
CENTRES = RNG.standard_normal((12, 32))
SIZES, SPREADS = [40, 3, 25, 12, 9, 30, 2, 18, 1, 22, 11, 6], np.linspace(0.1, 0.9, 12)
CLUSTERS = np.concatenate(
    [
        centre + spread * RNG.standard_normal((size, 32))
        for centre, size, spread in zip(CENTRES, SIZES, SPREADS, strict=True)
    ]
).astype(np.float32)
CLUSTERS = CLUSTERS[RNG.permutation(len(CLUSTERS))]
NAMES = ("semantic_search", "paraphrase_mining", "community_detection")


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("torch")
    return pytest.importorskip("sentence_transformers.util")


class Model:
    """Gives the vectors of texts that are numbers."""

    def __init__(self, vectors, tensor=False):
        self.vectors, self.tensor = vectors, tensor

    def encode(self, sentences, **_options):
        found = self.vectors[[int(text) for text in sentences]]
        if self.tensor:
            import torch

            return torch.from_numpy(found)
        return found


@pytest.fixture(params=[1 << 21, 700])
def blocks(request, monkeypatch):
    monkeypatch.setattr(mining, "BLOCK", request.param)
    monkeypatch.setattr(kosine.scoring.search, "BLOCK", request.param)
    if request.param < 1000:
        monkeypatch.setattr(mining, "PAIR_QUERIES", 7)
        monkeypatch.setattr(kosine.scoring.search, "MOST_QUERIES", 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_arguments_are_theirs(theirs, name):
    ours = inspect.signature(getattr(kosine, name)).parameters
    assert list(ours) == list(inspect.signature(getattr(theirs, name)).parameters)
    for key, parameter in inspect.signature(getattr(theirs, name)).parameters.items():
        if key not in ("score_function", "batch_size"):
            assert ours[key].default == parameter.default, key


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("k", [1, 10, 500])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "manhattan", "theirs", "function"])
def test_semantic_search(theirs, similarity, k):
    import torch

    functions = {"cosine": theirs.cos_sim, "dot": theirs.dot_score, "theirs": theirs.dot_score,
                 "manhattan": theirs.manhattan_sim, "function": theirs.dot_score}  # fmt: skip
    given = {"theirs": theirs.dot_score, "function": lambda a, b: a @ b.T}
    # Not the rows themselves: theirs leaves 2e-3 of distance between equal vectors.
    queries = (CLUSTERS[:9] + 0.05 * RNG.standard_normal((9, 32))).astype(np.float32)
    expected = theirs.semantic_search(
        torch.from_numpy(queries), torch.from_numpy(CLUSTERS), top_k=k,
        score_function=functions[similarity],
    )  # fmt: skip
    found = kosine.semantic_search(
        queries, CLUSTERS, top_k=k, score_function=given.get(similarity, similarity)
    )
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, their_row in zip(found, expected, strict=True):
        assert [set(hit) for hit in row] == [{"corpus_id", "score"}] * len(row)
        np.testing.assert_allclose(
            [hit["score"] for hit in row], [hit["score"] for hit in their_row], atol=1e-5, rtol=1e-5
        )
        same = [a["corpus_id"] == b["corpus_id"] for a, b in zip(row, their_row, strict=True)]
        assert np.mean(same) > 0.98  # rounding may swap neighbours
    assert isinstance(found[0][0]["corpus_id"], int)
    assert isinstance(found[0][0]["score"], float)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("max_pairs", "k"), [(500_000, 100), (500_000, 3), (40, 100), (1, 1)])
def test_paraphrase_mining(theirs, max_pairs, k):
    sentences = [str(i) for i in range(len(CLUSTERS))]
    expected = theirs.paraphrase_mining(
        Model(CLUSTERS, tensor=True), sentences, max_pairs=max_pairs, top_k=k
    )
    found = kosine.paraphrase_mining(Model(CLUSTERS), sentences, max_pairs=max_pairs, top_k=k)
    assert len(found) == len(expected)
    assert all(i < j for _, i, j in found)
    np.testing.assert_allclose([p[0] for p in found], [p[0] for p in expected], atol=1e-5)
    mine, yours = ({(i, j) for _, i, j in pairs} for pairs in (found, expected))
    assert len(mine & yours) >= 0.99 * len(mine)


def test_paraphrases_of_an_encoder(sample):
    texts = ["고양이가 잔다", "비가 온다", "고양이가 자고 있다", "주가가 올랐다", "고양이가 잔다"]
    found = kosine.paraphrase_mining(sample, texts)
    scores = kosine.cosine(sample.encode(texts), sample.encode(texts))
    assert len(found) == 10
    assert found[0][1:] == [0, 4]
    assert [pair[0] for pair in found] == sorted((pair[0] for pair in found), reverse=True)
    for score, i, j in found:
        assert score == pytest.approx(scores[i, j], abs=1e-5)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("size", [1, 2, 10, 30, 1000])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.97])
def test_community_detection(theirs, threshold, size):
    import torch

    options = {"threshold": threshold, "min_community_size": size}
    expected = theirs.community_detection(torch.from_numpy(CLUSTERS), **options)
    found = kosine.community_detection(CLUSTERS, **options)
    assert [len(group) for group in found] == [len(group) for group in expected]
    assert [group[0] for group in found] == [group[0] for group in expected]
    assert [set(group) for group in found] == [set(group) for group in expected]
    assert all(isinstance(i, int) for group in found for i in group)


def test_little_and_nothing(theirs):
    assert kosine.community_detection([]) == theirs.community_detection([]) == []
    assert kosine.community_detection(np.eye(3, dtype=np.float32)) == []
    assert kosine.semantic_search(np.empty((0, 4)), np.eye(4)) == []
    assert kosine.semantic_search(np.eye(4)[0], np.empty((0, 4))) == [[]]
    assert kosine.paraphrase_mining(Model(CLUSTERS), ["1"]) == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kosine.semantic_search(CLUSTERS, CLUSTERS[:, :3]), InputError, "shapes"),
        (lambda: kosine.semantic_search(CLUSTERS, CLUSTERS[None]), InputError, "shape"),
        (lambda: kosine.semantic_search(["a"], CLUSTERS), InputError, "array of numbers"),
        (lambda: kosine.semantic_search(CLUSTERS, CLUSTERS, top_k=0), InputError, "k is 0"),
        (
            lambda: kosine.semantic_search(CLUSTERS, CLUSTERS, score_function="jaccard"),
            UnknownOption,
            "unknown similarity 'jaccard'",
        ),
        (
            lambda: kosine.semantic_search(CLUSTERS, CLUSTERS, score_function=lambda a, _: a),
            InputError,
            "score_function gave an array of shape",
        ),
        (lambda: kosine.paraphrase_mining(Model(CLUSTERS), ["1"], top_k=0), InputError, "top_k"),
        (lambda: kosine.community_detection(CLUSTERS, batch_size=0), InputError, "batch_size is 0"),
    ],
)
def test_what_cannot_be(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_memory_stays_small(tmp_path):
    """A whole matrix of scores would take 1.6 GB."""
    rows = 20_000
    corpus = np.lib.format.open_memmap(tmp_path / "c.npy", "w+", np.float32, (rows, 16))
    corpus[:] = RNG.standard_normal((rows, 16))
    for call in (
        lambda: kosine.semantic_search(corpus[:3000], corpus, top_k=3),
        lambda: kosine.community_detection(corpus, threshold=0.999, min_community_size=3),
        lambda: kosine.paraphrase_mining(
            Model(corpus), [str(i) for i in range(rows)], top_k=2, max_pairs=1000
        ),
    ):
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 80 << 20, f"{peak >> 20} MiB"
