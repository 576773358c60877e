"""From a caller to the queue: a call is checked, looked up in the cache, tokenised and queued."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, TypedDict

import numpy as np

from kosine.errors import (
    BackendError,
    BatcherClosed,
    DeadlineExceeded,
    InputError,
    TextError,
    UnknownPrompt,
)
from kosine.packed import Float32
from kosine.serving.cache import Key, VectorCache
from kosine.serving.limits import is_number, is_whole
from kosine.serving.request import BatchFuture, Call
from kosine.serving.stages import Prepared, StagedEncoder
from kosine.serving.workers import Workers, forked_error
from kosine.texts import as_str, as_texts, check_characters

__all__ = ["Admission", "SubmitOptions", "is_short", "read_texts"]

# An event loop has more tokenised than this beside it.
ON_LOOP_TEXTS: Final = 16
ON_LOOP_CHARS: Final = 1_024


class SubmitOptions(TypedDict, total=False):
    """What `Batcher.submit` takes by name."""

    prompt_name: str | None
    prompt: str | None
    truncate_dim: int | None
    normalize_embeddings: bool
    priority: int
    deadline: float | None


class Admission:
    """The way of a call into the queue, in the thread that brings it.

    Args:
        encoder: What tokenises.
        workers: Whose queue it is.
        cache: Vectors of texts that have been answered.
    """

    def __init__(self, encoder: StagedEncoder, workers: Workers, cache: VectorCache) -> None:
        self._encoder = encoder
        self._workers = workers
        self._runner = workers.runner
        self._queue = workers.runner.queue
        self._counters = workers.runner.counters
        self._now = workers.clock.now
        self._cache = cache
        self._caches = bool(cache)
        # Tokens of a text that has none of its own; known from the first call on.
        self._special_tokens: int | None = None

    def admit(
        self,
        texts: list[str],
        sizes: list[int],
        futures: Sequence[BatchFuture[Any]],
        *,
        matrix: bool = False,
        separate: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
        priority: int = 0,
        deadline: float | None = None,
    ) -> None:
        """Queue the texts of one call: all of them, or an error.

        Args:
            texts, sizes: As `read_texts` gives them.
            futures: One for each text, or with `matrix` one for all.
            matrix: All texts are answered together, by one array (texts, dim).
            separate: A text that cannot be tokenised fails its own future.
            prompt_name: As in `Batcher.submit`, as are the others and the errors.
        """
        if prompt is not None and not isinstance(prompt, str):
            raise TextError(
                f"the prompt is a {type(prompt).__name__}", limit="a str", remedy="pass a str"
            )
        if truncate_dim is not None:
            dim = self._encoder.dim
            if not is_whole(truncate_dim) or not 1 <= truncate_dim <= dim:
                raise InputError(
                    f"truncate_dim={truncate_dim!r}", limit=f"1 to {dim}", remedy="keep within it"
                )
        if type(priority) is not int and not is_whole(priority):
            raise InputError(
                f"priority={priority!r}", limit="a whole number", remedy="leave it out for 0"
            )
        started = self._now()
        until = math.inf
        if deadline is not None:
            if type(deadline) is not float and not is_number(deadline):
                raise InputError(
                    f"deadline={deadline!r}",
                    limit="a number of seconds",
                    remedy="leave it out for none",
                )
            if not deadline > 0.0:
                raise DeadlineExceeded(
                    f"deadline={deadline!r}", limit="more than 0 seconds", remedy="allow more time"
                )
            until = started + float(deadline)
        if self._caches and texts:
            options = (prompt_name, prompt, truncate_dim, normalize_embeddings)
            keys = [Key.of(text, *options) for text in texts]
            left = self._answer_from_cache(keys, futures, matrix)
            if not left:
                return
            if len(left) < len(texts):
                texts, sizes = [texts[i] for i in left], [sizes[i] for i in left]
                futures = [futures[i] for i in left]
        if self._special_tokens is None:
            self._special_tokens = self._count_special_tokens()
        lock = self._runner.lock
        # What is certain first, so that refusing under overload costs next to nothing.
        least = self._special_tokens * len(texts)
        with lock:
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
        now = self._now()
        counters = self._counters
        with lock:
            if prepared is not None:
                waiting: list[BatchFuture[Any] | None] = [*good]
                given = (prepared.sentences, sizes, waiting, prepared.skip, matrix)
                call = Call(*given, (truncate_dim, normalize_embeddings), priority, until)
                self._refuse(call.tokens, len(good), sum(sizes), priority, until, now)
                self._workers.enqueue(call, now)
                counters.truncated += prepared.truncated
                counters.unknown += prepared.unknown
            counters.stages["prepare"].observe(now - started)
            if failed:
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
            if self._workers.closed:
                self._refuse_closed()
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

    def _refuse(
        self, tokens: int, requests: int, nbytes: int, priority: int, deadline: float, now: float
    ) -> None:
        """Raise what stands against a call of this size. Holds the lock."""
        if self._workers.closed:
            self._refuse_closed()
        refusal = self._queue.refusal(tokens, requests, nbytes, priority, deadline, now)
        if refusal is not None:
            self._counters.reject(refusal.what)
            raise refusal.error()

    def _refuse_closed(self) -> None:
        workers = self._workers
        if workers.forked:
            raise forked_error()
        if workers.exiting and threading.current_thread() is not threading.main_thread():
            raise SystemExit  # ends a thread quietly, as calls into an engine do from now on
        raise BatcherClosed("the batcher is closed", remedy="make a new Batcher")

    def _count_special_tokens(self) -> int:
        if self._workers.forked:
            raise forked_error()
        return len(self._encoder.prepare([""], prompt="").sentences[0])


def read_texts(
    value: str | Iterable[str], failed: dict[int, TextError] | None = None
) -> tuple[list[str], list[int], bool]:
    """The texts that a caller passed, their UTF-8 bytes, and whether it was one text alone.

    Raises:
        TextError: Something in there is no text. A str that is none, for a character in it, is
            written into `failed` instead, by its position, where that is given.
    """
    if type(value) is str:  # as most requests to a service are
        return [value], [check_characters(value, "text 0")], True
    given, single, _ = as_texts(value, "texts")
    texts = [as_str(text, f"text {i}") for i, text in enumerate(given)]
    try:
        sizes = [check_characters(text, f"text {i}") for i, text in enumerate(texts)]
    except TextError:
        if failed is None:
            raise
        sizes = [0] * len(texts)
        for i, text in enumerate(texts):
            try:
                sizes[i] = check_characters(text, f"text {i}")
            except TextError as error:
                failed[i] = error
    return texts, sizes, single


def to_tokens(
    encoder: StagedEncoder,
    texts: list[str],
    separate: bool,
    prompt_name: str | None,
    prompt: str | None,
) -> tuple[Prepared | None, dict[int, Exception]]:
    """The texts, tokenised, without those that cannot be, and the errors of these by position.

    Only texts that are answered separately fail apart; otherwise the error is raised.
    """
    failed: dict[int, Exception] = {}
    try:
        prepared = encoder.prepare(texts, prompt_name=prompt_name, prompt=prompt)
        return _counted(prepared, texts), failed
    except UnknownPrompt:
        raise
    except Exception:
        if not separate:
            raise
    prepare = partial(encoder.prepare, prompt_name=prompt_name, prompt=prompt)
    for i, text in enumerate(texts):
        try:
            prepare([text])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this text's
            failed[i] = error
    good = [text for i, text in enumerate(texts) if i not in failed]
    return (_counted(prepare(good), good) if good else None), failed


def _counted(prepared: Prepared, texts: Sequence[str]) -> Prepared:
    if len(prepared.sentences) != len(texts):
        raise BackendError(
            f"the encoder prepared {len(prepared.sentences)} texts",
            limit=f"expected {len(texts)}",
            remedy="report this encoder",
        )
    return prepared


def is_short(texts: str | Sequence[str]) -> bool:
    """Whether tokenising takes no longer than handing it to another thread would."""
    if isinstance(texts, str):
        return len(texts) <= ON_LOOP_CHARS
    if not isinstance(texts, (list, tuple)) or len(texts) > ON_LOOP_TEXTS:
        return False
    return sum(len(text) for text in texts if isinstance(text, str)) <= ON_LOOP_CHARS
