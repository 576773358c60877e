"""The batcher's two threads: how they wait, work, die, are replaced, end, and do not fork.

The *runner* runs batches and answers them. The *preparer* tokenises what arrives while the
runner is busy, and fails what has missed its deadline. A runner with nothing to run tokenises
by itself, so that a lone request passes through one thread only.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kosine.errors import BatcherClosed, ForkedBatcher
from kosine.job import Job
from kosine.pipeline import Pipeline
from kosine.recovery import recover

__all__ = ["Health", "Workers", "forked_error"]

RUNNER: Final = "runner"
PREPARER: Final = "preparer"
# Tokenising beside a batch pays once the batch runs longer than it takes to wake a thread.
OVERLAP_S: Final = 0.5e-3


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the batcher can serve, and what it has been through.

    Attributes:
        ok: It serves: neither closed nor forked, and its threads live.
        state: "serving", "draining", "closed" or "forked".
        workers_alive: Both threads live (or were not needed yet).
        worker_crashes: How often a thread died and was replaced.
        last_crash: The type of what the last one died of; None if none did.
        running_s: How long the batch that runs now has been running; None if none is.
        queue_requests, queue_tokens: What waits.
    """

    ok: bool
    state: str
    workers_alive: bool
    worker_crashes: int
    last_crash: str | None
    running_s: float | None
    queue_requests: int
    queue_tokens: int


