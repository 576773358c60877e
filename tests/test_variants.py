"""Families, poolings, Dense, Normalize, prompts left out of pooling: exported, held to PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import factories
import kosine
from kosine.bundle.canary import compare
from kosine_export.export import export
from kosine_export.parity.model_graph_check import run_model_graph
from kosine_export.parity.referee import Referee

PROMPT = {"query": "질문: "}
VARIANTS: dict[str, dict[str, Any]] = {
    "bert": {"family": "bert"},
    "bert-1.x": {"family": "bert", "generation": "1.x", "tokenizer": "vocab.txt"},
    "bert-bare": {"family": "bert", "generation": "bare"},
    "bert-5.4": {"family": "bert", "generation": "5.4"},
    "bert-lowercase": {"family": "bert", "do_lower_case": True},
    "roberta-byte-level": {"family": "roberta"},
    "xlm-roberta": {"family": "xlm-roberta"},
    "camembert": {"family": "camembert"},
    "distilbert": {"family": "distilbert"},
    "electra": {"family": "electra"},
    "cls": {"family": "bert", "pooling": "cls"},
    "max": {"family": "bert", "pooling": "max"},
    "normalize": {"family": "bert", "normalize": True},
    "dense": {"family": "bert", "dense": [{"outputs": 48}]},
    "dense-normalize": {"family": "roberta", "dense": [{"outputs": 48}], "normalize": True},
    "prompt-out-mean": {"family": "bert", "include_prompt": False, "prompts": PROMPT},
    "prompt-out-cls": {
        "family": "bert", "pooling": "cls", "include_prompt": False, "prompts": PROMPT,
    },
    "prompt-out-max": {
        "family": "bert", "pooling": "max", "include_prompt": False, "prompts": PROMPT,
    },
    "default-prompt": {"family": "bert", "prompts": PROMPT, "default_prompt_name": "query"},
    "float16-weights": {"family": "roberta", "tokenizer": "wordpiece", "dtype": "float16",
                        "sizes": {"tokenizer_class": "BertTokenizer"}},
    "bfloat16-weights": {"family": "bert", "dtype": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(name: str, tmp_path: Path) -> None:
    """Export itself measures parity and refuses below the gate; the rest is looked at here."""
    checkpoint = factories.build(tmp_path / "checkpoint", seed=7, **VARIANTS[name])
    done = export(checkpoint, tmp_path / "out.kosine", targets=("onnx", "onnx-fp16"))
    parity = done.manifest.parity
    assert parity is not None
    assert parity["passed"]
    assert parity["others"]["float16"]["passed"]
    for prompt_name, prompt in VARIANTS[name].get("prompts", {}).items():
        assert f"prompt:{prompt_name}" in parity["groups"]
        assert done.manifest.prompts[prompt_name] == prompt
    encoder = kosine.load(done.path, backend="onnx")
    referee = Referee(checkpoint)
    texts = ["한 남자가 기타를 치고 있다.", "비행기가 이륙하고 있다.", "가"]
    raw = encoder.encode(texts, prompt="", normalize_embeddings=False)
    np.testing.assert_allclose(raw, referee.encode(texts, normalize=False), rtol=3e-5, atol=3e-5)
    batch = encoder.prepare(texts, prompt="").batch
    padded = compare(run_model_graph(encoder.bundle, batch), encoder.compute(batch).vectors)
    assert padded.min_cosine >= 1 - 1e-9


def test_the_default_prompt_is_used(tmp_path: Path) -> None:
    options = VARIANTS["default-prompt"]
    checkpoint = factories.build(tmp_path / "checkpoint", seed=7, **options)
    encoder = kosine.load(export(checkpoint, tmp_path / "out.kosine").path, backend="onnx")
    text = "강아지 예방접종은 언제부터 시작해야 하나요?"
    expected = Referee(checkpoint).encode([text], PROMPT["query"])[0]
    assert compare(encoder.encode(text)[None], expected[None]).min_cosine >= 0.999999
    without = encoder.encode(text, prompt="")
    assert compare(without[None], expected[None]).min_cosine < 0.999999
