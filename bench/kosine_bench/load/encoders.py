"""Encoders that load is measured with: any real one, and the same made to compute rectangles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from kosine.packed import Float32, Packed, Pooled
from kosine.serving.batcher import Prepared, StagedEncoder

__all__ = ["CountingEncoder", "PaddedEncoder", "StagedEncoder"]


class CountingEncoder(StagedEncoder, Protocol):
    """What a batcher needs of an encoder, and what texts of wanted lengths are made with."""

    def count_tokens(self, texts: Sequence[str]) -> Any: ...


class PaddedEncoder:
    """The same encoder on rectangles. Its vectors are not the texts' own: only the time counts.

    Args:
        encoder: Whose stages are used.
    """

    def __init__(self, encoder: StagedEncoder) -> None:
        self._encoder = encoder
        self.dim = encoder.dim
        self.max_batch_tokens = encoder.max_batch_tokens

    def prepare(
        self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Prepared:
        return self._encoder.prepare(texts, prompt_name=prompt_name, prompt=prompt)

    def compute(self, batch: Packed) -> Pooled:
        """Run the batch with every sentence as long as the longest."""
        lengths = batch.lengths
        longest = int(lengths.max())
        # Padding with the sentence's own first token keeps every id valid for any vocabulary.
        rows = np.repeat(batch.ids[batch.starts[:-1]], longest).reshape(-1, longest)
        rows[np.arange(longest) < lengths[:, None]] = batch.ids
        starts = np.arange(len(batch) + 1, dtype=np.int32) * np.int32(longest)
        return self._encoder.compute(Packed(rows.reshape(-1), starts))

    def finish(
        self, pooled: Pooled, *, truncate_dim: int | None = None, normalize_embeddings: bool = True
    ) -> Float32:
        return self._encoder.finish(
            pooled, truncate_dim=truncate_dim, normalize_embeddings=normalize_embeddings
        )
