"""Many callers, one encoder: the door of dynamic batching in the process.

A call is checked, tokenised in its own thread and queued; `kosine.serving.queue` decides what
goes when, `kosine.serving.runner` has the thread that does it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np

from kosine.clock import Clock, SystemClock
from kosine.errors import (
    BackendError,
    BatcherClosed,
    DeadlineExceeded,
    InputError,
    KosineError,
    QueueFull,
    TextError,
    UnknownPrompt,
)
from kosine.packed import Float32, Packed
from kosine.serving.queue import Limits, Refusal
from kosine.serving.request import BatchFuture, Call
from kosine.serving.runner import Health, Runner, RunsBatches, forked_error
from kosine.serving.stats import BatcherStats
from kosine.texts import as_str, as_texts, check_characters

__all__ = ["Batcher", "Health", "StagedEncoder"]

# `aencode` tokenises more than this beside the event loop.
ON_LOOP_TEXTS: Final = 16
ON_LOOP_CHARS: Final = 1_024
# At interpreter exit a batch that hangs must not hang the exit with it.
EXIT_TIMEOUT_S: Final = 5.0


class Prepared(Protocol):
    """Tokenised texts.

    Attributes:
        batch: All texts, in order.
        truncated: How many were cut.
        unknown: How many of the tokens are unknown to the tokenizer.
    """

    @property
    def batch(self) -> Packed: ...
    @property
    def truncated(self) -> int: ...
    @property
    def unknown(self) -> int: ...


class StagedEncoder(RunsBatches, Protocol):
    """An encoder as the batcher uses it: one method per stage, called from several threads.

    Attributes:
        max_batch_tokens: Tokens that suit one call of its backend.
    """

    @property
    def max_batch_tokens(self) -> int: ...

    def prepare(
        self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Prepared: ...


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
        clock: Where the time comes from; `kosine.clock.FakeClock` in tests.

    Raises:
        InputError: A bound or a time that makes no sense.
    """

    _make_runner = Runner

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
        clock: Clock | None = None,
    ) -> None:
        if max_batch_tokens is None:
            max_batch_tokens = encoder.max_batch_tokens
        for name, value in (
            ("max_batch_tokens", max_batch_tokens),
            ("max_queue_tokens", max_queue_tokens),
            ("max_queue_requests", max_queue_requests),
            ("max_queue_bytes", max_queue_bytes),
        ):
            if not _is_whole(value) or value < 1:
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
        self._encoder = encoder
        self._clock = clock or SystemClock()
        self._runner = self._make_runner(encoder, limits, self._clock)
        self._special_tokens: int | None = None
        _runners.add(self._runner)
        # At exit `_end_all` does more.
        weakref.finalize(self, self._runner.abandon).atexit = False

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
        """Queue one request. Its texts are tokenised in the calling thread.

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
            BatcherError: No thread can be started.
        """
        texts, sizes, single = _read(text_or_texts)
        future = BatchFuture(self._runner, len(texts), matrix=not single)
        self._admit(
            texts, sizes, [future], False, prompt_name, prompt, truncate_dim, priority, deadline
        )
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
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[BatchFuture]:
        """Queue many requests at once: all of them, or none if they do not fit.

        Args:
            texts: One request each.
            prompt_name: As in `submit`, as are the others.

        Returns:
            A future of a (dim,) float32 array for each text. They succeed, fail and are
            cancelled independently; a text that cannot be tokenised fails its own future.

        Raises:
            As `submit`.
        """
        if isinstance(texts, str):
            raise InputError(
                "submit_many was given one str", limit="a list of texts", remedy="use submit"
            )
        texts, sizes, _ = _read(texts)
        futures = [BatchFuture(self._runner) for _ in texts]
        self._admit(
            texts, sizes, futures, True, prompt_name, prompt, truncate_dim, priority, deadline
        )
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
        if _is_short(text_or_texts):
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
        futures: Sequence[BatchFuture],
        separate: bool,
        prompt_name: str | None,
        prompt: str | None,
        truncate_dim: int | None,
        priority: int,
        deadline: float | None,
    ) -> None:
        """Check, tokenise and queue the texts of one call: all of them, or an error."""
        if prompt is not None and not isinstance(prompt, str):
            raise TextError(f"the prompt is {type(prompt).__name__}", limit="str")
        if truncate_dim is not None:
            dim = self._encoder.dim
            if not _is_whole(truncate_dim) or not 1 <= truncate_dim <= dim:
                raise InputError(
                    f"truncate_dim={truncate_dim!r}", limit=f"1 to {dim}", remedy="keep within it"
                )
        if not _is_whole(priority):
            raise InputError(f"priority={priority!r}", limit="a whole number")
        until = math.inf
        if deadline is not None:
            if not deadline > 0.0:
                raise DeadlineExceeded(
                    f"deadline={deadline!r}", limit="more than 0 seconds", remedy="allow more time"
                )
            until = self._clock.now() + deadline
        runner = self._runner
        # What is certain first, so that refusing under overload costs next to nothing.
        least = self._least_tokens() * len(texts)
        with runner.lock:
            self._refuse(least, len(futures), sum(sizes), priority, until)
        if not texts:
            return
        started = self._clock.now()
        prepared, failed = self._tokenise(texts, separate, prompt_name, prompt)
        took = self._clock.now() - started
        good = futures
        if failed:
            kept = [i for i in range(len(texts)) if i not in failed]
            sizes, good = [sizes[i] for i in kept], [futures[i] for i in kept]
        with runner.lock:
            if prepared is not None:
                tokens = prepared.batch.num_tokens
                self._refuse(tokens, len(good), sum(sizes), priority, until)
                call = Call(
                    prepared.batch,
                    sizes,
                    good,
                    truncate_dim=truncate_dim,
                    priority=priority,
                    deadline=until,
                )
                runner.enqueue(call)
                runner.counters.truncated += prepared.truncated
                runner.counters.unknown += prepared.unknown
            runner.counters.stages["prepare"].observe(took)
            runner.counters.submitted += len(failed)
            runner.counters.failed += len(failed)
        for index, error in failed.items():
            futures[index].open = False
            futures[index].settle_error(error)

    def _refuse(
        self, tokens: int, requests: int, nbytes: int, priority: int, deadline: float
    ) -> None:
        """Raise what stands against a call of this size. Holds the lock."""
        runner = self._runner
        if runner.forked:
            raise forked_error()
        if runner.exiting and threading.current_thread() is not threading.main_thread():
            raise SystemExit  # ends a thread quietly, as calls into an engine do from now on
        if runner.closed:
            raise BatcherClosed("the batcher is closed", remedy="make a new Batcher")
        refusal = runner.queue.refusal(
            tokens, requests, nbytes, priority, deadline, self._clock.now()
        )
        if refusal is not None:
            runner.counters.reject(refusal.what)
            raise refusal_error(refusal)

    def _tokenise(
        self, texts: list[str], separate: bool, prompt_name: str | None, prompt: str | None
    ) -> tuple[Prepared | None, dict[int, Exception]]:
        """The texts, tokenised, without those that cannot be, and the errors of these by position.

        Only texts that are answered separately fail apart; otherwise the error is raised.
        """
        failed: dict[int, Exception] = {}
        prepare = partial(self._encoder.prepare, prompt_name=prompt_name, prompt=prompt)
        try:
            return _check_count(prepare(texts), len(texts)), failed
        except UnknownPrompt:
            raise
        except Exception:
            if not separate:
                raise
        parts = [range(len(texts))]
        while parts:
            part = parts.pop()
            try:
                prepare(texts[part.start : part.stop])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is some text's
                middle = (part.start + part.stop) // 2
                if len(part) > 1:
                    parts += [range(middle, part.stop), range(part.start, middle)]
                else:
                    failed[part.start] = error
        good = [text for i, text in enumerate(texts) if i not in failed]
        return (_check_count(prepare(good), len(good)) if good else None), failed

    def _least_tokens(self) -> int:
        """Tokens of a text that has none of its own: its special tokens."""
        if self._special_tokens is None:
            if self._runner.forked:
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
        return self._runner.close(drain, timeout)

    def health(self) -> Health:
        """How the batcher is, at this moment; replaces a thread that it finds dead."""
        return self._runner.health()

    def stats(self) -> BatcherStats:
        """All numbers at this moment."""
        return self._runner.stats()

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