class Workers:
    """The two threads of a batcher. They hold this, not the Batcher, which can so be collected.

    Attributes:
        forked: This process is a child of the one that made the batcher.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.forked = False
        self._draining = True
        self._started = False
        self._last_crash: str | None = None
        self._threads: dict[str, threading.Thread] = {}
        # Conditions on the pipeline's lock; always entered through the lock itself, whose C code
        # cannot be interrupted between taking it and being responsible for it.
        self._wake = {role: threading.Condition(pipeline.lock) for role in (RUNNER, PREPARER)}
        self._idle = {RUNNER: False, PREPARER: False}
        self._next_expiry = math.inf

    def admit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one call and wake whom they concern."""
        pipeline = self.pipeline
        pipeline.admit(jobs)
        # Reading the flags without the lock is safe: a worker sets its flag under the lock before
        # it looks for work for the last time, and the jobs were queued under that lock.
        if self._idle[RUNNER] or not self._started:
            self._notify(RUNNER)
        elif self._idle[PREPARER]:
            since = pipeline.running_since
            if since is not None and pipeline.clock.now() - since >= OVERLAP_S:
                self._notify(PREPARER)
        if jobs[0].deadline < self._next_expiry:
            self._notify(PREPARER)

    def _notify(self, role: str) -> None:
        with self.pipeline.lock:
            if not self._started or not self._threads[role].is_alive():
                self._start()
            self._idle[role] = False
            self._wake[role].notify()

    def _start(self) -> None:
        """Start whichever thread is not there. Holds the lock."""
        if self.forked:
            raise forked_error()
        self._started = True
        for role in (RUNNER, PREPARER):
            thread = self._threads.get(role)
            if thread is None or not thread.is_alive():
                self._spawn(role, None, 0)

    def _spawn(self, role: str, cause: BaseException | None, ident: int) -> None:
        """Start a thread. Holds the lock, and keeps it until the thread lives: whoever looked
        between the two would take it for dead and start another."""
        thread = threading.Thread(
            target=self._main, args=(role, cause, ident), name=f"kosine-{role}", daemon=True
        )
        thread.start()
        self._threads[role] = thread

    def _main(self, role: str, cause: BaseException | None, ident: int) -> None:
        """A thread's life. One that dies leaves its name, its cause and a successor."""
        try:
            if cause is not None:
                recover(self.pipeline, role, ident, role == RUNNER, cause)
                cause = None
            if role == RUNNER:
                self._run()
            else:
                self._prepare()
        except BaseException as error:  # noqa: BLE001 - the successor reports it to whom it hurt
            self._last_crash = type(error).__name__
            with self.pipeline.lock:
                # Not if this one was replaced already.
                if self._threads.get(role) is threading.current_thread():
                    self._spawn(role, error, threading.get_ident())

    # The loops

    def _run(self) -> None:
        pipeline = self.pipeline
        schedule, clock = pipeline.schedule, pipeline.clock
        while True:
            with pipeline.lock:
                now = clock.now()
                at = schedule.run_at(now)
                run = at <= now or (pipeline.closed and at < math.inf)
                if run:
                    long = schedule.last_run_s >= OVERLAP_S
                    if long and self._idle[PREPARER] and schedule.waiting:
                        self._notify(PREPARER)
                elif not schedule.waiting:
                    if pipeline.closed and not pipeline.tokenising:
                        break
                    self._watch(PREPARER)
                    self._idle[RUNNER] = True
                    clock.wait(self._wake[RUNNER], None if at == math.inf else at - now)
                    self._idle[RUNNER] = False
                    continue
            if run:
                pipeline.run_step()
            else:
                pipeline.prepare_step(RUNNER, run_through=True)
        # Nothing is left in any queue or hand: should anything still be open, it was lost.
        pipeline.fail_everything(BatcherClosed("the batcher was closed", remedy="submit again"))
        self._notify_closing()

    def _prepare(self) -> None:
        pipeline = self.pipeline
        schedule, clock = pipeline.schedule, pipeline.clock
        while True:
            with pipeline.lock:
                now = clock.now()
                expiry = schedule.next_deadline()
                work = pipeline.running_since is not None and bool(schedule.waiting)
                if expiry > now and not work:
                    if pipeline.closed and not pipeline.live:
                        break
                    self._watch(RUNNER)
                    self._next_expiry = expiry
                    self._idle[PREPARER] = True
                    clock.wait(self._wake[PREPARER], None if expiry == math.inf else expiry - now)
                    self._idle[PREPARER] = False
                    continue
            if expiry <= now:
                pipeline.expire_step()
            if work and pipeline.prepare_step(PREPARER) and self._idle[RUNNER]:
                self._notify(RUNNER)
        self._notify_closing()

    def _watch(self, role: str) -> None:
        """Replace the other thread if it died without a successor. Holds the lock."""
        if not self._threads[role].is_alive() and not self.pipeline.closed:
            self._spawn(role, SystemExit("found dead"), self._threads[role].ident or 0)

    # Ending

    def close(self, drain: bool, timeout: float | None) -> bool:
        if self.forked:
            return True
        pipeline = self.pipeline
        with pipeline.lock:
            pipeline.closed = True
            started = self._started
        if not drain:
            pipeline.fail_queued()
        if not started:
            return True
        self._notify_closing()
        return self._join(timeout)

    def _join(self, timeout: float | None) -> bool:
        ends = None if timeout is None else self.pipeline.clock.now() + timeout
        for role in (RUNNER, PREPARER):
            while (thread := self._threads[role]) is not threading.current_thread():
                left = None if ends is None else max(0.0, ends - self.pipeline.clock.now())
                thread.join(left)
                if thread.is_alive():
                    error = BatcherClosed(
                        "the batcher was closed", limit=f"timeout={timeout} s to drain"
                    )
                    self.pipeline.fail_everything(error)
                    return False
                if thread is self._threads[role]:
                    break
        return True

    def abandon(self) -> None:
        """The Batcher was collected: serve what is queued, then end. Never blocks."""
        if not self.forked:
            self.pipeline.closed = True
            if self._started:
                self._notify_closing()

    def _notify_closing(self) -> None:
        with self.pipeline.lock:
            for role in (RUNNER, PREPARER):
                self._idle[role] = False
                self._wake[role].notify()

    def health(self) -> Health:
        pipeline = self.pipeline
        if self.forked:
            return Health(False, "forked", False, 0, None, None, 0, 0)
        with pipeline.lock:
            alive = all(thread.is_alive() for thread in self._threads.values())
            if pipeline.closed:
                state = "draining" if pipeline.live else "closed"
            else:
                state = "serving"
                if not alive:
                    for role in (RUNNER, PREPARER):
                        self._watch(role)
            since = pipeline.running_since
            return Health(
                ok=state == "serving" and alive,
                state=state,
                workers_alive=alive,
                worker_crashes=pipeline.counters.worker_crashes,
                last_crash=self._last_crash,
                running_s=None if since is None else pipeline.clock.now() - since,
                queue_requests=pipeline.schedule.requests,
                queue_tokens=pipeline.schedule.tokens,
            )

    def fork(self) -> None:
        """In the child: the threads did not come along, and the lock may be held for ever."""
        self.forked = True
        pipeline = self.pipeline
        pipeline.lock = threading.RLock()
        pipeline.closed = True
        pipeline.closed_error = forked_error
        orphans = [future for job in pipeline.live for future in job.futures]
        orphans += [job.future for job in pipeline.live if job.future is not None]
        orphans += [future for futures in pipeline.owed.values() for future in futures]
        for job in pipeline.live:
            job.release()
        pipeline.live = set()
        for future in orphans:
            future.orphan(forked_error())


def forked_error() -> ForkedBatcher:
    return ForkedBatcher(
        f"this batcher was made in another process than {os.getpid()}",
        limit="its threads did not come along in the fork",
        remedy="make a Batcher after the fork; the Encoder can be shared",
    )
