"""The batcher's futures are `concurrent.futures.Future`s in everything that a caller can see."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    as_completed,
    wait,
)

import pytest

from kosine import batch_future
from kosine.batch_future import BatchFuture, LeanFuture, settle_all

KINDS = [LeanFuture, BatchFuture]


class Books:
    """Stands in for a job: the first to strike a text off may settle it."""

    def __init__(self):
        self.open = set(range(100))
        self.lock = threading.Lock()

    def cancel(self, index):
        with self.lock:
            if index not in self.open:
                return False
            self.open.discard(index)
            return True

    strike_off = cancel


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def make(request):
    books = Books()

    def make(index=0):
        future = request.param(books, index)
        future.books = books
        return future

    return make


def test_the_lean_one_is_used_where_the_layout_is_known():
    known = frozenset(vars(Future())) == batch_future.LAYOUT
    assert batch_future.new_future is (LeanFuture if known else BatchFuture)


def test_result_before_and_after(make):
    early, late = make(), make(1)
    early.settle("value")
    assert early.done()
    assert early.result() == "value"
    assert early.exception() is None
    with pytest.raises(TimeoutError):
        late.result(timeout=0)
    with pytest.raises(TimeoutError):
        late.exception(timeout=0)
    threading.Timer(0.01, late.settle, ["value"]).start()
    assert late.result(timeout=10) == "value"


def test_errors(make):
    future = make()
    threading.Timer(0.01, future.settle_error, [ValueError("x")]).start()
    with pytest.raises(ValueError, match="x"):
        future.result(timeout=10)
    assert isinstance(future.exception(), ValueError)
    # Nothing of how the result is looked up shows in what the caller sees.
    assert future.exception().__context__ is None
    with pytest.raises(TimeoutError) as late:
        make(1).result(timeout=0)
    assert late.value.__context__ is None


def test_cancelling_wins_or_loses_but_never_both(make):
    future, other = make(), make(1)
    assert future.cancel()
    assert future.cancelled()
    assert future.done()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    other.books.strike_off(1)
    assert not other.cancel()
    other.settle(1)
    assert not other.cancel()
    assert other.result() == 1


@pytest.mark.parametrize("when", [ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION])
def test_wait(make, when):
    futures = [make(i) for i in range(4)]
    futures[0].settle(0)

    def rest():
        time.sleep(0.01)
        futures[1].cancel()
        futures[2].settle_error(ValueError())
        futures[3].settle(3)

    thread = threading.Thread(target=rest)
    thread.start()
    done, _ = wait(futures, timeout=10, return_when=when)
    thread.join()
    assert done
    assert set(as_completed(futures, timeout=10)) == set(futures)
    assert wait(futures, timeout=10).not_done == set()


def test_settling_in_bulk_tells_only_when_all_are_done(make):
    futures, seen = [make(i) for i in range(6)], []
    for future in futures[::2]:
        future.add_done_callback(lambda _: seen.append([other.done() for other in futures[1::2]]))
    futures[1].cancel()
    settle_all(futures[:1] + futures[2:], [0, 2, 3, 4, 5])
    if isinstance(futures[0], LeanFuture):
        assert seen == [[True, True, True]] * 3
    assert len(seen) == 3
    assert futures[1].cancelled()
    assert [future.result(timeout=0) for future in futures[2:]] == [2, 3, 4, 5]


def test_as_completed_while_settling_in_bulk(make):
    futures = [make(i) for i in range(50)]
    thread = threading.Timer(0.01, settle_all, [futures, list(range(50))])
    thread.start()
    assert sorted(future.result() for future in as_completed(futures, timeout=10)) == list(
        range(50)
    )
    thread.join()


@pytest.fixture
def hasty_threads():
    """Threads take turns after microseconds: what can come between two steps does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_as_completed_that_starts_while_settling_yields_each_once():
    """The state of a watched future changes under its condition, together with the telling."""
    books = Books()
    for _ in range(150):
        futures = [LeanFuture(books, 0) for _ in range(60)]
        wait(futures, timeout=0)  # everyone is watched
        barrier = threading.Barrier(2)

        def settle(futures=futures, barrier=barrier):
            barrier.wait()
            settle_all(futures, list(range(60)))

        thread = threading.Thread(target=settle)
        thread.start()
        barrier.wait()
        assert len(list(as_completed(futures, timeout=10))) == 60
        thread.join()


def test_an_orphan_that_was_answered_stays_answered():
    future = LeanFuture(Books(), 0)
    future.settle(5)
    future.orphan(ValueError("forked"))
    assert future.result(timeout=0) == 5


def test_callbacks_run_once_and_may_raise(make, caplog):
    future, seen = make(), []
    future.add_done_callback(lambda _: seen.append("before"))
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda _: seen.append("behind"))
    with caplog.at_level(logging.CRITICAL):
        future.settle(1)
    future.announce()
    future.add_done_callback(lambda _: seen.append("after"))
    assert seen == ["before", "behind", "after"]


def test_asyncio(make):
    async def main():
        future, cancelled = make(), make(1)
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, future.settle, 5)
        wrapped = asyncio.wrap_future(cancelled)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        return await asyncio.wrap_future(future), cancelled.cancelled()

    assert asyncio.run(main()) == (5, True)


def test_an_orphan_fails_even_where_its_lock_is_held(make):
    future, called = make(), []
    future.add_done_callback(called.append)
    with pytest.raises(TimeoutError):
        future.result(timeout=0)
    held = threading.Event()
    release = threading.Event()
    condition = future._condition

    def hold():
        with condition:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    future.orphan(ValueError("forked"))
    assert isinstance(future.exception(timeout=1), ValueError)
    assert called == []
    release.set()
    thread.join()


def test_no_lost_wake_ups():
    """Settling looks for a condition after writing the state; waiting does it the other way."""
    rounds = 3_000
    books = Books()
    futures = [LeanFuture(books, 0) for _ in range(rounds)]
    barrier = threading.Barrier(2)

    def settle():
        barrier.wait()
        for future in futures:
            future.settle(1)

    thread = threading.Thread(target=settle)
    thread.start()
    barrier.wait()
    assert sum(future.result(timeout=10) for future in futures) == rounds
    thread.join()
    print(f"{rounds} futures waited for while being settled: none hangs")
