"""Many callers, one encoder: the door of dynamic batching in the process.

A call is checked, tokenised in its own thread and queued; `kosine.serving.queue` decides what
goes when, `kosine.serving.runner` does it, in the threads of `kosine.serving.workers`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import os
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, overload

import numpy as np

from kosine.clock import Clock, SystemClock
from kosine.errors import BatcherClosed, DeadlineExceeded, InputError, TextError
from kosine.packed import Float32, Matrix, Vector
from kosine.serving.admission import (
    is_short,
    is_whole,
    make_limits,
    read_texts,
    refusal_error,
    to_tokens,
)
from kosine.serving.cache import Key, VectorCache
from kosine.serving.request import BatchFuture, Call
from kosine.serving.runner import Runner
from kosine.serving.stages import Prepared, StagedEncoder
from kosine.serving.stats import BatcherStats
from kosine.serving.workers import Health, Workers, forked_error

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
        limits = make_limits(
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
        self._special_tokens: int | None = None
        _all_workers.add(self._workers)
        # At exit `_end_all` does more.
        weakref.finalize(self, self._workers.abandon).atexit = False

    # Submitting

    @overload
    def submit(  # type: ignore[overload-overlap]  # a str is a sequence of str, and comes first
        self,
        text_or_texts: str,
        *,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        truncate_dim: int | None = ...,
        normalize_embeddings: bool = ...,
        priority: int = ...,
        deadline: float | None = ...,
    ) -> BatchFuture[Vector]: ...
    @overload
    def submit(
        self,
        text_or_texts: Sequence[str],
        *,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        truncate_dim: int | None = ...,
        normalize_embeddings: bool = ...,
        priority: int = ...,
        deadline: float | None = ...,
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
        options = (prompt_name, prompt, truncate_dim, normalize_embeddings, priority, deadline)
        self._admit(texts, sizes, [future], not single, False, *options)
        if not texts:
            dim = self._encoder.dim if truncate_dim is None else truncate_dim
            future.open = False
            future.settle(np.empty((0, dim), np.float32))
        return future

    def submit_many(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[BatchFuture[Vector]]:
        """Queue many requests at once: all of them, or none if they do not fit.

        Args:
            texts: One request each.
            prompt_name: As in `submit`, as are the others.

        Returns:
            A future of a (dim,) float32 array for each text. They succeed, fail and are
            cancelled independently; a text that cannot be tokenised fails its own future.

        Errors are those of `submit`.
        """
        if isinstance(texts, str):
            raise InputError(
                "submit_many was given one str", limit="a list of texts", remedy="use submit"
            )
        texts, sizes, _ = read_texts(texts)
        futures: list[BatchFuture[Vector]] = [
            BatchFuture(self._workers, index) for index in range(len(texts))
        ]
        options = (prompt_name, prompt, truncate_dim, normalize_embeddings, priority, deadline)
        self._admit(texts, sizes, futures, False, True, *options)
        return futures

    @overload
    async def aencode(  # type: ignore[overload-overlap]  # as `submit`
        self,
        text_or_texts: str,
        *,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        truncate_dim: int | None = ...,
        normalize_embeddings: bool = ...,
        priority: int = ...,
        deadline: float | None = ...,
    ) -> Vector: ...
    @overload
    async def aencode(
        self,
        text_or_texts: Sequence[str],
        *,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        truncate_dim: int | None = ...,
        normalize_embeddings: bool = ...,
        priority: int = ...,
        deadline: float | None = ...,
    ) -> Matrix: ...
    async def aencode(
        self,
        text_or_texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Float32:
        """`submit` for event loops: awaits the vectors. Cancelling the task gives its place back.

        Args and errors are those of `submit`.
        """
        submit = partial(
            self.submit,
            text_or_texts,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize_embeddings,
            priority=priority,
            deadline=deadline,
        )
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

    def _admit(
        self,
        texts: list[str],
        sizes: list[int],
        futures: Sequence[BatchFuture[Any]],
        matrix: bool,
        separate: bool,
        prompt_name: str | None,
        prompt: str | None,
        truncate_dim: int | None,
        normalize_embeddings: bool,
        priority: int,
        deadline: float | None,
    ) -> None:
        """Check, tokenise and queue the texts of one call: all of them, or an error."""
        if prompt is not None and not isinstance(prompt, str):
            raise TextError(f"the prompt is {type(prompt).__name__}", limit="str")
        if truncate_dim is not None:
            dim = self._encoder.dim
            if not is_whole(truncate_dim) or not 1 <= truncate_dim <= dim:
                raise InputError(
                    f"truncate_dim={truncate_dim!r}", limit=f"1 to {dim}", remedy="keep within it"
                )
        if not is_whole(priority):
            raise InputError(f"priority={priority!r}", limit="a whole number")
        started = self._clock.now()
        until = math.inf
        if deadline is not None:
            if not deadline > 0.0:
                raise DeadlineExceeded(
                    f"deadline={deadline!r}", limit="more than 0 seconds", remedy="allow more time"
                )
            until = started + deadline
        if self._cache and texts:
            options = (prompt_name, prompt, truncate_dim, normalize_embeddings)
            keys = [Key.of(text, *options) for text in texts]
            left = self._answer_from_cache(keys, futures, matrix)
            if not left:
                return
            if len(left) < len(texts):
                texts, sizes = [texts[i] for i in left], [sizes[i] for i in left]
                futures = [futures[i] for i in left]
        runner = self._runner
        # What is certain first, so that refusing under overload costs next to nothing.
        least = self._least_tokens() * len(texts)
        with runner.lock:
            self._refuse(least, len(futures), sum(sizes), priority, until, started)
        if not texts:
            return
        prepared, failed = to_tokens(self._encoder, texts, separate, prompt_name, prompt)
        good = futures
        if failed:
            kept = [i for i in range(len(texts)) if i not in failed]
            sizes, good = [sizes[i] for i in kept], [futures[i] for i in kept]
            for place, future in enumerate(good):
                future.index = place
        now = self._clock.now()
        with runner.lock:
            counters = runner.counters
            if prepared is not None:
                tokens = prepared.batch.num_tokens
                self._refuse(tokens, len(good), sum(sizes), priority, until, now)
                call = Call(
                    prepared.batch,
                    sizes,
                    good,
                    matrix=matrix,
                    truncate_dim=truncate_dim,
                    normalize_embeddings=normalize_embeddings,
                    priority=priority,
                    deadline=until,
                )
                self._workers.enqueue(call, now)
                counters.truncated += prepared.truncated
                counters.unknown += prepared.unknown
            counters.stages["prepare"].observe(now - started)
            counters.submitted += len(failed)
            counters.failed += len(failed)
        for index, error in failed.items():
            futures[index].open = False
            futures[index].settle_error(error)

    def _answer_from_cache(
        self, keys: list[Key], futures: Sequence[BatchFuture[Any]], matrix: bool
    ) -> list[int]:
        """Settle what is known; gives the places of the texts that are not, whose vectors will
        be kept when they come. With `matrix` that is all or none."""
        cache, runner = self._cache, self._runner
        with runner.lock:
            self._refuse_if_closed()
            found = [cache.find(key) for key in keys]
            left = [i for i, vector in enumerate(found) if vector is None]
            runner.counters.cache_hits += len(keys) - len(left)
            runner.counters.cache_misses += len(left)
            known = len(keys) - len(left)
            if matrix:
                known = int(not left)
                left = [*range(len(keys))] if left else []
            runner.counters.submitted += known
            runner.counters.completed += known
        answers: list[tuple[BatchFuture[Any], Any]] = []
        if matrix:
            if left:
                futures[0].keep = partial(self._keep, keys)
            else:
                answers.append((futures[0], np.stack([v for v in found if v is not None])))
        else:
            for place, i in enumerate(left):
                futures[i].index = place
                futures[i].keep = partial(self._keep, [keys[i]])
            answers += [(f, v) for f, v in zip(futures, found, strict=True) if v is not None]
        for future, answer in answers:
            future.open = False
            future.settle(answer)
        return left

    def _keep(self, keys: list[Key], answer: Float32) -> None:
        """Keep an answer, in the thread that gives it."""
        runner, cache = self._runner, self._cache
        with runner.lock:
            for key, vector in zip(keys, np.atleast_2d(answer), strict=True):
                cache.keep(key, vector)
            runner.counters.cache_bytes = cache.nbytes

    def _refuse_if_closed(self) -> None:
        workers = self._workers
        if workers.closed:
            if workers.forked:
                raise forked_error()
            if workers.exiting and threading.current_thread() is not threading.main_thread():
                raise SystemExit  # ends a thread quietly, as calls into an engine do from now on
            raise BatcherClosed("the batcher is closed", remedy="make a new Batcher")

    def _refuse(
        self, tokens: int, requests: int, nbytes: int, priority: int, deadline: float, now: float
    ) -> None:
        """Raise what stands against a call of this size. Holds the lock."""
        self._refuse_if_closed()
        runner = self._runner
        refusal = runner.queue.refusal(tokens, requests, nbytes, priority, deadline, now)
        if refusal is not None:
            runner.counters.reject(refusal.what)
            raise refusal_error(refusal)

    def _least_tokens(self) -> int:
        """Tokens of a text that has none of its own: its special tokens."""
        if self._special_tokens is None:
            if self._workers.forked:
                raise forked_error()
            self._special_tokens = self._encoder.prepare([""], prompt="").batch.num_tokens
        return self._special_tokens

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
