"""Dynamic batching in the process: many callers, one encoder.

Here is the door and what is behind it in order: `kosine.schedule` decides what goes when,
`kosine.pipeline` has the steps, `kosine.workers` the threads that take them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import os
import weakref
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Final, Self

import numpy as np

from kosine.admission import cut, utf8_sizes
from kosine.batch_future import BatchFuture, new_future, new_futures
from kosine.batcher_stats import BatcherStats
from kosine.clock import Clock, SystemClock
from kosine.errors import DeadlineExceeded, InputError, TextError
from kosine.job import NO_PROMPT, Job, Prompt
from kosine.packed import Float32
from kosine.pipeline import Pipeline, StagedEncoder
from kosine.schedule import Limits
from kosine.workers import Health, Workers, forked_error

__all__ = ["Batcher", "Health"]

# A `submit_many` is queued in parts that are about a batch each, of at most so many texts, so that
# the first of them can run while the last are tokenised.
PART_TEXTS: Final = 512
# `aencode` weighs longer input, and perhaps tokenises it, beside the event loop.
ON_LOOP_CHARS: Final = 10_000
# At interpreter exit a batch that hangs must not hang the exit with it.
EXIT_TIMEOUT_S: Final = 5.0


class Batcher:
    """Gathers texts from threads and event loops into batches for one encoder.

    Args:
        encoder: A `kosine.Encoder`, or anything with its `prepare`, `run` and `finish`.
        max_wait_ms: How long the oldest request may wait for company, in milliseconds. With 0
            a batch is whatever is queued when the backend becomes free.
        max_batch_tokens: Tokens per batch. A longer text still runs, alone.
        max_queue_tokens: Bound of what waits, in tokens. Texts that are not tokenised yet
            count with an upper estimate from their bytes.
        max_queue_requests: Bound of what waits, in requests (futures).
        max_queue_bytes: Bound of what waits, in UTF-8 bytes of text.
        ageing_s: Seconds of waiting that outweigh one level of priority.
        clock: Where the time comes from; `kosine.clock.FakeClock` in tests.

    Raises:
        InputError: A bound or a time that makes no sense.
    """

    def __init__(
        self,
        encoder: StagedEncoder,
        *,
        max_wait_ms: float = 0.0,
        max_batch_tokens: int = 4_096,
        max_queue_tokens: int = 65_536,
        max_queue_requests: int = 8_192,
        max_queue_bytes: int = 16 << 20,
        ageing_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (
            ("max_batch_tokens", max_batch_tokens),
            ("max_queue_tokens", max_queue_tokens),
            ("max_queue_requests", max_queue_requests),
            ("max_queue_bytes", max_queue_bytes),
        ):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}", limit="at least 1", remedy=f"raise {name}")
        if not 0.0 <= max_wait_ms < math.inf:
            raise InputError(f"max_wait_ms={max_wait_ms!r}", limit="0 or more milliseconds")
        if not 0.0 < ageing_s < math.inf:
            raise InputError(f"ageing_s={ageing_s!r}", limit="more than 0 seconds")
        limits = Limits(
            batch_tokens=max_batch_tokens,
            wait_s=max_wait_ms / 1e3,
            queue_tokens=max_queue_tokens,
            queue_requests=max_queue_requests,
            queue_bytes=max_queue_bytes,
            ageing_s=ageing_s,
        )
        self._clock = clock or SystemClock()
        self._max_tokens = encoder.max_tokens
        self._overheads: dict[Prompt, int] = {}
        self._pipeline = Pipeline(encoder, limits, self._clock)
        self._cancel = self._pipeline.cancel
        self._workers = Workers(self._pipeline)
        _batchers.add(self)

    # Submitting

    def submit(
        self,
        text_or_texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> BatchFuture:
        """Queue one request.

        Args:
            text_or_texts: A text, or several that are answered together.
            prompt_name: A prompt of the bundle, by name.
            prompt: A prompt of one's own; beats `prompt_name`.
            truncate_dim: Keep so many leading dimensions, then normalise.
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
        """
        if type(text_or_texts) is str:
            texts, single = [text_or_texts], True
        else:
            texts, single = _listed(text_or_texts)
        overhead = self._overhead(prompt_name, prompt)
        if not texts:
            return self._nothing(truncate_dim)
        job = Job(texts, utf8_sizes(texts), overhead, self._max_tokens)
        if single:
            job.single = True
        self._configure(job, prompt_name, prompt, truncate_dim, priority, deadline)
        job.owner = self._cancel
        job.future = future = new_future(job)
        self._workers.admit((job,))
        return future

    def submit_many(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[BatchFuture]:
        """Queue many requests at once: all of them, or none if they do not fit.

        Args:
            texts: One request each.
            prompt_name: As in `submit`, as are the others.

        Returns:
            A future of a (dim,) float32 array for each text. They succeed, fail and are
            cancelled independently. Vectors of one call that ran in one batch are rows of one
            array, and nobody else's: copy one to keep it for long without its neighbours.

        Raises:
            As `submit`.
        """
        if isinstance(texts, str):
            raise InputError(
                "submit_many was given one str", limit="a list of texts", remedy="use submit"
            )
        texts = list(texts)
        overhead = self._overhead(prompt_name, prompt)
        sizes = utf8_sizes(texts)
        futures: list[BatchFuture] = []
        jobs: list[Job] = []
        room = self._pipeline.schedule.part_tokens()
        for start, stop in cut(sizes, overhead, self._max_tokens, room, PART_TEXTS):
            job = Job(texts[start:stop], sizes[start:stop], overhead, self._max_tokens)
            job.grouped = True
            job.requests = job.count
            self._configure(job, prompt_name, prompt, truncate_dim, priority, deadline)
            job.owner = self._cancel
            job.futures = part = new_futures(job, job.count)
            jobs.append(job)
            futures += part
        if jobs:
            self._workers.admit(jobs)
        return futures

    async def aencode(
        self,
        text_or_texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
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
            priority=priority,
            deadline=deadline,
        )
        if _num_chars(text_or_texts) <= ON_LOOP_CHARS:
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

    def _configure(
        self,
        job: Job,
        prompt_name: str | None,
        prompt: str | None,
        truncate_dim: int | None,
        priority: int,
        deadline: float | None,
    ) -> None:
        """Check what differs from the defaults, and only that."""
        if prompt is not None or prompt_name is not None:
            job.prompt = _prompt(prompt_name, prompt)
        if deadline is not None:
            if not deadline > 0.0:
                raise DeadlineExceeded(
                    f"deadline={deadline!r}", limit="more than 0 seconds", remedy="allow more time"
                )
            job.deadline = self._clock.now() + deadline
        if truncate_dim is not None:
            job.truncate_dim = self._checked_dim(truncate_dim)
        if priority:
            if not isinstance(priority, int):
                raise InputError(f"priority={priority!r}", limit="a whole number")
            job.priority = priority

    def _checked_dim(self, truncate_dim: int) -> int:
        dim = self._pipeline.encoder.dim
        if not isinstance(truncate_dim, int) or not 1 <= truncate_dim <= dim:
            raise InputError(
                f"truncate_dim={truncate_dim!r}", limit=f"1 to {dim}", remedy="keep within it"
            )
        return truncate_dim

    def _nothing(self, truncate_dim: int | None) -> BatchFuture:
        """The answer to no texts at all."""
        dim = self._pipeline.encoder.dim
        future = new_future(Job([], [0], 0, 0))
        if truncate_dim is not None:
            dim = self._checked_dim(truncate_dim)
        future.settle(np.empty((0, dim), np.float32))
        return future

    def _overhead(self, prompt_name: str | None, prompt: str | None) -> int:
        """Tokens that every text has on top of its own; refuses a prompt that does not exist."""
        overhead = self._overheads.get(_prompt(prompt_name, None))
        if overhead is not None and prompt is None:
            return overhead
        if self._workers.forked:
            raise forked_error()
        if prompt is not None:
            if not isinstance(prompt, str):
                raise TextError(f"the prompt is {type(prompt).__name__}", limit="str")
            return self._overhead(None, None) + utf8_sizes([prompt])[0]
        prepared = self._pipeline.encoder.prepare([""], prompt_name=prompt_name)
        self._overheads[prompt_name, None] = prepared.batch.num_tokens
        return prepared.batch.num_tokens

    # Operating

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Stop accepting, and end the threads.

        Args:
            drain: Serve what is queued first; otherwise it fails with BatcherClosed. The batch
                that runs is finished either way.
            timeout: Seconds until everything that is still unanswered fails with BatcherClosed,
                the batch that runs included; None waits for ever.

        Returns:
            True if the threads ended in time. In a forked child there is nothing to close.
        """
        return self._workers.close(drain, timeout)

    def health(self) -> Health:
        """How the batcher is, at this moment; replaces a worker that it finds dead."""
        return self._workers.health()

    def stats(self) -> BatcherStats:
        """All numbers at this moment."""
        if self._workers.forked:
            raise forked_error()
        return self._pipeline.snapshot()

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

    def __del__(self) -> None:
        workers: Workers | None = self.__dict__.get("_workers")
        if workers is not None:
            workers.abandon()


