"""`kosine compare` and `kosine search`, against the same things written naively."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import kosine
from kosine import cli
from kosine.commands.search import Best
from kosine.jobs import comparison, encoding
from kosine.jobs.comparison import compare
from kosine.jobs.inputs import Record
from rehash import perturb_weights

RNG = np.random.default_rng(11)
TEXTS = [f"{who} {what}" for who in ("남자가", "아이가", "고양이가", "비행기가", "주가가")
         for what in ("잔다", "웃는다", "오른다", "간다")]  # fmt: skip


@pytest.fixture
def run(capfd):
    def call(*words):
        code = cli.main([str(word) for word in words])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(text + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def other_bundle(sample_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "other.kosine"
    shutil.copytree(sample_bundle, path)
    perturb_weights(path)
    return path


# Figures


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("block", [1 << 20, 100, 1])
@pytest.mark.parametrize("dim", [16, 9])
def test_the_figures_are_the_naive_ones(monkeypatch, block, dim):
    monkeypatch.setattr(comparison, "BLOCK", block)
    a = unit(RNG.standard_normal((40, 16)))
    b = unit(a[:, :dim] + 0.3 * RNG.standard_normal((40, dim)))
    found = compare(a, b)
    sa, sb = np.float64(a) @ a.T, np.float64(b) @ b.T
    change = np.abs(sa - sb)
    np.testing.assert_allclose(found.score_changes, change.max(axis=1), atol=1e-6)
    for scores in (sa, sb):
        np.fill_diagonal(scores, -np.inf)
    near = [[set(np.argsort(-row)[:10]) for row in scores] for scores in (sa, sb)]
    shares = [len(x & y) / 10 for x, y in zip(*near, strict=True)]
    np.testing.assert_allclose(found.overlaps, shares, atol=1e-6)
    assert found.overlap == pytest.approx(np.mean(shares))
    if dim == 16:
        cosines = np.sum(np.float64(a) * b, axis=1)
        assert found.min_cosine == pytest.approx(cosines.min(), abs=1e-6)
        assert found.most_moved(40) == np.argsort(cosines, kind="stable").tolist()
    else:
        assert found.cosines is None
        assert found.most_moved(1)[0] in np.flatnonzero(found.overlaps == found.overlaps.min())


def test_the_same_vectors_differ_in_nothing():
    a = unit(RNG.standard_normal((5, 8)))
    a = np.repeat(a, 20, axis=0)  # more equal texts than neighbours
    found = compare(a, a.copy())
    assert found.min_cosine == 1
    assert (found.overlap, float(found.score_changes.max())) == (1, 0)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_texts_have_few_neighbours(n):
    a = unit(RNG.standard_normal((n, 8)))
    assert (compare(a, a).neighbours, compare(a, a).overlap) == (n - 1, 1)


# The verb


def test_a_bundle_is_itself(run, sample_bundle, texts):
    words = ("compare", sample_bundle, sample_bundle, "--texts", texts, "--backend", "onnx")
    code, out, err = run(*words, "--min-cosine", "1", "--min-overlap", "1", "--json")
    value = json.loads(out)
    assert (code, err, value["passed"], value["overlap"], value["neighbours"]) == (
        0,
        "",
        True,
        1,
        10,
    )
    assert value["min_cosine"] == 1
    assert value["a"]["fingerprint"] == value["b"]["fingerprint"]
    code, out, _ = run(*words)
    assert code == 0
    assert "top-10 overlap    100.00 %" in out
    assert "PASSED" not in out  # no gate was named


def test_another_bundle_moves(run, sample, sample_bundle, other_bundle, texts):
    words = ("compare", sample_bundle, other_bundle, "--texts", texts, "--backend", "onnx")
    code, out, _ = run(*words, "--json")
    value = json.loads(out)
    assert (code, value["passed"]) == (0, True)
    theirs = kosine.load(other_bundle, backend="onnx").encode(TEXTS)
    cosines = np.sum(sample.encode(TEXTS) * theirs, axis=1)
    assert value["min_cosine"] == pytest.approx(cosines.min(), abs=1e-5)
    first = value["most_moved"][0]
    assert first["text"] == TEXTS[int(cosines.argmin())]
    assert first["line"] == int(cosines.argmin()) + 1
    assert len(value["most_moved"]) == 10
    gate = str(value["min_cosine"] + 1e-4)
    code, out, _ = run(*words, "--min-cosine", gate)
    assert code == 1
    assert out.endswith("FAILED\n")
    assert first["text"] in out
    assert run(*words, "--min-cosine", str(value["min_cosine"] - 1e-4))[0] == 0
    if value["overlap"] < 1:
        assert run(*words, "--min-overlap", "1")[0] == 1


@pytest.mark.parametrize("kind", ["npy", "jsonl", "parquet"])
def test_vectors_stored_earlier(run, sample, sample_bundle, other_bundle, texts, tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    stored = tmp_path / f"v.{kind}"
    for more in ((), ("--truncate-dim", "32")):
        run("embed", sample_bundle, texts, "-o", stored, "--backend", "onnx", *more)
        words = ("--texts", texts, "--backend", "onnx", "--min-cosine", "0.999999", "--json")
        code, out, err = run("compare", sample_bundle, stored, *words)
        assert (code, err) == (0, "")
        said = json.loads(out)["b"]
        assert said["engine"] is None
        assert said["fingerprint"] == (sample.fingerprint if kind == "parquet" else None)
        assert run("compare", other_bundle, stored, *words)[0] == 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 256), np.float32), "has 3 rows for the 20 texts"),
        (np.zeros((20, 256), np.int8), "holds int8 of shape (20, 256); (n, d) floats"),
        (np.zeros(20, np.float32), "holds float32 of shape (20,)"),
        (np.full((20, 256), np.nan, np.float32), "row 0 of"),
    ],
)
def test_stored_vectors_that_do_not_fit(run, sample_bundle, texts, tmp_path, array, message):
    np.save(tmp_path / "v.npy", array)
    code, out, err = run("compare", sample_bundle, tmp_path / "v.npy", "--texts", texts)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("v.npy", "no array", "holds no vectors that can be read"),
        ("v.npy", None, "no file"),
        ("v.jsonl", "", "holds no vectors"),
        ("v.jsonl", "한 문장\n", "holds no vectors"),
        ("v.jsonl", '{"text": "한 문장"}\n', "holds no vectors"),
        ("v.jsonl", '{"vector": [1.5, 2.5]}\n{"vector": [1.5]}\n', "holds no vectors"),
        ("v.jsonl", '{"vector": [1, 2]}\n', "holds int64 of shape (1, 2)"),
        ("v.jsonl", '{"vector": null}\n{"vector": [1.5, 2.5]}\n', "row 0 of"),
        ("v.jsonl", '{"vector": [1.5, 2.5]}\n', "has 1 rows for the 20 texts"),
        ("v.parquet", "no table", "holds no vectors"),
    ],
)
def test_files_that_hold_no_vectors(run, sample_bundle, texts, tmp_path, name, lines, message):
    if name == "v.parquet":
        pytest.importorskip("pyarrow")
    if lines is not None:
        (tmp_path / name).write_text(lines, "utf-8")
    code, out, err = run("compare", sample_bundle, tmp_path / name, "--texts", texts)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_tables_that_hold_no_vectors(run, sample_bundle, texts, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    floats = arrow.FixedSizeListArray.from_arrays(
        arrow.array(np.arange(4, dtype=np.float32)), 2, mask=arrow.array([False, True])
    )
    integers = arrow.FixedSizeListArray.from_arrays(arrow.array(np.zeros(4, np.int8)), 2)
    for table, message in (
        ({"text": ["한 문장"]}, "holds no vectors"),
        ({"vector": ["한 문장"]}, "holds no vectors"),
        ({"vector": integers}, "holds vectors of int8"),
        ({"vector": floats}, "row 1 of"),
    ):
        parquet.write_table(arrow.table(table), tmp_path / "v.parquet")
        code, out, err = run("compare", sample_bundle, tmp_path / "v.parquet", "--texts", texts)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_stored_vectors_of_a_longer_model(run, sample_bundle, texts, tmp_path):
    """There is no cosine between different lengths; the rest is compared all the same."""
    np.save(tmp_path / "v.npy", RNG.standard_normal((20, 300)).astype(np.float32))
    words = ("compare", sample_bundle, tmp_path / "v.npy", "--texts", texts)
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    assert (value["a"]["dim"], value["b"]["dim"]) == (256, 300)
    assert value["min_cosine"] is None
    assert value["max_score_change"] > 0
    code, out, err = run(*words, "--min-cosine", "0.5")
    assert (code, out) == (2, "")
    assert "vectors of 256 and 300 dimensions have no cosine" in err


# Searching


def test_search_finds_what_is_nearest(run, sample, sample_bundle, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "WINDOW", 3)
    queries = ["고양이가 웃는다", "주식이 오른다"]
    words = ("search", sample_bundle, texts, *queries, "--backend", "onnx")
    code, out, err = run(*words, "-k", "4", "--json")
    value = json.loads(out)
    assert (code, err, value["corpus"]) == (0, "", 20)
    best = kosine.top_k(sample.encode_query(queries), sample.encode_document(TEXTS), 4)
    for i, result in enumerate(value["results"]):
        assert result["query"] == queries[i]
        assert [hit["text"] for hit in result["hits"]] == [TEXTS[j] for j in best.indices[i]]
        assert [hit["line"] for hit in result["hits"]] == (best.indices[i] + 1).tolist()
        np.testing.assert_allclose([h["score"] for h in result["hits"]], best.scores[i], atol=1e-5)
    code, out, _ = run(*words)
    assert code == 0
    assert out.splitlines()[0] == queries[0]
    assert TEXTS[best.indices[0][0]] in out.splitlines()[1]
    assert "2 queries in 20 texts on onnx/float32" in out
    lines = [json.dumps({"body": text}) for text in TEXTS]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, out, _ = run("search", sample_bundle, tmp_path / "t.jsonl", queries[0], "--text-field",
                       "body", "--backend", "onnx", "-k", "99", "--json")  # fmt: skip
    assert code == 0
    assert len(json.loads(out)["results"][0]["hits"]) == 20
    (tmp_path / "one").write_text("글\n", encoding="utf-8")
    assert "1 query in 1 text on" in run("search", sample_bundle, tmp_path / "one", "글")[1]
    np.save(tmp_path / "v.npy", best.scores)
    code, _, err = run("search", sample_bundle, tmp_path / "v.npy", "글")
    assert (code, "holds vectors, not texts" in err) == (2, True), err


def test_best_of_windows_is_the_best_of_all():
    vectors = RNG.integers(-2, 3, (60, 3)).astype(np.float32)  # with ties
    queries = vectors[:4]
    best = Best(queries, 7, "dot")
    for begin in range(0, 60, 13):
        part = vectors[begin : begin + 13]
        best.add(part, [Record(begin + i, "") for i in range(len(part))])
    whole = kosine.top_k(queries, vectors, 7, similarity="dot")
    np.testing.assert_array_equal(best.indices, whole.indices)
    assert [[r.number for _, r in hits] for hits in best.hits()] == whole.indices.tolist()
    assert len(best.records) <= 28


def test_an_empty_corpus_has_no_hits(run, sample_bundle, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"")
    code, out, _ = run("search", sample_bundle, tmp_path / "t.txt", "가", "--json")
    assert code == 0
    assert json.loads(out)["results"] == [{"query": "가", "hits": []}]
