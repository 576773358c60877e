"""What is queued: texts, the call that they came with, and the futures that wait for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from kosine.errors import BatcherError
from kosine.packed import Float32, Packed

__all__ = ["Batch", "BatchFuture", "Call", "Owner", "Text", "futures_of", "pack"]


Answer = TypeVar("Answer")


class Owner(Protocol):
    """What a future needs of the batcher that will settle it."""

    def release(self, future: BatchFuture[Any]) -> None:
        """A future was cancelled: give its place back and tell who waits."""
        ...

    def is_own_thread(self) -> bool:
        """Whether the caller is a thread that settles futures."""
        ...


class BatchFuture(Future[Answer]):
    """The future of one text, or of several that are answered together.

    It can be cancelled until its answer is on the way, whether its texts wait or run; their
    places are free at once.

    Args:
        owner: The batcher's runner.
        index: The place of its text in the call; 0 where all texts of a call are its own.

    Attributes (changed under the batcher's lock, but for `settled`):
        call: What its texts came with, from the moment that it is queued until it is claimed.
        open: Nobody has claimed it: neither an answer, an error, a deadline nor `cancel`.
        keep: Called with the answer before anybody else has it, and may change it.
        settled: It has its result or exception, or never will. (`done()` takes a lock, which a
            forked child must not touch.)
    """

    # In the class: a future stores what differs, as there is one for each text.
    call: Call | None = None
    open = True
    settled = False
    keep: Callable[[Any], None] | None = None

    def __init__(self, owner: Owner, index: int = 0) -> None:
        super().__init__()
        self.owner = owner
        self.index = index

    def cancel(self) -> bool:
        """Cancel, at any stage before the answer is on the way. True if it is cancelled."""
        if not super().cancel():
            return False
        self.owner.release(self)
        return True

    def result(self, timeout: float | None = None) -> Answer:
        """As `concurrent.futures.Future.result`; BatcherError where it would wait for itself."""
        self._refuse_to_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `concurrent.futures.Future.exception`; BatcherError as `result`."""
        self._refuse_to_wait()
        return super().exception(timeout)

    def settle(self, value: Any) -> None:
        """Set the result; only for who has claimed it."""
        if self.keep is not None:
            self.keep(value)
        try:  # noqa: SIM105 - `suppress` would be an object more for each text
            self.set_result(value)
        except InvalidStateError:
            pass
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


@dataclass(slots=True, eq=False)
class Call:
    """The texts of one `submit` or `submit_many`, and who waits for them.

    Attributes:
        sentences: The token ids of each text.
        sizes: UTF-8 bytes of each text.
        futures: One for each text, or with `matrix` one for all. None in the place of one that
            was claimed while its text waited.
        skip: Leading tokens of each text that pooling leaves out.
        matrix: All texts are answered together, by one array (texts, dim).
        finish: truncate_dim and normalize_embeddings, as vectors are finished together.
        priority: Higher goes first.
        deadline: By the clock, in seconds; infinite where there is none.
        arrived: When it came.
        queued: When it came or was last served: what it is ordered by.
        next: The first text that was not taken.
        rows: (texts, dim) float32 of a matrix, filled as texts are answered; None before.
        waiting: How many texts wait, those that nobody waits for left out.
        tokens: Of these.
        open: How many of its futures nobody has claimed.
        missing: How many texts are not answered.
    """

    sentences: Sequence[Sequence[int]]
    sizes: Sequence[int]
    futures: list[BatchFuture[Any] | None]
    skip: int = 0
    matrix: bool = False
    finish: tuple[int | None, bool] = (None, True)
    priority: int = 0
    deadline: float = math.inf
    arrived: float = -math.inf
    queued: float = -math.inf
    next: int = 0
    rows: Float32 | None = None
    waiting: int = field(init=False)
    tokens: int = field(init=False)
    open: int = field(init=False)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = self.missing = len(self.sizes)
        self.tokens = sum(map(len, self.sentences))
        self.open = len(self.futures)
        for future in self.futures:
            if future is not None:
                future.call = self

    def remaining(self) -> Iterator[Text]:
        """The texts that wait, in order."""
        futures, matrix, sentences = self.futures, self.matrix, self.sentences
        for place in range(self.next, len(sentences)):
            future = futures[0 if matrix else place]
            if future is not None and future.open:
                yield Text(self, place, future, len(sentences[place]))


class Text(NamedTuple):
    """One text that is taken.

    Attributes:
        call: What it came with.
        place: Where in the call.
        future: Who waits for it.
        tokens: How many it has.
    """

    call: Call
    place: int
    future: BatchFuture[Any]
    tokens: int


@dataclass(slots=True, eq=False)
class Batch:
    """What runs next, and what is dropped on the way to it."""

    texts: list[Text] = field(default_factory=list)
    tokens: int = 0
    shed: list[Text] = field(default_factory=list)


def pack(texts: Sequence[Text]) -> Packed:
    """The tokens of texts, which may come from several calls, as one batch in their order."""
    sentences = [text.call.sentences[text.place] for text in texts]
    skips = [text.call.skip for text in texts]
    return Packed.of(sentences, np.array(skips, np.int32) if any(skips) else None)


def futures_of(texts: Iterable[Text]) -> list[BatchFuture[Any]]:
    """Each future once, in order."""
    return list({text.future: None for text in texts})
