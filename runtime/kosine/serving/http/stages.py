"""An encoder's stages as the batcher calls them: measured, in one lane, ids as texts too."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from kosine import Encoder, Packed, Pooled
from kosine.packed import Float32
from kosine.tokenizer import Tokenized

__all__ = ["StagedModel", "TokenIds"]


class TokenIds(str):
    """A text given as the model's own token ids, special tokens included.

    As a str it is as long as it has tokens, which is what the queue counts by.
    """

    ids: tuple[int, ...]

    @classmethod
    def of(cls, ids: Sequence[int]) -> TokenIds:
        text = cls(" " * len(ids))
        text.ids = tuple(ids)
        return text


class StagedModel:
    """An encoder's stages as the batcher calls them, measured, and one lane for all models.

    Args:
        encoder: Does the work.
        lane: Held while a batch is computed: models take turns, since each uses every processor.

    Attributes:
        seen: Per thread, what its last call of `prepare` found: `tokens`, `seconds`.
        last_run: When the last batch began and ended, by `time.perf_counter`.
    """

    def __init__(self, encoder: Encoder, lane: threading.Lock) -> None:
        self.encoder = encoder
        self.dim = encoder.dim
        self.max_batch_tokens = encoder.max_batch_tokens
        self.seen = threading.local()
        self.last_run = (0.0, 0.0)
        self._lane = lane

    def prepare(
        self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Tokenized:
        """Tokenise texts; `TokenIds` are taken as they are."""
        started = time.perf_counter()
        if texts and isinstance(texts[0], TokenIds):
            rows = [text.ids for text in texts if isinstance(text, TokenIds)]
            tokenized = Tokenized(rows, 0, 0)
        else:
            tokenized = self.encoder.prepare(texts, prompt_name=prompt_name, prompt=prompt)
        self.seen.tokens = tokenized.num_tokens
        self.seen.seconds = time.perf_counter() - started
        return tokenized

    def compute(self, batch: Packed) -> Pooled:
        """Run a batch when its turn comes. A thread that waits gets the lane before the one that
        has just left it comes again: that one has a batch to answer and the next to put together.
        """
        with self._lane:
            started = time.perf_counter()
            pooled = self.encoder.compute(batch)
            self.last_run = (started, time.perf_counter())
        return pooled

    def finish(
        self, pooled: Pooled, *, truncate_dim: int | None = None, normalize_embeddings: bool = True
    ) -> Float32:
        return self.encoder.finish(
            pooled, truncate_dim=truncate_dim, normalize_embeddings=normalize_embeddings
        )
