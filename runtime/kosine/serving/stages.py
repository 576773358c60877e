"""What the batcher asks of an encoder: one method a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kosine.packed import Float32, Packed, Pooled

__all__ = ["Prepared", "StagedEncoder"]


class Prepared(Protocol):
    """Tokenised texts.

    Attributes:
        sentences: The token ids of each text, in order.
        batch: All texts packed.
        truncated: How many were cut.
        unknown: How many of the tokens are unknown to the tokenizer.
        skip: Leading tokens of each text that pooling leaves out.
    """

    @property
    def sentences(self) -> Sequence[Sequence[int]]: ...
    @property
    def batch(self) -> Packed: ...
    @property
    def skip(self) -> int: ...
    @property
    def truncated(self) -> int: ...
    @property
    def unknown(self) -> int: ...


class StagedEncoder(Protocol):
    """An encoder as the batcher uses it: one method per stage, called from several threads.

    Attributes:
        dim: Length of the vectors.
        max_batch_tokens: Tokens that suit one call of its backend.
    """

    @property
    def dim(self) -> int: ...
    @property
    def max_batch_tokens(self) -> int: ...

    def prepare(
        self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Prepared: ...

    def compute(self, batch: Packed) -> Pooled: ...

    def finish(
        self, pooled: Pooled, *, truncate_dim: int | None = None, normalize_embeddings: bool = True
    ) -> Float32: ...
