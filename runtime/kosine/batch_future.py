"""`concurrent.futures.Future`, cheap enough for one per text, that gives its place back."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kosine.job import Job

__all__ = ["BatchFuture", "LeanFuture", "new_future", "settle_all"]

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


class LeanFuture(BatchFuture):
    """A BatchFuture that makes its condition and lists when somebody asks for them.

    Most of thousands of futures are settled before anyone waits for them, and then need none.
    Settling writes the state first and looks for a condition afterwards; a waiter makes the
    condition first and looks at the state afterwards; so one of the two always sees the other.
    """

    # Defaults in the class: an instance stores only what differs.
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _made_condition: threading.Condition | None = None
    _announced = False

    def __init__(self, job: Job, index: int = 0) -> None:
        self._job = job
        if index:
            self._index = index
        if _free_threaded:
            # Without the GIL the argument above would need fences.
            self._condition  # noqa: B018

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made_condition
        if made is None:
            # setdefault is atomic: two threads that come here together get the same one.
            made = self.__dict__.setdefault("_made_condition", threading.Condition())
        return made

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        waiters: list[Any] = self.__dict__.setdefault("_made_waiters", [])
        return waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Future[Any]], object]]:  # type: ignore[override]
        made: list[Callable[[Future[Any]], object]]
        made = self.__dict__.setdefault("_made_callbacks", [])
        return made

    def result(self, timeout: float | None = None) -> Any:
        """As `concurrent.futures.Future.result`."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def settle(self, value: object) -> None:
        self._result = value
        self._state = FINISHED
        if self._made_condition is not None:
            self.announce()

    def settle_error(self, error: BaseException) -> None:
        self._exception = error
        self._state = FINISHED
        if self._made_condition is not None:
            self.announce()

    def announce(self) -> None:
        with self._condition:
            if not self._announced:
                for waiter in self._waiters:
                    if self._exception is None:
                        waiter.add_result(self)
                    else:
                        waiter.add_exception(self)
                self._announced = True
            self._condition.notify_all()
        callbacks = self._done_callbacks
        while callbacks:
            callback = callbacks.pop(0)
            try:
                callback(self)
            except Exception:
                logger.exception("a callback of a future raised")

    def orphan(self, error: BaseException) -> None:
        for name in ("_made_condition", "_made_waiters", "_made_callbacks"):
            self.__dict__.pop(name, None)
        self.settle_error(error)


# What the lean one relies on: exactly these fields in the standard library's Future.
LAYOUT: Final = frozenset(
    {"_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks"}
)
_free_threaded: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()

new_future: type[BatchFuture] = LeanFuture if frozenset(vars(Future())) == LAYOUT else BatchFuture


def settle_all(futures: Sequence[BatchFuture], values: Sequence[object]) -> None:
    """Set the result of each; only for whom the books named."""
    for future, value in zip(futures, values, strict=True):
        if type(future) is LeanFuture and future._made_condition is None:
            # `settle` without the call, which is a third of its cost.
            future._result = value
            future._state = FINISHED
            if future._made_condition is not None:
                future.announce()
        else:
            future.settle(value)
