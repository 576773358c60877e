"""`concurrent.futures.Future`, cheap enough for one per text, that gives its place back."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kosine.job import Job

__all__ = ["BatchFuture", "LeanFuture", "new_future", "new_futures", "settle_all"]

logger = logging.getLogger("kosine")

PENDING: Final = "PENDING"
FINISHED: Final = "FINISHED"


class BatchFuture(Future[Any]):
    """The future of one text, or of one request.

    It can be cancelled until its answer is on the way: cancelling gives its place back at once,
    whether it waits, is being tokenised or is in the batch that runs. Who may settle it - the
    answer, an error, a deadline or the caller who cancels - is decided in the batcher's books,
    so that exactly one of them ever touches its state.

    Args:
        job: What was submitted.
        index: Which text of it; 0 for a whole request.
    """

    _index: int = 0
    # Anything but None: it always has a condition, which `settle_all` has to mind.
    _made: Watch | bool | None = True

    def __init__(self, job: Job, index: int = 0) -> None:
        super().__init__()
        self._job = job
        self._index = index

    def cancel(self) -> bool:
        """Cancel, at any stage before the answer is on the way. True if it is cancelled."""
        if not self._job.cancel(self._index):
            return self.cancelled()
        if not super().cancel():
            return False
        # Tells `wait` and `as_completed`, which plain `cancel` leaves to the executor.
        self.set_running_or_notify_cancel()
        return True

    def settle(self, value: object) -> None:
        """Set the result; only for whom the books named."""
        with contextlib.suppress(InvalidStateError):
            self.set_result(value)

    def settle_error(self, error: BaseException) -> None:
        """Set the exception; only for whom the books named."""
        with contextlib.suppress(InvalidStateError):
            self.set_exception(error)

    def announce(self) -> None:
        """Tell who waits, if whoever settled it was killed before it could."""

    def orphan(self, error: BaseException) -> None:
        """Fail it in a forked child, where nobody settles it and its lock may be held."""
        self._condition = threading.Condition()
        # The callbacks belong to the parent's event loops and threads.
        self._waiters = []
        self._done_callbacks: list[Callable[[Future[Any]], object]] = []
        self.settle_error(error)


class Watch:
    """What a future has once somebody waits for it: the condition and who is to be told."""

    __slots__ = ("callbacks", "condition", "told", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[[Future[Any]], object]] = []
        self.told = False


class LeanFuture(BatchFuture):
    """A BatchFuture that makes its condition and lists when somebody asks for them.

    Most of thousands of futures are settled before anyone waits for them, and then need none.
    A waiter makes the watch first and looks at the state, under its condition, afterwards. Who
    settles writes the state under that condition too once there is a watch. Where there is none
    it takes no lock: under the GIL nothing comes between looking for a watch and writing two
    slots, and should a debugger manage to, it looks once more afterwards.
    """

    # Slots: stores into an instance dictionary cost several times as much, memory first of all.
    __slots__ = ("_exception", "_index", "_job", "_made", "_result", "_state")
    _state: str
    _result: Any
    _exception: BaseException | None
    _made: Watch | None

    def __init__(self, job: Job, index: int = 0) -> None:
        self._job = job
        self._index = index
        self._state = PENDING
        self._exception = self._made = None

    def _watch(self) -> Watch:
        made = self._made
        if made is None:
            # setdefault is atomic: two threads that come here together get the same one.
            self._made = made = self.__dict__.setdefault("_watch_made", Watch())
        return made

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        return self._watch().condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        return self._watch().waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Future[Any]], object]]:  # type: ignore[override]
        return self._watch().callbacks

    def result(self, timeout: float | None = None) -> Any:
        """As `concurrent.futures.Future.result`."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def settle(self, value: object) -> None:
        if self._made is None:
            self._result = value
            self._state = FINISHED
        if self._made is not None:
            with self._made.condition:
                self._result = value
                self._state = FINISHED
                self._tell(self._made)
            self._call_back(self._made)

    def settle_error(self, error: BaseException) -> None:
        watch = self._watch()
        with watch.condition:
            self._result = None
            self._exception = error
            self._state = FINISHED
            self._tell(watch)
        self._call_back(watch)

    def announce(self) -> None:
        watch = self._watch()
        with watch.condition:
            self._tell(watch)
        self._call_back(watch)

    def _tell(self, watch: Watch) -> None:
        """Wake who waits, once. Holds the condition."""
        if not watch.told:
            for waiter in watch.waiters:
                if self._exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            watch.told = True
        watch.condition.notify_all()

    def _call_back(self, watch: Watch) -> None:
        callbacks = watch.callbacks
        while callbacks:
            callback = callbacks.pop(0)
            try:
                callback(self)
            except Exception:
                logger.exception("a callback of a future raised")

    def orphan(self, error: BaseException) -> None:
        self.__dict__.clear()
        self._made = None
        # What was answered before the fork stays answered.
        if self._state == PENDING:
            self.settle_error(error)


# What the lean one relies on: exactly these fields in the standard library's Future, and the GIL,
# without which its order of stores would need fences.
LAYOUT: Final = frozenset(
    {"_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks"}
)
_gil: Final = getattr(sys, "_is_gil_enabled", lambda: True)()
_lean: Final = _gil and frozenset(vars(Future())) == LAYOUT

new_future: type[BatchFuture] = LeanFuture if _lean else BatchFuture


def new_futures(job: Job, count: int) -> list[BatchFuture]:
    """One future for each of a job's texts."""
    if not _lean:
        return [BatchFuture(job, index) for index in range(count)]
    # `LeanFuture(job, index)` without the calls, which are half of its cost.
    futures = list(map(LeanFuture.__new__, repeat(LeanFuture, count)))
    for index, future in enumerate(futures):
        future._job = job
        future._index = index
        future._state = PENDING
        future._exception = future._made = None
    return list(futures)


def settle_all(futures: Sequence[BatchFuture], values: Sequence[object]) -> None:
    """Set the result of each; only for whom the books named."""
    watched: list[tuple[BatchFuture, object]] = []
    for future, value in zip(futures, values, strict=True):
        if future._made is None:
            # `settle` without the call, which is a third of its cost.
            future._result = value
            future._state = FINISHED
            if future._made is not None:
                future.announce()
        else:
            watched.append((future, value))
    # Whoever is woken finds the others done: a thread that takes the results in order is woken
    # once, not to fight for the interpreter with this one while it settles the rest.
    for future, value in watched:
        future.settle(value)
