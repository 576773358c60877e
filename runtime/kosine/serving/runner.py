"""The thread that runs batches, and the timer beside it that keeps deadlines while it does.

The runner waits, takes a batch, runs it, finds the guilty text where that fails, and settles
futures. One lock guards the queue and the counters; the encoder and the futures' callbacks run
outside it. Whoever claims a future under the lock is the only one to settle it afterwards.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kosine.clock import Clock
from kosine.errors import (
    BackendError,
    BatcherClosed,
    BatcherError,
    DeadlineExceeded,
    ForkedBatcher,
    NonFiniteVector,
    WorkerCrashed,
)
from kosine.packed import Float32, Packed, Pooled
from kosine.serving.queue import Batch, Limits, Queue
from kosine.serving.request import BatchFuture, Call, Text, pack
from kosine.serving.stats import BatcherStats, Counters

__all__ = ["Health", "Runner", "RunsBatches", "forked_error"]


class RunsBatches(Protocol):
    """The part of an encoder that the runner uses; called from its thread alone."""

    @property
    def dim(self) -> int: ...

    def compute(self, batch: Packed) -> Pooled: ...

    def finish(self, pooled: Pooled, *, truncate_dim: int | None = None) -> Float32: ...


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


class Runner:
    """The state of one batcher, its two threads, and the steps that they take.

    The threads hold this and not the `Batcher`, which can so be collected.

    Args:
        encoder: What batches are run on.
        limits: Bounds and budget.
        clock: Where the time is read.

    Attributes:
        lock: Guards all that follows. Re-entrant: a finaliser may call in while it is held.
        queue, counters: What waits, and what has happened.
        batch: What the runner holds, from the moment that it takes it until all is settled.
        running_since: When that began to run; None while nothing runs.
        closed, forked, exiting: Nothing more is accepted: by `close`, in a forked child, or since
            the process ends.
    """

    def __init__(self, encoder: RunsBatches, limits: Limits, clock: Clock) -> None:
        self.encoder = encoder
        self.clock = clock
        self.lock = threading.RLock()
        self.queue = Queue(limits)
        self.counters = Counters()
        self.batch: Batch | None = None
        self.running_since: float | None = None
        self.closed = self.forked = self.exiting = False
        self._cannot_start = False
        self._expiring: list[BatchFuture] = []
        self._last_crash: str | None = None
        self._threads: dict[str, threading.Thread] = {}
        # Asked by each call, which `Thread.is_alive` would take too long for.
        self._living: set[str] = set()
        self._work = threading.Condition(self.lock)
        self._tick = threading.Condition(self.lock)
        self._next_expiry = math.inf
        self._drained = False

    # Coming in

    def enqueue(self, call: Call) -> None:
        """Queue a call that was admitted. Holds the lock.

        Raises:
            BatcherError: The threads cannot be started; nothing was queued.
        """
        self.start()
        self.queue.push(call, self.clock.now())
        self.counters.submitted += len(call.futures)
        self._work.notify()
        if call.deadline < self._next_expiry:
            self._tick.notify()

    def start(self) -> None:
        """Start whichever thread is not there, or no longer. Holds the lock."""
        if len(self._living) == 2:
            return
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

    def release(self, future: BatchFuture) -> None:
        """A future was cancelled: give its place back and tell who waits."""
        with self.lock:
            self._claim(future)

    def is_own_thread(self) -> bool:
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
            self.run_batch()
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
                at = self.queue.run_at(now)
                if at <= now or (self.closed and at < math.inf):
                    return True
                if self.closed:
                    return False
                self.clock.wait(self._work, None if at == math.inf else at - now)

    def _keep_deadlines(self) -> None:
        while True:
            with self.lock:
                at = self._next_expiry = self.queue.next_deadline()
                now = self.clock.now()
                if at > now:
                    if self._drained:
                        return
                    self.clock.wait(self._tick, None if at == math.inf else at - now)
                    continue
            self.expire()

    def recover(self, crash: BaseException | None = None) -> None:
        """Fail what the runner held when it died, and put the sums in order.

        It may have died between any two lines: what it held is what it had written down before it
        began. The runner starts with this, and mostly there is nothing to do.
        """
        batch = self.batch
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
            self._abandon([*batch.texts, *batch.shed], error)
            with self.lock:
                self._end_batch()

    def _recover_timer(self, crash: BaseException | None) -> None:
        if crash is not None or self._expiring:
            self._note_crash(crash)
            self._settle_expired(list(self._expiring))

    def _note_crash(self, crash: BaseException | None) -> BaseException:
        with self.lock:
            crash = crash or SystemExit("found dead")
            self._last_crash = type(crash).__name__
            self.counters.worker_crashes += 1
            self.queue.recount()
        return crash

    def _abandon(self, texts: Iterable[Text], error: BaseException) -> None:
        """Fail every future of these texts that has no result yet, whoever has claimed it."""
        for future in {text.future: None for text in texts}:
            with self.lock:
                claimed = self._claim(future)
                self.counters.failed += claimed
            if claimed or not (future.settled or future.done()):
                future.settle_error(error)

    # The steps

    def run_batch(self) -> bool:
        """Take the next batch, run it and settle its futures; False if nothing waits."""
        batch = Batch()
        with self.lock:
            self.batch = batch
            self.queue.take(batch, self.clock.now())
            shed = [text.future for text in batch.shed if self._claim(text.future)]
            self.counters.shed += len(shed)
            if batch.texts:
                self._begin(batch)
        for future in shed:
            future.settle_error(_unmeetable())
        if batch.texts:
            self._answer_batch(batch)
        with self.lock:
            self._end_batch()
        return bool(batch.texts or batch.shed)

    def _begin(self, batch: Batch) -> None:
        now = self.running_since = self.clock.now()
        counters = self.counters
        counters.batches += 1
        counters.batch_tokens += batch.tokens
        counters.batch_texts += len(batch.texts)
        counters.stages["queue"].observe_many([now - text.call.arrived for text in batch.texts])

    def _end_batch(self) -> None:
        self.batch = self.running_since = None
        self.queue.busy_until = min(self.queue.busy_until, self.clock.now())

    def _answer_batch(self, batch: Batch) -> None:
        packed = pack(batch.texts)
        started = self.clock.now()
        try:
            pooled = self._compute_checked(packed)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is some text's
            self._isolate(batch.texts, packed, error)
            return
        ended = self.clock.now()
        self._answer(batch.texts, pooled)
        answered = self.clock.now()
        with self.lock:
            self.queue.learn(packed.num_tokens, answered - started)
            self.counters.stages["run"].observe(ended - started)
            self.counters.stages["finish"].observe(answered - ended)

    def _compute_checked(self, packed: Packed) -> Pooled:
        """Run, and refuse an answer of another shape than asked for."""
        pooled = self.encoder.compute(packed)
        rows, dim = len(packed), self.encoder.dim
        if pooled.vectors.shape != (rows, dim) or pooled.norms.shape != (rows,):
            raise BackendError(
                f"the backend returned vectors {pooled.vectors.shape} and norms "
                f"{pooled.norms.shape}",
                limit=f"expected {(rows, dim)} and {(rows,)}",
                remedy="report this backend",
            )
        return pooled

    def _answer(self, texts: Sequence[Text], pooled: Pooled) -> None:
        """Hand out the rows of a batch that has run."""
        dims = {text.call.truncate_dim for text in texts}
        for dim in dims:
            chosen = [i for i, text in enumerate(texts) if text.call.truncate_dim == dim]
            own = [texts[i] for i in chosen]
            part = pooled
            if len(dims) > 1:
                part = Pooled(pooled.vectors[chosen], pooled.norms[chosen])
            try:
                vectors = self.encoder.finish(part, truncate_dim=dim)
                expected = (len(own), dim or self.encoder.dim)
                if vectors.shape != expected:
                    raise BackendError(
                        f"the encoder finished vectors {vectors.shape}",
                        limit=f"expected {expected}",
                    )
            except Exception as error:  # noqa: BLE001 - reported to who asked
                for text in own:
                    self._fail(text.future, error)
            else:
                self._hand_out(own, vectors)

    def _hand_out(self, texts: Sequence[Text], vectors: Float32) -> None:
        # Whoever keeps a vector keeps none of somebody else's.
        rows = [row.copy() for row in vectors]
        # An answer never comes after its deadline, however late the timer is.
        self.expire()
        answered: list[tuple[BatchFuture, Float32]] = []
        with self.lock:
            for text, row in zip(texts, rows, strict=True):
                future = text.future
                if not future.open:
                    continue
                if future.matrix:
                    if future.rows is None:
                        future.rows = np.empty((future.missing, len(row)), np.float32)
                    future.rows[text.index] = row
                    future.missing -= 1
                    if future.missing:
                        continue
                    row = future.rows
                if self._claim(future):
                    answered.append((future, row))
            self.counters.completed += len(answered)
        for future, value in answered:
            future.settle(value)

    def _isolate(self, texts: Sequence[Text], packed: Packed, error: Exception) -> None:
        """Answer the innocent texts of a batch that failed, and fail the guilty.

        One guilty text among n costs at most 2 log2(n) further runs. An error that names its rows
        (`NonFiniteVector.indices`) costs one; none if it brings the other rows along as `pooled`.
        """
        failed: list[tuple[Sequence[Text], Packed, Exception]] = [(texts, packed, error)]
        while failed:
            texts, packed, error = failed.pop()
            guilty = _named_rows(error, len(texts))
            if guilty:
                for row in guilty:
                    self._fail(texts[row].future, _own_error(error, texts[row]))
                rest = [row for row in range(len(texts)) if row not in guilty]
                pooled = error.pooled if isinstance(error, NonFiniteVector) else None
                if rest and isinstance(pooled, Pooled) and len(pooled.norms) == len(texts):
                    kept = Pooled(pooled.vectors[rest], pooled.norms[rest])
                    self._answer([texts[row] for row in rest], kept)
                    continue
                parts = [rest]
            elif len(texts) == 1:
                self._fail(texts[0].future, error)
                continue
            else:
                with self.lock:
                    self.counters.bisections += 1
                middle = len(texts) // 2
                parts = [[*range(middle)], [*range(middle, len(texts))]]
            for part in parts:
                rows = [row for row in part if texts[row].future.open]
                if not rows:
                    continue
                half, tokens = [texts[row] for row in rows], packed.take(rows)
                try:
                    pooled = self._compute_checked(tokens)
                except Exception as again:  # noqa: BLE001 - as above
                    failed.append((half, tokens, again))
                else:
                    self._answer(half, pooled)

    def expire(self) -> None:
        """Fail every request whose deadline has passed, wherever it is."""
        with self.lock:
            late = self.queue.expired(self.clock.now())
            # Written down first: see `recover`.
            self._expiring += late
        if late:
            self._settle_expired(late)

    def _settle_expired(self, late: Sequence[BatchFuture]) -> None:
        with self.lock:
            claimed = [future for future in late if self._claim(future)]
            self.counters.expired += len(claimed)
        for future in claimed:
            future.settle_error(_expired())
        with self.lock:
            self._expiring = [future for future in self._expiring if future not in late]

    def fail_all(self, error: BaseException, *, running: bool) -> None:
        """Fail what waits and, with `running`, what runs."""
        with self.lock:
            texts = list(self.queue.waiting())
            if running and self.batch is not None:
                texts += self.batch.texts
        for future in {text.future: None for text in texts}:
            self._fail(future, error)

    def _fail(self, future: BatchFuture, error: BaseException) -> None:
        with self.lock:
            claimed = self._claim(future)
            self.counters.failed += claimed
        if claimed:
            future.settle_error(error)

    def _claim(self, future: BatchFuture) -> bool:
        """Whether the caller is the one to settle a future. Holds the lock.

        What was cancelled is claimed by nobody; its place is given back here, if need be.
        """
        if not future.open:
            return False
        self.queue.claim(future)
        if future.set_running_or_notify_cancel():
            return True
        future.settled = True
        self.counters.cancelled += 1
        return False

    # Ending

    def close(self, drain: bool, timeout: float | None) -> bool:
        """See `Batcher.close`."""
        if self.forked:
            return True
        with self.lock:
            self.closed = True
            if self._threads and not self._drained:
                self.start()
            self._work.notify_all()
            self._tick.notify_all()
        if not drain:
            self.fail_all(_closed("before the request ran"), running=False)
        if self.is_own_thread():
            # A callback: the thread cannot wait for itself. It goes on, and ends by itself.
            return False
        ends = None if timeout is None else self.clock.now() + timeout
        for thread in list(self._threads.values()):
            thread.join(None if ends is None else max(0.0, ends - self.clock.now()))
            if thread.is_alive():
                self.fail_all(_closed(f"after {timeout} s of draining"), running=True)
                return False
        return True

    def end_with_process(self, timeout: float) -> None:
        """Let the batch that runs end, and settle nothing else: only daemon threads can wait for it
        now, and they are to end with the process without a word."""
        self.closed = self.exiting = True
        if self.forked:
            return
        with self.lock:
            self._work.notify_all()
            self._tick.notify_all()
        for thread in list(self._threads.values()):
            thread.join(timeout)

    def abandon(self) -> None:
        """The Batcher was collected: serve what is queued, then end. Never blocks."""
        self.closed = True
        if self._threads and not self.forked:
            with self.lock:
                self._work.notify_all()
                self._tick.notify_all()

    def fork(self) -> None:
        """In the child: the threads did not come along, and the lock may be held for ever."""
        self.forked = self.closed = True
        self.lock = threading.RLock()
        texts = list(self.queue.waiting())
        if self.batch is not None:
            texts += [*self.batch.texts, *self.batch.shed]
        for future in {text.future: None for text in texts}:
            future.orphan(forked_error())
        for future in self._expiring:
            future.orphan(_expired())

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
            since = self.running_since
            return Health(
                ok=state == "serving" and alive,
                state=state,
                workers_alive=alive,
                worker_crashes=self.counters.worker_crashes,
                last_crash=self._last_crash,
                running_s=None if since is None else self.clock.now() - since,
                queue_requests=self.queue.requests,
                queue_tokens=self.queue.tokens,
            )

    def stats(self) -> BatcherStats:
        """All numbers at one moment."""
        if self.forked:
            raise forked_error()
        with self.lock:
            return self.counters.snapshot(
                queue_requests=self.queue.requests,
                queue_tokens=self.queue.tokens,
                queue_bytes=self.queue.nbytes,
                running_tokens=self.batch.tokens if self.batch is not None else 0,
                per_token_s=self.queue.latency.per_token_s,
                per_batch_s=self.queue.latency.per_batch_s,
            )


def forked_error() -> ForkedBatcher:
    return ForkedBatcher(
        f"this batcher was made in another process than {os.getpid()}",
        limit="its threads did not come along in the fork",
        remedy="make a Batcher after the fork; the Encoder can be shared",
    )


def _closed(when: str) -> BatcherClosed:
    return BatcherClosed(f"the batcher was closed {when}", remedy="make a new Batcher")


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline has passed", remedy="allow more time")


def _unmeetable() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline cannot be met any more", remedy="allow more time, or send less at once"
    )


def _named_rows(error: Exception, count: int) -> frozenset[int]:
    """Rows that the error itself names; empty if it names none, or nonsense."""
    if not isinstance(error, NonFiniteVector):
        return frozenset()
    rows = frozenset(error.indices)
    return rows if all(0 <= row < count for row in rows) else frozenset()


def _own_error(error: Exception, text: Text) -> Exception:
    """The same error, with the text's position in its own request instead of in the batch."""
    own = NonFiniteVector(
        f"the vector of text {text.position} is not finite",
        indices=(text.position,),
        limit="every vector has finite values and a length",
        remedy="leave the text out, or run it in float32",
    )
    own.__cause__ = error
    return own
