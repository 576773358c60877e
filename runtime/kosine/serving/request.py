"""What is queued: texts, the call that they came with, and the futures that wait for them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from kosine.errors import BatcherError
from kosine.packed import Float32, Packed

__all__ = ["BatchFuture", "Call", "Owner", "Text", "pack"]


class Owner(Protocol):
    """What a future needs of the batcher that will settle it."""

    def release(self, future: BatchFuture) -> None:
        """A future was cancelled: give its place back and tell who waits."""
        ...

    def is_own_thread(self) -> bool:
        """Whether the caller is a thread that settles futures."""
        ...


class BatchFuture(Future[Any]):
    """The future of one text, or of several that are answered together.

    It can be cancelled until its answer is on the way, whether its texts wait or run; their
    places are free at once.

    Args:
        owner: The batcher's runner.
        count: How many texts it waits for.
        matrix: The answer is (count, dim), not the (dim,) of a single text.

    Attributes (changed under the batcher's lock, but for `settled`):
        texts: What it waits for, until it is claimed.
        waiting: How many of them are in the queue.
        missing: How many of them are not answered.
        rows: (count, dim) float32, filled as texts are answered; None before and for one text.
        open: Nobody has claimed it: neither an answer, an error, a deadline nor `cancel`.
        settled: It has its result or exception, or never will. (`done()` takes a lock, which a
            forked child must not touch.)
    """

    def __init__(self, owner: Owner, count: int = 1, *, matrix: bool = False) -> None:
        super().__init__()
        self.owner = owner
        self.texts: Sequence[Text] = ()
        self.waiting = self.missing = count
        self.matrix = matrix
        self.rows: Float32 | None = None
        self.open = True
        self.settled = False

    def cancel(self) -> bool:
        """Cancel, at any stage before the answer is on the way. True if it is cancelled."""
        if not super().cancel():
            return False
        self.owner.release(self)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """As `concurrent.futures.Future.result`; BatcherError where it would wait for itself."""
        self._refuse_to_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `concurrent.futures.Future.exception`; BatcherError as `result`."""
        self._refuse_to_wait()
        return super().exception(timeout)

    def settle(self, value: object) -> None:
        """Set the result; only for who has claimed it."""
        with suppress(InvalidStateError):
            self.set_result(value)
        self.settled = True

    def settle_error(self, error: BaseException) -> None:
        """Set the exception; only for who has claimed it, or cleans up after who had."""
        with suppress(InvalidStateError):
            self.set_exception(error)
        self.settled = True

    def orphan(self, error: BaseException) -> None:
        """Fail it in a forked child, where nobody settles it and its lock may be held for ever."""
        if not self.settled:
            # A fresh state: the callbacks belong to threads and event loops of the parent.
            super().__init__()
            self.open = False
            self.settle_error(error)

    def _refuse_to_wait(self) -> None:
        if not self.settled and self.owner.is_own_thread() and not self.done():
            raise BatcherError(
                "a done-callback waits for its own batcher",
                limit="callbacks run in the thread that would have to answer",
                remedy="wait in another thread, or go on in another callback",
            )


class Call:
    """What the texts of one `submit` or `submit_many` have in common, and those that wait.

    Args:
        packed: All its texts, tokenised.
        sizes: UTF-8 bytes of each text.
        futures: One for all texts, or one for each.
        truncate_dim: Dimensions to keep, or None.
        priority: Higher goes first.
        deadline: By the clock, in seconds; infinite where there is none.

    Attributes:
        starts: `packed.starts` as a list.
        texts: Those that have not been taken, first come first.
        dead: How many of them nobody waits for any more.
        tokens: Of those that somebody waits for.
        open: How many of its futures nobody has claimed.
        arrived: When it came.
        queued: When it came or was last served: what it is ordered by.
    """

    __slots__ = (
        *("arrived", "dead", "deadline", "futures", "open", "packed", "priority", "queued"),
        *("starts", "texts", "tokens", "truncate_dim"),
    )

    def __init__(
        self,
        packed: Packed,
        sizes: Sequence[int],
        futures: Sequence[BatchFuture],
        *,
        truncate_dim: int | None = None,
        priority: int = 0,
        deadline: float = math.inf,
    ) -> None:
        self.packed = packed
        self.starts: list[int] = packed.starts.tolist()
        self.futures = futures
        self.truncate_dim = truncate_dim
        self.priority = priority
        self.deadline = deadline
        self.arrived = self.queued = -math.inf
        self.dead = 0
        self.tokens = self.starts[-1]
        self.open = len(futures)
        if len(futures) == 1:
            texts = [Text(self, i, size, futures[0]) for i, size in enumerate(sizes)]
            futures[0].texts = texts
        else:
            texts = [Text(self, i, size, futures[i]) for i, size in enumerate(sizes)]
            for text in texts:
                text.future.texts = (text,)
        self.texts = deque(texts)


class Text:
    """One text in the queue or in a batch.

    Attributes:
        index: Its place in the call.
        tokens: How many it has.
        nbytes: Its UTF-8 bytes.
        future: Who waits for it.
        waits: It is in the queue, and somebody waits for it.
    """

    __slots__ = ("call", "future", "index", "nbytes", "tokens", "waits")

    def __init__(self, call: Call, index: int, nbytes: int, future: BatchFuture) -> None:
        self.call = call
        self.index = index
        self.nbytes = nbytes
        self.tokens = call.starts[index + 1] - call.starts[index]
        self.future = future
        self.waits = True

    @property
    def position(self) -> int:
        """Its place among the texts of its future."""
        return self.index if self.future.matrix else 0


def pack(texts: Sequence[Text]) -> Packed:
    """The tokens of texts, which may come from several calls, as one batch in their order."""
    call = texts[0].call
    if len(texts) == len(call.packed) and texts[-1].call is call:
        # Texts of one call follow one another: these are all of them.
        return call.packed
    sentences = [
        text.call.packed.ids[text.call.starts[text.index] : text.call.starts[text.index + 1]]
        for text in texts
    ]
    if all(text.call.packed.skip is None for text in texts):
        return Packed.of(sentences)
    skips = [0 if t.call.packed.skip is None else t.call.packed.skip[t.index] for t in texts]
    return Packed.of(sentences, np.array(skips, np.int32))
