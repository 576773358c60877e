"""The two threads of a batcher: the runner, and the timer that keeps deadlines while it runs.

A thread that dies is begun again where it stands. What it held it had written down before.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kosine.errors import BatcherError, ForkedBatcher, WorkerCrashed
from kosine.serving.request import BatchFuture, Call, futures_of
from kosine.serving.runner import Runner, closed_error, expired_error
from kosine.serving.stats import BatcherStats, Health

__all__ = ["Workers", "forked_error"]


class Workers:
    """The threads that take a runner's steps, and their end.

    They hold this and not the `Batcher`, which can so be collected.

    Args:
        runner: The state and the steps.

    Attributes:
        closed, forked, exiting: Nothing more is accepted: by `close`, in a forked child, or since
            the process ends.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.clock = runner.clock
        self.lock = runner.lock
        self.closed = self.forked = self.exiting = False
        self._cannot_start = False
        self._last_crash: str | None = None
        self._threads: dict[str, threading.Thread] = {}
        # Asked by each call, which `Thread.is_alive` would take too long for.
        self._living: set[str] = set()
        self._work = threading.Condition(self.lock)
        self._tick = threading.Condition(self.lock)
        self._next_expiry = math.inf
        self._drained = False

    # Coming in

    def enqueue(self, call: Call, now: float) -> None:
        """Queue a call that was admitted. Holds the lock.

        Raises:
            BatcherError: The threads cannot be started; nothing was queued.
        """
        if len(self._living) < 2:
            self.start()
        self.runner.queue.push(call, now)
        self.runner.counters.submitted += len(call.futures)
        self._work.notify()
        if call.deadline < self._next_expiry:
            self._tick.notify()

    def start(self) -> None:
        """Start whichever thread is not there, or no longer. Holds the lock."""
        for name, *parts in (
            ("kosine-runner", self.recover, self._serve),
            ("kosine-timer", self._recover_timer, self._keep_deadlines),
        ):
            if name in self._living:
                continue
            thread = threading.Thread(
                target=self._live, args=(name, *parts), name=name, daemon=True
            )
            self._cannot_start = True
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                raise BatcherError(
                    f"the batcher cannot start a thread: {error}",
                    limit="two threads a batcher",
                    remedy="raise the limit on processes (ulimit -u, pids.max), or end threads",
                ) from error
            self._cannot_start = False
            self._threads[name] = thread
            self._living.add(name)

    def release(self, future: BatchFuture[Any]) -> None:
        """See `Owner`."""
        self.runner.release(future)

    def is_own_thread(self) -> bool:
        """See `Owner`."""
        return threading.current_thread() in self._threads.values()

    # The threads

    def _live(
        self, name: str, recover: Callable[[BaseException | None], None], work: Callable[[], None]
    ) -> None:
        """A thread's life: whatever its work dies of, it is begun again."""
        crash: BaseException | None = None
        try:
            while True:
                try:
                    recover(crash)
                    crash = None
                    work()
                    return
                except BaseException as error:  # noqa: BLE001 - told to whom the batch belongs
                    if self.exiting:  # the encoder is not to be called any more
                        return
                    crash = error
        finally:
            self._living.discard(name)

    def _serve(self) -> None:
        while self._wait_for_work():
            self.runner.run_batch()
        with self.lock:
            self._drained = True
            self._tick.notify()

    def _wait_for_work(self) -> bool:
        """False once the batcher is closed and nothing waits any more."""
        with self.lock:
            while True:
                if self.exiting:
                    return False
                now = self.clock.now()
                at = self.runner.queue.run_at(now)
                if at <= now or (self.closed and at < math.inf):
                    return True
                if self.closed:
                    return False
                self.clock.wait(self._work, None if at == math.inf else at - now)

    def _keep_deadlines(self) -> None:
        while True:
            with self.lock:
                at = self._next_expiry = self.runner.queue.next_deadline()
                now = self.clock.now()
                if at > now:
                    if self._drained:
                        return
                    self.clock.wait(self._tick, None if at == math.inf else at - now)
                    continue
            self.runner.expire()

    def recover(self, crash: BaseException | None = None) -> None:
        """Fail what the runner held when it died, and put the sums in order.

        It may have died between any two lines: what it held is what it had written down before it
        began. The runner starts with this, and mostly there is nothing to do.
        """
        batch = self.runner.batch
        if crash is None and batch is None:
            return
        crash = self._note_crash(crash)
        if batch is not None:
            error = WorkerCrashed(
                f"the worker died of {type(crash).__name__} while it held the request",
                limit="the worker has been replaced",
                remedy="submit the request again",
            )
            error.__cause__ = crash
            for future in futures_of([*batch.texts, *batch.shed]):
                self.runner.fail(future, error, claimed=True)
            with self.lock:
                self.runner.end_batch()

    def _recover_timer(self, crash: BaseException | None) -> None:
        if crash is not None or self.runner.expiring:
            self._note_crash(crash)
            self.runner.settle_expired(list(self.runner.expiring), again=True)

    def _note_crash(self, crash: BaseException | None) -> BaseException:
        with self.lock:
            crash = crash or SystemExit("found dead")
            self._last_crash = type(crash).__name__
            self.runner.counters.worker_crashes += 1
            self.runner.queue.recount()
        return crash

    # Ending

    def close(self, drain: bool, timeout: float | None) -> bool:
        """See `Batcher.close`."""
        if self.forked:
            return True
        with self.lock:
            if self._threads and not self._drained and len(self._living) < 2:
                self.start()
        self.abandon()
        if not drain:
            self.runner.fail_all(closed_error("before the request ran"), running=False)
        if self.is_own_thread():
            # A callback: the thread cannot wait for itself. It goes on, and ends by itself.
            return False
        ends = None if timeout is None else self.clock.now() + timeout
        for thread in list(self._threads.values()):
            thread.join(None if ends is None else max(0.0, ends - self.clock.now()))
            if thread.is_alive():
                error = closed_error(f"after {timeout} s of draining")
                self.runner.fail_all(error, running=True)
                return False
        return True

    def end_with_process(self, timeout: float) -> None:
        """Let the batch that runs end, and settle nothing else: only daemon threads can wait for it
        now, and they are to end with the process without a word."""
        self.exiting = True
        self.abandon()
        if not self.forked:
            for thread in list(self._threads.values()):
                thread.join(timeout)

    def abandon(self) -> None:
        """Accept nothing more; the threads serve what is queued, then end. Waits for nobody."""
        self.closed = True
        if self._threads and not self.forked:
            with self.lock:
                self._work.notify_all()
                self._tick.notify_all()

    def fork(self) -> None:
        """In the child: the threads did not come along, and the lock may be held for ever."""
        runner = self.runner
        self.forked = self.closed = True
        self.lock = runner.lock = threading.RLock()
        texts = runner.queue.waiting()
        if runner.batch is not None:
            texts += [*runner.batch.texts, *runner.batch.shed]
        for future in futures_of(texts):
            future.orphan(forked_error())
        for future in runner.expiring:
            future.orphan(expired_error())

    # Looking in

    def health(self) -> Health:
        """See `Batcher.health`."""
        if self.forked:
            return Health(False, "forked", False, 0, None, None, 0, 0)
        with self.lock:
            alive = not self._cannot_start and all(t.is_alive() for t in self._threads.values())
            if not self.closed:
                state = "serving"
                if not alive:
                    with suppress(BatcherError):  # `alive` says it
                        self.start()
            else:
                state = "closed" if self._drained or not self._threads else "draining"
            runner = self.runner
            since = runner.running_since
            return Health(
                ok=state == "serving" and alive,
                state=state,
                workers_alive=alive,
                worker_crashes=runner.counters.worker_crashes,
                last_crash=self._last_crash,
                running_s=None if since is None else self.clock.now() - since,
                queue_requests=runner.queue.requests,
                queue_tokens=runner.queue.tokens,
            )

    def stats(self) -> BatcherStats:
        """All numbers at one moment."""
        if self.forked:
            raise forked_error()
        with self.lock:
            queue, batch = self.runner.queue, self.runner.batch
            return self.runner.counters.snapshot(
                queue_requests=queue.requests,
                queue_tokens=queue.tokens,
                queue_bytes=queue.nbytes,
                running_tokens=batch.tokens if batch is not None else 0,
                per_token_s=queue.latency.per_token_s,
                per_batch_s=queue.latency.per_batch_s,
            )


def forked_error() -> ForkedBatcher:
    return ForkedBatcher(
        f"this batcher was made in another process than {os.getpid()}",
        limit="its threads did not come along in the fork",
        remedy="make a Batcher after the fork; the Encoder can be shared",
    )
