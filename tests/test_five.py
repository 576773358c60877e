"""The five encoders end to end: full format, small size, held against PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import factories
import kosine
from kosine.bundle.canary import compare
from kosine_export.export import Exported, export
from kosine_export.parity.model_graph_check import run_model_graph
from kosine_export.parity.referee import Referee
from kosine_export.texts import parity_texts
from kosine_export.verify import against
from native_machine import MISSING, needs_native

NAMES = ("korsts", "matching", "faq", "klue-large", "legal")
# What the cards say: class, max_seq_length, token type rows, epsilon, special ids.
CARDS = {
    "korsts": ("roberta", 128, 1, 1e-5, {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}),
    "matching": ("bert", 128, 2, 1e-12, {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}),
    "faq": ("roberta", 128, 1, 1e-5, {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}),
    "klue-large": ("roberta", 512, 1, 1e-5, {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}),
    "legal": ("roberta", 128, 1, 1e-5, {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}),
}
LEGAL_PROMPTS = {
    "query": "Represent this sentence for searching relevant passages: ",
    "document": "Represent this sentence for retrieving relevant passages: ",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path | None]]:
    return factories.five(tmp_path_factory.mktemp("five"))


@pytest.fixture(scope="module")
def exported(
    checkpoints: dict[str, tuple[Path, Path | None]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("five-bundles")
    return {
        name: export(
            path,
            folder / f"{name}.kosine",
            base=base,
            targets=("onnx", "onnx-fp16", *(() if MISSING else ("native-int8",))),
            prompts=LEGAL_PROMPTS if name == "legal" else None,
        )
        for name, (path, base) in checkpoints.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_manifest_says_what_the_card_says(name: str, exported: dict[str, Exported]) -> None:
    manifest = exported[name].manifest
    family, max_tokens, types, eps, special_ids = CARDS[name]
    assert manifest.spec.family == family
    assert manifest.max_tokens == max_tokens
    assert manifest.spec.embeddings.token_types == types
    assert manifest.spec.layers[0].norm.eps == eps
    assert manifest.special_ids == special_ids
    assert manifest.spec.pooling.modes == ("mean",)
    assert manifest.spec.pooling.include_prompt
    assert not manifest.spec.normalize
    assert manifest.similarity == "cosine"
    assert manifest.do_lower_case is False


@pytest.mark.parametrize("name", NAMES)
def test_parity_is_recorded_and_passes(name: str, exported: dict[str, Exported]) -> None:
    parity = exported[name].manifest.parity
    assert parity is not None
    print(f"{name}: min cosine {parity['min_cosine']:.9f}, max abs {parity['max_abs_error']:.1e}")
    assert parity["passed"]
    assert parity["min_cosine"] >= 0.999999
    assert parity["max_abs_error"] <= 2e-5
    assert parity["max_norm_error"] <= 1e-6
    assert parity["ids_equal"] == parity["texts"]
    assert parity["others"]["float16"]["min_cosine"] >= 0.9998
    certificate = exported[name].manifest.certificates["onnx-fp16"]
    assert certificate["passed"]
    assert certificate["largest"] < 65504 / 8


@needs_native
@pytest.mark.parametrize("name", NAMES)
def test_bytes_bear_nearly_all_products(name: str, exported: dict[str, Exported]) -> None:
    manifest = exported[name].manifest
    assert manifest.parity is not None
    assert manifest.int8 is not None
    assert manifest.int8.bytes_only_share <= 0.05
    for dtype, least in (("int8", 0.9985), ("w8a16", 0.999)):
        found = manifest.parity["others"][dtype]
        print(f"{name} {dtype}: {manifest.int8.bytes_only_share:.1%} in w8a16, {found['centred']}")
        assert found["passed"]
        assert found["centred"]["mean_cosine"] >= least


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_referee_agrees(
    name: str,
    exported: dict[str, Exported],
    checkpoints: dict[str, tuple[Path, Path | None]],
) -> None:
    path, base = checkpoints[name]
    encoder = kosine.load(exported[name].path, backend="onnx")
    parity = against(encoder, path, base=base, texts=parity_texts(encoder.max_tokens)[::5])
    assert parity.passed, parity.table()
    if name == "legal":
        assert {group.name for group in parity.groups} >= {"prompt:query", "prompt:document"}


@pytest.mark.parametrize("name", NAMES)
def test_the_ecosystem_face_agrees(name: str, exported: dict[str, Exported]) -> None:
    encoder = kosine.load(exported[name].path, backend="onnx")
    texts = parity_texts(encoder.max_tokens)[-12:]
    batch = encoder.prepare(texts).batch
    found = compare(run_model_graph(encoder.bundle, batch), encoder.compute(batch).vectors)
    assert found.min_cosine >= 1 - 1e-9


def test_an_adapter_is_not_its_base(
    exported: dict[str, Exported], checkpoints: dict[str, tuple[Path, Path | None]]
) -> None:
    """Negative control: the same comparison fails against the base without the adapter."""
    _, base = checkpoints["legal"]
    assert base is not None
    encoder = kosine.load(exported["legal"].path, backend="onnx")
    texts = ["상법 제651조의 내용은 무엇인가요?", "보증금을 돌려받지 못했습니다."]
    found = compare(encoder.encode(texts), Referee(base).encode(texts))
    assert found.min_cosine < 0.999999


def test_unnormalised_vectors_are_the_referees(
    exported: dict[str, Exported], checkpoints: dict[str, tuple[Path, Path | None]]
) -> None:
    path, _ = checkpoints["klue-large"]
    encoder = kosine.load(exported["klue-large"].path, backend="onnx")
    texts = parity_texts(encoder.max_tokens)[:20]
    ours = encoder.encode(texts, normalize_embeddings=False)
    theirs = Referee(path).encode(texts, normalize=False)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    assert np.abs(np.linalg.norm(theirs, axis=1) - 1).max() > 0.1


@pytest.mark.parametrize(("card", "name"), list(enumerate(NAMES)))
def test_the_cards_own_sentences(
    card: int,
    name: str,
    exported: dict[str, Exported],
    checkpoints: dict[str, tuple[Path, Path | None]],
    shared,
) -> None:
    """What each model card shows: its usage sentences and its widget's."""
    found = json.loads(shared("seeds/cards.json").read_text(encoding="utf-8"))[str(card)]
    texts = [text for text in found["usage_sentences"] if isinstance(text, str)]
    for entry in found["widget"]:
        texts += [entry["source_sentence"], *entry["sentences"]]
    texts = list(dict.fromkeys(texts))
    assert len(texts) >= 6
    path, base = checkpoints[name]
    encoder = kosine.load(exported[name].path, backend="onnx")
    parity = against(encoder, path, base=base, texts=texts)
    assert parity.passed, parity.table()
