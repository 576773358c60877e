"""Texts of a request to vectors: in parts that the queue can take, tokenised off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kosine.encoder import DOCUMENT_PROMPTS
from kosine.errors import DeadlineExceeded, InputError, QueueFull, TextTooLong
from kosine.packed import Float32
from kosine.serving.http.models import Model
from kosine.serving.http.problems import Problem
from kosine.serving.http.stages import TokenIds
from kosine.serving.request import BatchFuture

__all__ = ["Embedded", "check_dimensions", "embed", "prompt_for", "refuse_long"]

# Fewer characters are tokenised faster than another thread is woken.
ON_LOOP_CHARACTERS: Final = 1_024
# Calls of one request that wait or run at a time: one runs while the next is tokenised.
CALLS_AHEAD: Final = 2

_pool = ThreadPoolExecutor(2, thread_name_prefix="kosine-tokenise")


@dataclass(slots=True)
class Embedded:
    """The vectors of a request, and what they took.

    Attributes:
        vectors: (n, dim) float32.
        tokens: After truncation, special tokens included.
        tokenize_s, queue_s, run_s: Seconds: tokenising; from then until the batch that completed
            the answer began; that batch. Sums where the request went in several calls.
    """

    vectors: Float32
    tokens: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    run_s: float = 0.0


@dataclass(slots=True)
class Submitted:
    """One call of the batcher, under way."""

    future: BatchFuture[Any]
    tokens: int
    tokenize_s: float
    since: float
    ran: tuple[float, float] = (0.0, 0.0)


async def embed(
    model: Model,
    texts: Sequence[str],
    *,
    deadline: float,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
    normalize_embeddings: bool = True,
) -> Embedded:
    """The vectors of all texts, in their order. Cancelled, it gives its places in the queue back.

    Args:
        model: Computes them.
        texts: Any number; `TokenIds` or plain texts, not both.
        deadline: Until when, by `time.monotonic`.
        prompt_name: A prompt of the bundle.
        truncate_dim: Keep so many dimensions.
        normalize_embeddings: Vectors of length 1.

    Raises:
        KosineError: As `Batcher.submit`, and what the engine raised.
    """
    options = {
        "prompt_name": prompt_name,
        "truncate_dim": truncate_dim,
        "normalize_embeddings": normalize_embeddings,
    }
    step = model.chunk
    if len(texts) <= step:
        call = await _submit(model, texts, deadline, options)
        return _measured(Embedded(await asyncio.wrap_future(call.future)), call)
    result = Embedded(np.empty((len(texts), truncate_dim or model.encoder.dim), np.float32))
    calls: deque[tuple[int, Submitted]] = deque()

    async def collect() -> None:
        begin, call = calls[0]
        rows = await asyncio.wrap_future(call.future)
        calls.popleft()
        result.vectors[begin : begin + len(rows)] = rows
        _measured(result, call)

    try:
        for begin in range(0, len(texts), step):
            while len(calls) >= CALLS_AHEAD:
                await collect()
            part = texts[begin : begin + step]
            while True:
                try:
                    call = await _submit(model, part, deadline, options)
                    break
                except QueueFull as error:
                    # The request was let in with its first part: the others wait their turn.
                    if begin == 0:
                        raise
                    if calls:
                        await collect()
                    else:
                        await asyncio.sleep(min(error.retry_after, 0.1))
                except InputError as error:
                    if begin == 0:
                        raise
                    raise InputError(
                        f"counted from text {begin}: {error.problem}",
                        limit=error.limit,
                        remedy=error.remedy,
                    ) from None
            calls.append((begin, call))
        while calls:
            await collect()
    finally:
        for _, call in calls:
            call.future.cancel()
    return result


async def _submit(
    model: Model, texts: Sequence[str], deadline: float, options: dict[str, Any]
) -> Submitted:
    staged = model.staged

    def submit() -> Submitted:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline has passed", remedy="allow more time")
        future = model.batcher.submit(texts, deadline=left, **options)
        seen = staged.seen
        call = Submitted(future, seen.tokens, seen.seconds, time.perf_counter())
        # Called in the thread that has just run the batch, before it runs another.
        future.add_done_callback(lambda _: setattr(call, "ran", staged.last_run))
        return call

    if sum(map(len, texts)) <= ON_LOOP_CHARACTERS:
        return submit()
    handed = asyncio.get_running_loop().run_in_executor(_pool, submit)
    try:
        return await asyncio.shield(handed)
    except asyncio.CancelledError:
        handed.add_done_callback(_cancel_call)
        raise


def _cancel_call(handed: asyncio.Future[Submitted]) -> None:
    if not handed.cancelled() and handed.exception() is None:
        handed.result().future.cancel()


def _measured(result: Embedded, call: Submitted) -> Embedded:
    began, ended = call.ran
    result.tokens += call.tokens
    result.tokenize_s += call.tokenize_s
    result.queue_s += max(0.0, began - call.since)
    result.run_s += max(0.0, ended - began)
    return result


def check_dimensions(model: Model, field: str, wanted: int | None) -> None:
    """Raise the Problem of a field that asks for more dimensions than a model's vectors have."""
    if wanted is not None and wanted > model.encoder.dim:
        raise Problem(
            "invalid",
            f"{field} is {wanted}; this model's vectors have {model.encoder.dim}; ask for fewer",
            param=field,
        )


def prompt_for(model: Model, role: str | None) -> str | None:
    """The bundle's prompt for a role: "query", "document", or a task that it may have one for.

    None where it has none: such models need no prompt, or have a default.
    """
    names = DOCUMENT_PROMPTS if role in DOCUMENT_PROMPTS else (role,)
    return next((name for name in names if name in model.manifest.prompts), None)


async def refuse_long(model: Model, texts: Sequence[str], prompt_name: str | None) -> None:
    """For requests that do not want their texts cut.

    Raises:
        TextTooLong: A text has more than `max_tokens` tokens.
    """
    if isinstance(texts[0], TokenIds):
        return  # cut or refused when they were read
    counts = await asyncio.get_running_loop().run_in_executor(
        _pool, lambda: model.encoder.count_tokens(list(texts), prompt_name)
    )
    for index, count in enumerate(counts if isinstance(counts, list) else [counts]):
        if count > model.encoder.max_tokens:
            raise TextTooLong(
                f"text {index} has {count} tokens",
                limit=f"at most {model.encoder.max_tokens}, special tokens and prompt included",
                remedy="shorten it, or let it be truncated",
            )