def _read(value: str | Iterable[str]) -> tuple[list[str], list[int], bool]:
    """The texts that a caller passed, their UTF-8 bytes, and whether it was one text alone.

    Raises:
        TextError: Something in there is no text.
    """
    if type(value) is str:  # as most requests to a service are
        return [value], [check_characters(value, "text 0")], True
    given, single, _ = as_texts(value, "texts")
    texts = [as_str(text, f"text {i}") for i, text in enumerate(given)]
    return texts, [check_characters(text, f"text {i}") for i, text in enumerate(texts)], single


def refusal_error(refusal: Refusal) -> KosineError:
    """What the caller gets: QueueFull, or InputError if it could never fit."""
    what, value, limit, retry_after = refusal
    if what == "deadline":
        return QueueFull(
            f"the result is predicted in {value:.3f} s",
            limit=f"the deadline is in {limit:.3f} s",
            remedy=f"try again in {retry_after:.3f} s, or allow more time",
            retry_after=retry_after,
        )
    if retry_after == math.inf:
        return InputError(
            f"the call has {value:,.0f} {what}",
            limit=f"the whole queue holds {limit:,.0f}",
            remedy=f"send it in parts, or raise max_queue_{what}",
        )
    return QueueFull(
        f"the queue would hold {value:,.0f} {what}",
        limit=f"max_queue_{what}={limit:,.0f}",
        remedy=f"try again in {retry_after:.3f} s",
        retry_after=retry_after,
    )


def _is_whole(value: object) -> bool:
    return type(value) is int or isinstance(value, np.integer)


def _check_count(prepared: Prepared, count: int) -> Prepared:
    if len(prepared.batch) != count:
        raise BackendError(
            f"the encoder prepared {len(prepared.batch)} texts", limit=f"expected {count}"
        )
    return prepared


def _is_short(texts: str | Sequence[str]) -> bool:
    """Whether tokenising takes no longer than handing it to another thread would."""
    if isinstance(texts, str):
        return len(texts) <= ON_LOOP_CHARS
    if not isinstance(texts, (list, tuple)) or len(texts) > ON_LOOP_TEXTS:
        return False
    return sum(len(text) for text in texts if isinstance(text, str)) <= ON_LOOP_CHARS


def _cancel_result(handed: asyncio.Future[BatchFuture]) -> None:
    if not handed.cancelled() and handed.exception() is None:
        handed.result().cancel()


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


def _fork_all() -> None:
    for runner in list(_runners):
        runner.fork()


def _end_all() -> None:
    for runner in list(_runners):
        with contextlib.suppress(Exception):
            runner.end_with_process(EXIT_TIMEOUT_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork_all)
atexit.register(_end_all)
