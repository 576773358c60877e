"""Parity against PyTorch, and that it can fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import kosine
from conftest import SAMPLE
from kosine.errors import ParityError
from kosine_export.export import export
from kosine_export.graph.packed import QUERY_BLOCK
from kosine_export.parity.parity import measure
from kosine_export.parity.referee import Referee
from kosine_export.texts import calibration_texts, canary_texts, long_texts, parity_texts
from kosine_export.verify import against
from rehash import perturb_weights


def test_the_texts_are_what_they_claim() -> None:
    texts = canary_texts()
    assert len(texts) == len(set(texts)) == 64
    assert "" in texts
    assert any(text.isspace() for text in texts)
    assert any("\u1112\u1161" in text for text in texts)  # NFD
    assert any("🙂" in text for text in texts)
    assert any("[SEP]" in text for text in texts)
    assert any(len(text) > 100 and " " not in text for text in texts)
    assert len(set(long_texts(range(40, 50)))) == 10
    calibration = calibration_texts()
    assert calibration[:64] == texts
    assert len(calibration) == len(set(calibration)) == 124
    assert sum(text.isascii() for text in calibration[64:]) >= 24


def test_parity_texts_reach_every_length(sample: kosine.Encoder) -> None:
    lengths = sample.count_tokens(parity_texts(128))
    assert min(lengths) == 2
    assert max(lengths) > 128
    assert len(set(lengths)) >= 20


def test_the_sample_passes_against_pytorch(sample: kosine.Encoder) -> None:
    parity = against(sample, SAMPLE)
    print(parity.table())
    assert parity.passed
    assert {group.name for group in parity.groups} == {"alone", "mixed"}


def test_other_token_ids_fail_even_where_vectors_agree(sample: kosine.Encoder) -> None:
    class Mistaken(Referee):
        def ids(self, texts, prompt=""):
            return [[*ids[:-1], 7, ids[-1]] for ids in super().ids(texts, prompt)]

    parity = measure(sample, Mistaken(SAMPLE), ["한 문장", "다른 문장"])
    assert parity.groups[0].found.min_cosine >= 0.999999
    assert not parity.passed


def test_perturbed_and_rehashed_weights_fail(
    sample_bundle: Path, tmp_path: Path, kosine_command
) -> None:
    path = tmp_path / "perturbed.kosine"
    shutil.copytree(sample_bundle, path)
    perturb_weights(path)
    alone = kosine_command("verify", path, "--json")
    assert alone.returncode == 1
    assert json.loads(alone.stdout)["passed"] is False
    compared = kosine_command("verify", path, "--against", SAMPLE)
    assert compared.returncode == 1
    assert "FAILED" in compared.stdout
    with pytest.raises(ParityError):
        kosine.load(path)


def test_another_checkpoint_fails(sample: kosine.Encoder, tmp_path: Path) -> None:
    import factories

    other = factories.build(tmp_path / "other", family="bert")
    with pytest.raises(ParityError, match="dimensions"):
        against(sample, other)


def long_encoder(tmp_path: Path) -> tuple[kosine.Encoder, Path]:
    """A narrow encoder of 2,600 tokens: over a batch's budget, and blocks of queries."""
    import factories

    checkpoint = factories.build(
        tmp_path / "long",
        family="bert",
        max_length=2600,
        prompts={"query": "질문: "},
        sizes={"max_position_embeddings": 2600, "num_hidden_layers": 2},
    )
    done = export(checkpoint, tmp_path / "long.kosine")
    assert done.parity["float32"].passed
    return kosine.load(done.path, backend="onnx"), checkpoint


def test_long_texts_are_compared_once_with_scaled_dot_products(tmp_path: Path) -> None:
    encoder, checkpoint = long_encoder(tmp_path)
    texts = parity_texts(encoder.max_tokens)
    lengths = np.array(encoder.count_tokens(texts))
    assert (lengths > encoder.max_tokens).sum() == 1
    assert ((lengths > QUERY_BLOCK) & (lengths < encoder.max_tokens)).any()
    referee = Referee(checkpoint)
    chosen: list[str] = []
    choose = referee._transformer.set_attn_implementation
    referee._transformer.set_attn_implementation = lambda name: (chosen.append(name), choose(name))
    parity = measure(encoder, referee, texts)
    assert parity.passed, parity.table()
    # Eager from the start, for the long ones the other, and back.
    assert chosen[:2] == ["sdpa", "eager"]
    counts = {group.name: group.found.texts for group in parity.groups}
    assert counts == {"alone": len(texts), "mixed": len(texts) - 1, "prompt:query": 14}
    # Both give one vector.
    text = [texts[int(np.flatnonzero(lengths > QUERY_BLOCK)[0])]]
    scaled = referee.encode(text)
    referee._vectors.clear()
    referee._attend("eager")
    referee._transformer = None  # as with a transformers that has no choice
    np.testing.assert_allclose(referee.encode(text), scaled, atol=1e-6)


def test_verify_takes_own_texts(sample_bundle: Path, tmp_path: Path, kosine_command) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("첫 문장\n둘째 문장\n\n넷째", encoding="utf-8")
    done = kosine_command("verify", sample_bundle, "--against", SAMPLE, "--texts", texts, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["groups"]["alone"]["texts"] == 4
    assert report["passed"]


def test_scores_are_the_referees(sample: kosine.Encoder) -> None:
    texts = canary_texts()[:8]
    vectors = Referee(SAMPLE).encode(texts)
    np.testing.assert_allclose(
        sample.similarity(sample.encode(texts), sample.encode(texts)),
        vectors @ vectors.T,
        atol=1e-6,
    )
