"""From the queue to the futures: take a batch, run it, find the guilty text, settle.

One lock guards the queue and the counters; the encoder and the futures' callbacks run outside it.
Whoever claims a future under the lock is the only one to settle it afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from kosine.clock import Clock
from kosine.errors import BackendError, BatcherClosed, DeadlineExceeded, NonFiniteVector
from kosine.packed import Float32, Packed, Pooled
from kosine.serving.limits import Limits
from kosine.serving.queue import Queue
from kosine.serving.request import Batch, BatchFuture, Text, futures_of, pack
from kosine.serving.stages import StagedEncoder
from kosine.serving.stats import Counters

__all__ = ["Runner", "closed_error"]


class Runner:
    """The state of one batcher, and the steps of its threads.

    Args:
        encoder: What batches are run on.
        limits: Bounds and budget.
        clock: Where the time is read.

    Attributes:
        lock: Guards all that follows. Re-entrant: a finaliser may call in while it is held.
        queue, counters: What waits, and what has happened.
        batch: What the runner holds, from the moment that it takes it until all is settled.
        running_since: When that began to run; None while nothing runs.
        expiring: What is about to fail since its deadline has passed.
    """

    def __init__(self, encoder: StagedEncoder, limits: Limits, clock: Clock) -> None:
        self.encoder = encoder
        self.clock = clock
        self.lock = threading.RLock()
        self.queue = Queue(limits)
        self.counters = Counters()
        self.batch: Batch | None = None
        self.running_since: float | None = None
        self.expiring: list[BatchFuture[Any]] = []

    # One batch

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
            self.end_batch()
        return bool(batch.texts or batch.shed)

    def end_batch(self) -> None:
        """The runner holds nothing. Holds the lock."""
        self.batch = self.running_since = None
        self.queue.busy_until = min(self.queue.busy_until, self.clock.now())

    def _begin(self, batch: Batch) -> None:
        now = self.running_since = self.clock.now()
        counters = self.counters
        counters.batches += 1
        counters.batch_tokens += batch.tokens
        counters.batch_texts += len(batch.texts)
        for text in batch.texts:
            counters.stages["queue"].observe(now - text.call.arrived)

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
            self.queue.latency.observe(packed.num_tokens, answered - started)
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
        ways = {text.call.finish for text in texts}
        for dim, normalize in ways:
            own, part = texts, pooled
            if len(ways) > 1:
                chosen = [i for i, text in enumerate(texts) if text.call.finish == (dim, normalize)]
                own = [texts[i] for i in chosen]
                part = Pooled(pooled.vectors[chosen], pooled.norms[chosen])
            options = {} if normalize else {"normalize_embeddings": False}
            try:
                vectors = self.encoder.finish(part, truncate_dim=dim, **options)
                expected = (len(own), dim or self.encoder.dim)
                if vectors.shape != expected:
                    raise BackendError(
                        f"the encoder finished vectors {vectors.shape}",
                        limit=f"expected {expected}",
                        remedy="report this encoder",
                    )
            except Exception as error:  # noqa: BLE001 - reported to who asked
                for text in own:
                    self.fail(text.future, error)
            else:
                self._hand_out(own, vectors)

    def _hand_out(self, texts: Sequence[Text], vectors: Float32) -> None:
        # Whoever keeps a vector keeps none of somebody else's.
        rows = [row.copy() for row in vectors]
        # An answer never comes after its deadline, however late the timer is.
        self.expire()
        answered: list[tuple[BatchFuture[Any], Float32]] = []
        with self.lock:
            for text, row in zip(texts, rows, strict=True):
                call, future = text.call, text.future
                if not future.open:
                    continue
                if call.matrix:
                    if call.rows is None:
                        call.rows = np.empty((call.missing, len(row)), np.float32)
                    call.rows[text.place] = row
                    call.missing -= 1
                    if call.missing:
                        continue
                    row = call.rows
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
                    self.fail(texts[row].future, _own_error(error, texts[row]))
                rest = [row for row in range(len(texts)) if row not in guilty]
                pooled = error.pooled if isinstance(error, NonFiniteVector) else None
                if rest and isinstance(pooled, Pooled) and len(pooled.norms) == len(texts):
                    kept = Pooled(pooled.vectors[rest], pooled.norms[rest])
                    self._answer([texts[row] for row in rest], kept)
                    continue
                parts = [rest]
            elif len(texts) == 1:
                self.fail(texts[0].future, error)
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

    # Who settles a future

    def _claim(self, future: BatchFuture[Any]) -> bool:
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

    def release(self, future: BatchFuture[Any]) -> None:
        """A future was cancelled: give its place back and tell who waits."""
        with self.lock:
            self._claim(future)

    def fail(
        self, future: BatchFuture[Any], error: BaseException, *, claimed: bool = False
    ) -> None:
        """Fail a future that nobody has claimed, or, with `claimed`, that has no result yet."""
        with self.lock:
            mine = self._claim(future)
            self.counters.failed += mine
        if mine or (claimed and not (future.settled or future.done())):
            future.settle_error(error)

    def fail_all(self, error: BaseException, *, running: bool) -> None:
        """Fail what waits and, with `running`, what runs."""
        with self.lock:
            texts = self.queue.waiting()
            if running and self.batch is not None:
                texts += self.batch.texts
        for future in futures_of(texts):
            self.fail(future, error)

    def expire(self) -> None:
        """Fail every request whose deadline has passed, wherever it is."""
        with self.lock:
            late = self.queue.expired(self.clock.now())
            # Written down first: the timer may be killed before they are settled.
            self.expiring += late
        if late:
            self.settle_expired(late)

    def settle_expired(self, late: Sequence[BatchFuture[Any]], *, again: bool = False) -> None:
        """Fail these futures; `again` where whoever had begun to may have been killed over it."""
        with self.lock:
            claimed = [future for future in late if self._claim(future)]
            self.counters.expired += len(claimed)
        for future in late if again else claimed:
            future.settle_error(expired_error())
        with self.lock:
            self.expiring = [future for future in self.expiring if future not in late]


def closed_error(when: str) -> BatcherClosed:
    return BatcherClosed(f"the batcher was closed {when}", remedy="make a new Batcher")


def expired_error() -> DeadlineExceeded:
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
    position = text.place if text.call.matrix else 0
    own = NonFiniteVector(
        f"the vector of text {position} is not finite",
        indices=(position,),
        limit="every vector has finite values and a length",
        remedy="leave the text out, or run it in float32",
    )
    own.__cause__ = error
    return own