def _prompt(prompt_name: str | None, prompt: str | None) -> Prompt:
    """What is tokenised together: a prompt of one's own beats a name."""
    if prompt is not None:
        return None, prompt
    return NO_PROMPT if prompt_name is None else (prompt_name, None)


def _listed(texts: str | Sequence[str]) -> tuple[list[str], bool]:
    """The texts as a list, and whether it was a str (of a subclass) alone."""
    if isinstance(texts, str):
        return [texts], True
    if isinstance(texts, (bytes, bytearray)) or not hasattr(texts, "__iter__"):
        raise TextError(f"a text is {type(texts).__name__}", limit="str", remedy="decode it first")
    return list(texts), False


def _num_chars(text_or_texts: str | Sequence[str]) -> int:
    """How much text there is; `submit` says what is not text."""
    if isinstance(text_or_texts, list | tuple):
        return sum([len(text) for text in text_or_texts if isinstance(text, str)])
    return len(text_or_texts) if isinstance(text_or_texts, str) else 0


def _cancel_result(handed: asyncio.Future[BatchFuture]) -> None:
    if not handed.cancelled() and handed.exception() is None:
        handed.result().cancel()


_batchers: weakref.WeakSet[Batcher] = weakref.WeakSet()


def _fork_all() -> None:
    for batcher in list(_batchers):
        batcher._workers.fork()


def _close_all() -> None:
    for batcher in list(_batchers):
        with contextlib.suppress(Exception):
            batcher.close(drain=False, timeout=EXIT_TIMEOUT_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork_all)
atexit.register(_close_all)
