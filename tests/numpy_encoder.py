"""A read checkpoint run sentence by sentence on the numpy reference: slow and plain."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from kosine.backends.lowering import lower
from kosine_export.checkpoint.checkpoint import Checkpoint
from kosine_kernels import reference


def token_ids(checkpoint: Checkpoint, texts: list[str]) -> list[list[int]]:
    """Token ids as the runtime must make them: the first tokens, then SEP."""
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
    limit = checkpoint.max_tokens
    whole = [tokenizer.encode(text).ids for text in texts]
    return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in whole]


def positions(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    if checkpoint.spec.embeddings.positions.rule != "roberta":
        return np.arange(len(ids), dtype=np.int32)
    pad = checkpoint.spec.embeddings.positions.pad_id
    real = ids != pad
    return (np.cumsum(real) * real + pad).astype(np.int32)


def vectors(checkpoint: Checkpoint, texts: list[str], skip: int = 0) -> np.ndarray:
    """(n, dim) float32 as the checkpoint itself defines them, unit only where it says so."""
    spec = checkpoint.spec
    rows = []
    for ids in map(np.int32, token_ids(checkpoint, texts)):
        unit, norms = reference.encode(
            lower(spec),
            checkpoint.tensors,
            ids,
            np.array([0, len(ids)], np.int32),
            np.array([skip], np.int32) if skip else None,
            positions(checkpoint, ids),
        )
        rows.append(unit[0] if spec.normalize else unit[0] * norms[0])
    return np.stack(rows)
