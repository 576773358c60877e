"""Many callers, one encoder: the door of dynamic batching in the process.

`kosine.serving.admission` checks, tokenises and queues a call; `kosine.serving.queue` decides what
goes when, `kosine.serving.runner` does it, in the threads of `kosine.serving.workers`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import weakref
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, Unpack, overload

import numpy as np

from kosine.clock import Clock, SystemClock
from kosine.errors import InputError, TextError
from kosine.packed import Float32, Matrix, Vector
from kosine.serving.admission import Admission, SubmitOptions, is_short, read_texts
from kosine.serving.cache import VectorCache
from kosine.serving.limits import Limits
from kosine.serving.request import BatchFuture
from kosine.serving.runner import Runner
from kosine.serving.stages import Prepared, StagedEncoder
from kosine.serving.stats import BatcherStats, Health
from kosine.serving.workers import Workers

__all__ = ["Batcher", "Health", "Prepared", "StagedEncoder"]

# At interpreter exit a batch that hangs must not hang the exit with it.
EXIT_TIMEOUT_S: Final = 5.0


class Batcher:
    """Gathers texts from threads and event loops into batches for one encoder.

    Args:
        encoder: A `kosine.Encoder`, or anything with its stages (`StagedEncoder`).
        max_wait_ms: How long the oldest request may wait for company, in milliseconds. With 0
            a batch is whatever is queued when the backend becomes free.
        max_batch_tokens: Tokens per batch, which is one call of the backend; None takes what
            suits the backend. A longer text still runs, alone.
        max_queue_tokens: Bound of what waits, in tokens.
        max_queue_requests: Bound of what waits, in requests (futures).
        max_queue_bytes: Bound of what waits, in UTF-8 bytes of text.
        ageing_s: Seconds of waiting that outweigh one level of priority.
        cache_bytes: Room for the vectors of texts that were answered, by a digest of prompt and
            text: the same text again gets the same bits at once, without the queue. A call of
            several texts that are answered together finds all of them there, or none.
        clock: Where the time comes from; `kosine.clock.FakeClock` in tests.

    Raises:
        InputError: A bound or a time that makes no sense.
    """

    _make_workers = Workers

    def __init__(
        self,
        encoder: StagedEncoder,
        *,
        max_wait_ms: float = 0.0,
        max_batch_tokens: int | None = None,
        max_queue_tokens: int = 65_536,
        max_queue_requests: int = 8_192,
        max_queue_bytes: int = 16 << 20,
        ageing_s: float = 1.0,
        cache_bytes: int = 0,
        clock: Clock | None = None,
    ) -> None:
        if max_batch_tokens is None:
            max_batch_tokens = encoder.max_batch_tokens
        limits = Limits.of(
            max_wait_ms,
            ageing_s,
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            max_queue_requests=max_queue_requests,
            max_queue_bytes=max_queue_bytes,
        )
        self._encoder = encoder
        self._cache = VectorCache(cache_bytes)
        self._clock = clock or SystemClock()
        self._runner = Runner(encoder, limits, self._clock)
        self._workers = self._make_workers(self._runner)
        self._admit = Admission(encoder, self._workers, self._cache).admit
        _all_workers.add(self._workers)
        # At exit `_end_all` does more.
        weakref.finalize(self, self._workers.abandon).atexit = False

    # Submitting

    @overload
    def submit(  # type: ignore[overload-overlap]  # a str is a sequence of str, and comes first
        self, text_or_texts: str, **options: Unpack[SubmitOptions]
    ) -> BatchFuture[Vector]: ...
    @overload
    def submit(
        self, text_or_texts: Sequence[str], **options: Unpack[SubmitOptions]
    ) -> BatchFuture[Matrix]: ...
    def submit(
        self,
        text_or_texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
        priority: int = 0,
        deadline: float | None = None,
    ) -> BatchFuture[Any]:
        """Queue one request. Its texts are tokenised in the calling thread.

        Args:
            text_or_texts: A text, or several that are answered together.
            prompt_name: A prompt of the bundle, by name.
            prompt: A prompt of one's own; beats `prompt_name`.
            truncate_dim: Keep so many leading dimensions, then normalise.
            normalize_embeddings: Give vectors of length 1; see `Encoder.encode`.
            priority: Higher goes first; a level is worth `ageing_s` seconds of waiting.
            deadline: Seconds from now in which the result is useful. The future is settled by
                then in any case.

        Returns:
            A future of a (dim,) float32 array for a str, of (n, dim) for a sequence.

        Raises:
            QueueFull: Too much waits already, or what waits leaves no time for the deadline.
            InputError: Something that could never be served; UnknownPrompt and TextError too.
            DeadlineExceeded: The deadline is not in the future.
            BatcherClosed: After `close`.
            ForkedBatcher: In a child of the process that made this batcher.
            BatcherError: No thread can be started.
        """
        texts, sizes, single = read_texts(text_or_texts)
        future: BatchFuture[Any] = BatchFuture(self._workers)
        self._admit(
            texts,
            sizes,
            (future,),
            matrix=not single,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize_embeddings,
            priority=priority,
            deadline=deadline,
        )
        if not texts:
            dim = self._encoder.dim if truncate_dim is None else truncate_dim
            future.open = False
            future.settle(np.empty((0, dim), np.float32))
        return future

    def submit_many(
        self, texts: Sequence[str], **options: Unpack[SubmitOptions]
    ) -> list[BatchFuture[Vector]]:
        """Queue many requests at once: all of them, or none if they do not fit.

        Args:
            texts: One request each.
            options: Those of `submit`, by name.

        Returns:
            A future of a (dim,) float32 array for each text. They succeed, fail and are
            cancelled independently; a text that cannot be tokenised fails its own future.

        Errors are those of `submit`.
        """
        if isinstance(texts, str):
            raise InputError(
                "submit_many was given one str", limit="a list of texts", remedy="use submit"
            )
        failed: dict[int, TextError] = {}
        texts, sizes, _ = read_texts(texts, failed)
        futures: list[BatchFuture[Vector]] = [
            BatchFuture(self._workers, index) for index in range(len(texts))
        ]
        kept = futures
        if failed:
            good = [i for i in range(len(texts)) if i not in failed]
            texts, sizes = [texts[i] for i in good], [sizes[i] for i in good]
            kept = [futures[i] for i in good]
            for place, future in enumerate(kept):
                future.index = place
        self._admit(texts, sizes, kept, separate=True, **options)
        if failed:
            with self._runner.lock:
                self._runner.counters.submitted += len(failed)
        for index, error in failed.items():
            self._runner.fail(futures[index], error)
        return futures

    @overload
    async def aencode(  # type: ignore[overload-overlap]  # as `submit`
        self, text_or_texts: str, **options: Unpack[SubmitOptions]
    ) -> Vector: ...
    @overload
    async def aencode(
        self, text_or_texts: Sequence[str], **options: Unpack[SubmitOptions]
    ) -> Matrix: ...
    async def aencode(
        self, text_or_texts: str | Sequence[str], **options: Unpack[SubmitOptions]
    ) -> Float32:
        """`submit` for event loops: awaits the vectors. Cancelling the task gives its place back.

        Args and errors are those of `submit`.
        """
        submit = partial(self.submit, text_or_texts, **options)
        if is_short(text_or_texts):
            future = submit()
        else:
            handed = asyncio.get_running_loop().run_in_executor(None, submit)
            try:
                future = await asyncio.shield(handed)
            except asyncio.CancelledError:
                handed.add_done_callback(_cancel_result)
                raise
        vectors: Float32 = await asyncio.wrap_future(future)
        return vectors

    # Operating

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Stop accepting, and end the threads.

        Args:
            drain: Serve what is queued first; otherwise it fails with BatcherClosed. The batch
                that runs is finished either way.
            timeout: Seconds until everything that is still unanswered fails with BatcherClosed,
                the batch that runs included; None waits for ever.

        Returns:
            True if the threads ended in time. False, at once, in a done-callback: the thread that
            runs it cannot wait for itself, and ends when it has served what it must. In a forked
            child there is nothing to close.
        """
        return self._workers.close(drain, timeout)

    def health(self) -> Health:
        """How the batcher is, at this moment; replaces a thread that it finds dead."""
        return self._workers.health()

    def stats(self) -> BatcherStats:
        """All numbers at this moment."""
        return self._workers.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Draining may take seconds; the loop has other things to do, such as taking results.
        await asyncio.get_running_loop().run_in_executor(None, self.close)


def _cancel_result(handed: asyncio.Future[BatchFuture[Any]]) -> None:
    if not handed.cancelled() and handed.exception() is None:
        handed.result().cancel()


_all_workers: weakref.WeakSet[Workers] = weakref.WeakSet()


def _fork_all() -> None:
    for workers in list(_all_workers):
        workers.fork()


def _end_all() -> None:
    for workers in list(_all_workers):
        with contextlib.suppress(Exception):
            workers.end_with_process(EXIT_TIMEOUT_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork_all)
atexit.register(_end_all)
