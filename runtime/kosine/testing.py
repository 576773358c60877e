"""Stand-ins for services' own tests: an encoder without a bundle, and a clock to move by hand.

clock = FakeClock()
encoder = FakeEncoder(FakeBackend(dim=8, clock=clock))
with Batcher(encoder, clock=clock) as batcher:
    batcher.submit("a text").result()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from kosine.backends.fake import FakeBackend, FakeCrash, Fault, linear_cost, rectangle_cost
from kosine.clock import FakeClock
from kosine.errors import NonFiniteVector, TextTooLong, UnknownPrompt
from kosine.packed import Float32, Packed, Pooled
from kosine.serving.batcher import Batcher
from kosine.serving.workers import Workers
from kosine.tokenizer import Tokenized

__all__ = [
    "FAULT_MARKS",
    "FakeBackend",
    "FakeClock",
    "FakeCrash",
    "FakeEncoder",
    "Fault",
    "SteppedBatcher",
    "linear_cost",
    "rectangle_cost",
]

CLS: Final = 2
# A text that holds one of these characters strikes, with `FakeBackend(faults=FAULT_MARKS)`.
FAULT_MARKS: Final = {
    0x11: Fault.RAISE,
    0x12: Fault.NAN,
    0x13: Fault.SHAPE,
    0x14: Fault.CRASH,
    0x15: Fault.DELAY,
}


class FakeEncoder:
    """A byte-level encoder: a text's tokens are a start token and its UTF-8 bytes.

    Args:
        backend: What runs; a `FakeBackend` by default.
        max_tokens: Where texts are cut.
        max_batch_tokens: Tokens that suit one call of the backend.
        prompts: Prompt texts by name.
    """

    def __init__(
        self,
        backend: FakeBackend | None = None,
        *,
        max_tokens: int = 512,
        max_batch_tokens: int = 4_096,
        prompts: dict[str, str] | None = None,
    ) -> None:
        self.backend = backend or FakeBackend()
        self.dim = self.backend.dim
        self.max_tokens = max_tokens
        self.max_batch_tokens = max_batch_tokens
        self.prompts = prompts or {}

    def prepare(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
    ) -> Tokenized:
        """Tokenise. Raises UnknownPrompt, and TextTooLong with `truncate=False`."""
        if prompt is None and prompt_name is not None:
            if prompt_name not in self.prompts:
                raise UnknownPrompt(
                    f"unknown prompt {prompt_name!r}",
                    limit=f"known: {sorted(self.prompts)}",
                    remedy="name one of these, or pass prompt='...' as text",
                )
            prompt = self.prompts[prompt_name]
        head = chr(CLS) + (prompt or "")
        # A bytes object is a sequence of numbers.
        sentences = [(head + text).encode() for text in texts]
        longest = max(map(len, sentences), default=0)
        if longest <= self.max_tokens:
            return Tokenized(sentences, 0, 0)
        if not truncate:
            raise TextTooLong(
                f"a text has {longest} tokens",
                limit=f"{self.max_tokens} tokens",
                remedy="shorten it, or let it be truncated with truncate=True",
            )
        truncated = sum(len(ids) > self.max_tokens for ids in sentences)
        return Tokenized([ids[: self.max_tokens] for ids in sentences], truncated, 0)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as `prepare` makes them."""
        lengths: list[int] = self.prepare(texts).batch.lengths.tolist()
        return lengths

    def compute(self, batch: Packed) -> Pooled:
        """Run the backend. Raises NonFiniteVector, with the other rows in its `pooled`."""
        pooled = self.backend.run(batch)
        finite = np.isfinite(pooled.vectors).all(axis=1)
        if not finite.all():
            rows = tuple(int(row) for row in np.flatnonzero(~finite))
            raise NonFiniteVector(
                f"{len(rows)} rows are not finite",
                indices=rows,
                pooled=pooled,
                remedy="leave these texts out",
            )
        return pooled

    def finish(
        self,
        pooled: Pooled,
        *,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
    ) -> Float32:
        """Truncate, then normalise (or give the norms back)."""
        vectors = pooled.vectors
        if truncate_dim is not None:
            vectors = vectors[:, :truncate_dim]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors if normalize_embeddings else vectors * pooled.norms[:, None]

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> Float32:
        """(n, dim) float32: what a batcher must answer, computed without one, cost or faults."""
        if not texts:
            return np.empty((0, self.dim), np.float32)
        return self.backend.vectors(self.prepare(texts, prompt_name=prompt_name).batch)


class _NoThreads(Workers):
    """The runner's steps are taken by whoever calls them."""

    def start(self) -> None:
        """Nothing: there are no threads."""


class SteppedBatcher(Batcher):
    """A batcher without threads, whose steps the caller takes: for simulations and for tests that
    try one order of steps after another. On a `FakeClock` nothing depends on the machine.
    """

    _make_workers = _NoThreads

    def run_batch(self) -> bool:
        """Take the next batch, run and answer it, due or not; False if nothing waits."""
        return self._runner.run_batch()

    def run_at(self) -> float:
        """When the next batch is due, by the clock; infinite if nothing waits."""
        return self._runner.queue.run_at(self._clock.now())

    def expire(self) -> None:
        """Fail what has missed its deadline."""
        self._runner.expire()

    def crash(self, error: BaseException) -> None:
        """Go on as after a runner that has died of `error`."""
        self._workers.recover(error)

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """See `Batcher.close`."""
        while drain and self.run_batch():
            pass
        return super().close(drain, timeout)
