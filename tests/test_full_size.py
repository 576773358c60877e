"""Base and large, full size, random weights: exported and verified against PyTorch."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import kosine
from conftest import SAMPLE
from kosine_export import export as export_module
from kosine_export.export import export
from kosine_export.texts import parity_texts
from kosine_export.verify import against

pytestmark = pytest.mark.slow

SIZES = {"base": (768, 12, 12, 3072, 128), "large": (1024, 24, 16, 4096, 512)}
VOCABULARY = 32_000


def write_checkpoint(folder: Path, size: str) -> Path:
    """KLUE RoBERTa's shape with the sample's tokenizer; numpy alone, so that it takes seconds."""
    hidden, layers, heads, intermediate, max_tokens = SIZES[size]
    folder.mkdir()
    config = json.loads((SAMPLE / "config.json").read_text())
    config |= {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": intermediate, "vocab_size": VOCABULARY, "dtype": "float32",
        "max_position_embeddings": 514,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "modules.json", "sentence_bert_config.json"):
        (folder / name).write_bytes((SAMPLE / name).read_bytes())
    tokenizer = json.loads((SAMPLE / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**tokenizer, "model_max_length": max_tokens})
    )
    pooling = {"embedding_dimension": hidden, "pooling_mode": "mean", "include_prompt": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

    rng = np.random.default_rng(11)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(0.04)

    tensors = {
        "embeddings.word_embeddings.weight": normal(VOCABULARY, hidden),
        "embeddings.position_embeddings.weight": normal(514, hidden),
        "embeddings.token_type_embeddings.weight": normal(1, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        for name, (outputs, inputs) in {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (intermediate, hidden),
            "output.dense": (hidden, intermediate),
        }.items():
            tensors[f"{at}.{name}.weight"] = normal(outputs, inputs)
            tensors[f"{at}.{name}.bias"] = normal(outputs)
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name in norms:
        tensors[f"{name}.weight"] = 1 + normal(hidden)
        tensors[f"{name}.bias"] = normal(hidden)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", size)
    # The export's own measurement is left out (other tests have it): this times what a machine
    # without PyTorch does, and the comparison below is made with a few texts.
    monkeypatch.setattr(export_module, "missing_packages", lambda **_: ("torch",))
    began = time.perf_counter()
    done = export(checkpoint, tmp_path / f"{size}.kosine")
    seconds = time.perf_counter() - began
    total = sum(entry.bytes for entry in done.manifest.files().values())
    weights = done.manifest.files()["weights.safetensors"].bytes
    print(f"{size}: exported in {seconds:.1f} s, bundle / weights = {total / weights:.4f}")
    assert total <= 1.02 * weights
    encoder = kosine.load(done.path)
    texts = parity_texts(encoder.max_tokens)
    parity = against(encoder, checkpoint, texts=[*texts[:10], texts[20], texts[-4], texts[-1]])
    print(parity.table())
    assert parity.passed
    assert encoder.max_tokens == SIZES[size][4]


def test_the_real_legal_adapter_on_a_base_of_its_size(tmp_path: Path, shared) -> None:
    """Its weights, tokenizer and configs are real; the base's weights are random."""
    adapter = shared("checkpoints/legal-adapter")
    base = write_checkpoint(tmp_path / "base", "base")
    prompts = {"query": "Represent this sentence for searching relevant passages: "}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "missing_packages", lambda **_: ("torch",))
        done = export(adapter, tmp_path / "legal.kosine", base=base, prompts=prompts)
    assert done.manifest.max_tokens == 128
    encoder = kosine.load(done.path)
    texts = ["상법 제651조의 내용은 무엇인가요?", "보증금을 돌려받지 못했습니다.", ""]
    parity = against(encoder, adapter, base=base, texts=texts)
    assert parity.passed, parity.table()
    assert "prompt:query" in {group.name for group in parity.groups}
