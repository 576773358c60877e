"""What every family and pooling is held to: each engine, and `model.onnx` padded on either side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

import factories
import kosine
from native_machine import MISSING, why_not

MAX_ABS_ERROR = 5e-6
PAD = 1


def engines() -> list[tuple[str, str, float]]:
    """Backend, dtype, and how far a number of a unit vector may be off."""
    found = [("onnx", "float32", MAX_ABS_ERROR)]
    if not MISSING:
        found.append(("native", "float32", MAX_ABS_ERROR))
        if not why_not("bfloat16", ""):
            found.append(("native", "bfloat16", 0.02))
    return found


def check_engines(bundle: Path, model, texts: list[str]) -> None:
    """Every engine against the referee, all texts in one call and each alone."""
    expected = factories.referee_vectors(model, texts, normalize_embeddings=True)
    for backend, dtype, error in engines():
        encoder = kosine.load(bundle, backend=backend, dtype=dtype)
        together = encoder.encode(texts)
        alone = np.concatenate([encoder.encode([text]) for text in texts])
        assert np.abs(together - expected).max() <= error, (backend, dtype)
        assert np.abs(alone - expected).max() <= error, (backend, dtype)


def check_padded_graph(bundle: Path, model, texts: list[str], side: str) -> None:
    """`model.onnx` on one rectangle, padded on the "left" or "right", against the referee."""
    ids = factories.referee_ids(model, texts)
    longest = max(map(len, ids))
    padded = np.full((len(ids), longest), PAD, np.int64)
    mask = np.zeros_like(padded)
    for row, marks, own in zip(padded, mask, ids, strict=True):
        place = slice(longest - len(own), None) if side == "left" else slice(len(own))
        row[place], marks[place] = own, 1
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    (found,) = session.run(["sentence_embedding"], {"input_ids": padded, "attention_mask": mask})
    expected = factories.referee_vectors(model, texts, normalize_embeddings=True)
    assert np.abs(found - expected).max() <= MAX_ABS_ERROR
