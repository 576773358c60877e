"""The batcher's steps - admit, tokenise, run, answer, expire - for whatever thread calls them.

The steps hold the lock only while they touch the books; the encoder and the futures' callbacks
run outside it. A text is settled by whoever strikes it off the books first (result, error,
cancellation, deadline); only that one touches the future.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from kosine.admission import refusal_error
from kosine.batch_future import BatchFuture, settle_all
from kosine.batcher_stats import BatcherStats, Counters
from kosine.clock import Clock
from kosine.errors import BackendError, BatcherClosed, DeadlineExceeded, KosineError
from kosine.isolation import isolate
from kosine.job import Job, Prompt
from kosine.packed import Float32, Packed, Pooled
from kosine.schedule import Limits, Schedule
from kosine.segments import Segment, Source, join, single_texts, source

__all__ = ["Pipeline", "Prepared", "StagedEncoder"]


class Prepared(Protocol):
    """Tokenised texts.

    Attributes:
        batch: All texts, in order.
        truncated: How many were cut.
        unknown: How many of the tokens are unknown to the tokenizer.
    """

    @property
    def batch(self) -> Packed: ...
    @property
    def truncated(self) -> int: ...
    @property
    def unknown(self) -> int: ...


class StagedEncoder(Protocol):
    """An encoder as the batcher uses it: one method per stage, called from several threads."""

    @property
    def dim(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...

    def prepare(
        self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Prepared: ...

    def run(self, batch: Packed) -> Pooled: ...

    def finish(self, pooled: Pooled, *, truncate_dim: int | None = None) -> Float32: ...


class Pipeline:
    """The state of one batcher and the steps on it.

    Args:
        encoder: What the texts are encoded with.
        limits: Bounds and budget.
        clock: Where the time is read.

    Attributes:
        lock: Guards the schedule and the counters. Re-entrant, because a signal handler or a
            finaliser may call in while the same thread holds it.
        live: Every admitted job that is not answered yet.
        tokenising: What each thread is tokenising.
        owed: By thread, the futures that it has struck off the books and not settled yet.
        running, running_tokens, running_since: The batch that runs.
    """

    def __init__(self, encoder: StagedEncoder, limits: Limits, clock: Clock) -> None:
        self.encoder = encoder
        self.clock = clock
        self.lock = threading.RLock()
        self.schedule = Schedule(limits)
        self.counters = Counters()
        self.live: set[Job] = set()
        self.tokenising: dict[str, list[Job]] = {}
        self.owed: dict[int, list[BatchFuture]] = {}
        self.closed = False
        self.closed_error: Callable[[], KosineError] = _closed
        self.running: Sequence[Segment] = ()
        self.running_tokens = 0
        self.running_since: float | None = None

    # Admission

    def admit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one call, all or none; raises QueueFull or InputError."""
        if not self._try_admit(jobs):
            # An upper estimate stood in the way, and the exact count may not: count here.
            for job in jobs:
                prepared = self._tokenise([job.texts], job.prompt)
                job.adopt(prepared.batch, prepared.batch.starts.tolist(), 0)
                self._count_tokens(prepared)
            self._try_admit(jobs)

    def _try_admit(self, jobs: Sequence[Job]) -> bool:
        """True if queued; False if an exact count may help."""
        with self.lock:
            if self.closed:
                raise self.closed_error()
            refusal = self.schedule.admit(jobs, self.clock.now())
            if refusal is None:
                self.live.update(jobs)
                for job in jobs:
                    self.counters.submitted += job.requests
                return True
            if refusal.countable:
                return False
            self.counters.reject(refusal.what)
        raise refusal_error(refusal)

    def cancel(self, job: Job, index: int) -> bool:
        """Strike off a future that is being cancelled; False if it is too late."""
        with self.lock:
            if not job.pending(index, index + 1):
                return False
            self.counters.cancelled += 1
            if job.grouped:
                self.schedule.drop_text(job, index)
            else:
                self.schedule.drop(job)
            if not job.remaining:
                self.live.discard(job)
            return True

    # Tokenising

    def prepare_step(self, role: str, run_through: bool = False) -> bool:
        """Tokenise the next chunk; False if nothing waits.

        Args:
            role: Which thread calls, so that its work is found if it dies.
            run_through: Run the chunk at once if it is the next batch as it is.
        """
        with self.lock:
            jobs = self.schedule.take_waiting()
            if not jobs:
                return False
            self.tokenising[role] = jobs
        started = self.clock.now()
        self._prepare(jobs, run_through)
        with self.lock:
            self.tokenising.pop(role, None)
            if not run_through:
                self.counters.stages["prepare"].observe(self.clock.now() - started)
        return True

    def _prepare(self, jobs: list[Job], run_through: bool = False) -> None:
        """Tokenise jobs of one prompt; one that cannot be tokenised fails alone."""
        pending = [jobs]
        while pending:
            jobs = pending.pop()
            # A job that is answered meanwhile swaps its list for an empty one: read it once.
            parts = [job.texts for job in jobs]
            if not any(parts):
                continue
            started = self.clock.now()
            try:
                prepared = self._tokenise(parts, jobs[0].prompt)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is some text's
                if len(jobs) > 1:
                    middle = len(jobs) // 2
                    pending += [jobs[middle:], jobs[:middle]]
                elif jobs[0].grouped:
                    self._prepare_texts(jobs[0], parts[0])
                else:
                    self.fail_job(jobs[0], error)
                continue
            if run_through:
                with self.lock:
                    self.counters.stages["prepare"].observe(self.clock.now() - started)
                if self._run_through(jobs, prepared):
                    continue
            self._make_ready(jobs, [len(part) for part in parts], prepared)

    def _tokenise(self, parts: Sequence[list[str]], prompt: Prompt) -> Prepared:
        texts = parts[0] if len(parts) == 1 else [text for part in parts for text in part]
        prepared = self.encoder.prepare(texts, prompt_name=prompt[0], prompt=prompt[1])
        if len(prepared.batch) != len(texts):
            raise BackendError(
                f"the encoder prepared {len(prepared.batch)} texts", limit=f"expected {len(texts)}"
            )
        return prepared

    def _make_ready(self, jobs: Sequence[Job], counts: Sequence[int], prepared: Prepared) -> None:
        offsets = prepared.batch.starts.tolist()
        base = 0
        with self.lock:
            self._count_tokens(prepared)
            for job, count in zip(jobs, counts, strict=True):
                if job.remaining:
                    change = job.adopt(prepared.batch, offsets, base)
                    self.schedule.mark_ready(job, change)
                base += count

    def _count_tokens(self, prepared: Prepared) -> None:
        self.counters.truncated += prepared.truncated
        self.counters.unknown += prepared.unknown

    def _prepare_texts(self, job: Job, texts: list[str]) -> None:
        """Something in a grouped job is bad: fail it alone and tokenise the rest."""
        good = list(texts)
        stack = [(0, len(good))]
        while stack:
            start, stop = stack.pop()
            try:
                self._tokenise([good[start:stop]], job.prompt)
            except Exception as error:  # noqa: BLE001 - as above
                if stop - start > 1:
                    middle = (start + stop) // 2
                    stack += [(middle, stop), (start, middle)]
                else:
                    self.fail_text(job, start, error)
                    # The guilty one is answered; an empty text holds its position.
                    good[start] = ""
        if not job.remaining:
            return
        try:
            prepared = self._tokenise([good], job.prompt)
        except Exception as error:  # noqa: BLE001 - as above
            self.fail_job(job, error)
        else:
            self._make_ready([job], [len(good)], prepared)

    # Running

    def run_step(self) -> bool:
        """Run the next batch and answer it; False if there was nothing to do."""
        with self.lock:
            batch = self.schedule.take(self.clock.now())
            shed = [future for job in batch.shed for future in self._detach(job)]
            self.counters.shed += len(shed)
            segments = batch.segments
            if segments:
                self._begin(segments, batch.tokens)
                sources = [source(segment) for segment in segments]
        self._fail_all(shed, _unmeetable)
        if segments:
            self._run(segments, sources)
        return bool(segments or shed)

    def _run_through(self, jobs: Sequence[Job], prepared: Prepared) -> bool:
        """Run whole jobs right after tokenising them, if they are the next batch anyway."""
        packed = prepared.batch
        with self.lock:
            if not self.schedule.take_through(jobs, packed.num_tokens, self.clock.now()):
                return False
            self._count_tokens(prepared)
            segments = [Segment(job, 0, job.count) for job in jobs]
            self._begin(segments, packed.num_tokens)
        self._run(segments, [Source(packed, 0, len(packed))])
        return True

    def _begin(self, segments: Sequence[Segment], tokens: int) -> None:
        now = self.clock.now()
        self.running, self.running_tokens, self.running_since = segments, tokens, now
        counters = self.counters
        counters.batches += 1
        counters.batch_tokens += tokens
        counters.batch_texts += sum([stop - start for _, start, stop in segments])
        counters.stages["queue"].observe_many([now - job.arrived for job, _, _ in segments])

    def _run(self, segments: Sequence[Segment], sources: Sequence[Source]) -> None:
        """Run a batch; when it fails, halve it until only the guilty texts fail."""
        try:
            packed = join(sources)
            started = self.clock.now()
            try:
                pooled = self.checked_run(packed)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is some text's
                isolate(self, single_texts(segments), packed, error)
                return
            ended = self.clock.now()
            self.answer(segments, pooled)
            answered = self.clock.now()
            with self.lock:
                self.schedule.learn_run(packed.num_tokens, answered - started)
                self.counters.stages["run"].observe(ended - started)
                self.counters.stages["finish"].observe(answered - ended)
        finally:
            with self.lock:
                self.running, self.running_tokens, self.running_since = (), 0, None
                self.schedule.batch_done(self.clock.now())

    def checked_run(self, packed: Packed) -> Pooled:
        """Run, and refuse an answer of another shape than asked for."""
        pooled = self.encoder.run(packed)
        rows, dim = len(packed), self.encoder.dim
        if pooled.vectors.shape != (rows, dim) or pooled.norms.shape != (rows,):
            raise BackendError(
                f"the backend returned vectors {pooled.vectors.shape} and norms "
                f"{pooled.norms.shape}",
                limit=f"expected {(rows, dim)} and {(rows,)}",
                remedy="report this backend",
            )
        return pooled

    def awaited(self, segment: Segment) -> bool:
        """Whether anybody still waits for a segment."""
        with self.lock:
            return bool(segment.job.pending(segment.start, segment.stop))

    def count_bisection(self) -> None:
        with self.lock:
            self.counters.bisections += 1

    # Answering

    def answer(self, segments: Sequence[Segment], pooled: Pooled) -> None:
        """Hand out the rows of a batch that has run."""
        dims = {segment.job.truncate_dim for segment in segments}
        if len(dims) == 1:
            self._finish(segments, pooled, dims.pop())
            return
        for truncate_dim in dims:
            part: list[Segment] = []
            rows: list[int] = []
            at = 0
            for segment in segments:
                count = segment.stop - segment.start
                if segment.job.truncate_dim == truncate_dim:
                    part.append(segment)
                    rows.extend(range(at, at + count))
                at += count
            self._finish(part, Pooled(pooled.vectors[rows], pooled.norms[rows]), truncate_dim)

    def _finish(
        self, segments: Sequence[Segment], pooled: Pooled, truncate_dim: int | None
    ) -> None:
        try:
            vectors = self.encoder.finish(pooled, truncate_dim=truncate_dim)
            expected = (len(pooled.norms), truncate_dim or self.encoder.dim)
            if vectors.shape != expected:
                raise BackendError(
                    f"the encoder finished vectors {vectors.shape}", limit=f"expected {expected}"
                )
        except Exception as error:  # noqa: BLE001 - reported to who asked
            for segment in segments:
                self.fail_segment(segment, error)
            return
        rows = _own_rows(segments, vectors)
        values: list[Float32] = []
        # An answer never comes after its deadline, however late the thread that watches is.
        self.expire_step()
        with self.lock:
            # Written down before the books forget them: see `recover`.
            futures = self.owed[threading.get_ident()] = []
            at = 0
            for job, start, stop in segments:
                count = stop - start
                if job.single and job.remaining:
                    self._strike_off(job, futures, values, rows[at])
                elif job.remaining:
                    self._strike_rows(job, start, stop, rows[at : at + count], futures, values)
                at += count
            self.counters.completed += len(futures)
        settle_all(futures, values)
        self._paid()

    def _strike_off(
        self, job: Job, futures: list[BatchFuture], values: list[Float32], value: Float32
    ) -> None:
        """A whole job is answered. Holds the lock."""
        if job.future is not None:
            futures.append(job.future)
            values.append(value)
        job.remaining = 0
        self.live.discard(job)
        self.schedule.leave(job)

    def _strike_rows(
        self,
        job: Job,
        start: int,
        stop: int,
        rows: list[Float32],
        futures: list[BatchFuture],
        values: list[Float32],
    ) -> None:
        """Some texts of a job are answered. Holds the lock."""
        if job.grouped:
            if job.settled is None:
                futures += job.futures[start:stop]
                values += rows
            else:
                for index in job.pending(start, stop):
                    futures.append(job.futures[index])
                    values.append(rows[index - start])
            job.settle(start, stop)
            if not job.remaining:
                self.live.discard(job)
                self.schedule.leave(job)
            return
        if job.rows is None:
            job.rows = np.empty((job.count, len(rows[0])), np.float32)
        job.rows[start:stop] = rows
        if job.remaining == stop - start:
            self._strike_off(job, futures, values, job.rows)
        else:
            job.settle(start, stop)

    def fail_segment(self, segment: Segment, error: BaseException) -> None:
        """Fail the texts of a segment, or the whole request that they belong to."""
        job, start, stop = segment
        if job.grouped:
            for index in range(start, stop):
                self.fail_text(job, index, error)
        else:
            self.fail_job(job, error)

    def fail_text(self, job: Job, index: int, error: BaseException) -> None:
        """Fail one text of a grouped job, if it is still waited for."""
        with self.lock:
            if not job.pending(index, index + 1):
                return
            future = job.futures[index]
            self.owed.setdefault(threading.get_ident(), []).append(future)
            self.counters.failed += self.schedule.drop_text(job, index)
            if not job.remaining:
                self.live.discard(job)
        future.settle_error(error)
        self._paid()

    def fail_job(self, job: Job, error: BaseException) -> None:
        """Fail whatever of a job is still waited for."""
        with self.lock:
            futures = self._detach(job)
            self.counters.failed += len(futures)
        self._fail_all(futures, lambda: error)

    def _detach(self, job: Job) -> list[BatchFuture]:
        """Strike a job off; the futures that are left to settle. Holds the lock."""
        if not job.remaining:
            return []
        if job.grouped:
            futures = [job.futures[i] for i in job.pending(0, job.count)]
        else:
            futures = [job.future] if job.future is not None else []
        self.owed.setdefault(threading.get_ident(), []).extend(futures)
        self.schedule.drop(job)
        self.live.discard(job)
        return futures

    def _fail_all(self, futures: Iterable[BatchFuture], error: Callable[[], BaseException]) -> None:
        for future in futures:
            future.settle_error(error())
        self._paid()

    def _paid(self) -> None:
        self.owed.pop(threading.get_ident(), None)

    # Deadlines and closing

    def expire_step(self) -> None:
        """Fail every request whose deadline has passed, wherever it is."""
        with self.lock:
            late = self.schedule.expired(self.clock.now())
            if not late:
                return
            futures = [future for job in late for future in self._detach(job)]
            self.counters.expired += len(futures)
        self._fail_all(futures, _expired)

    def fail_queued(self) -> None:
        """Fail everything that is not in the running batch: the batcher closes."""
        error = BatcherClosed("the batcher was closed before the request ran")
        with self.lock:
            running = {segment.job for segment in self.running}
            jobs = list(self.live)
        for job in jobs:
            if job not in running or (job.place is not None and not job.grouped):
                self.fail_job(job, error)
            else:
                for index in range(job.taken, job.count):
                    self.fail_text(job, index, error)

    def fail_everything(self, error: BaseException) -> None:
        """Fail all that is unanswered, the running batch included."""
        with self.lock:
            jobs = list(self.live)
        for job in jobs:
            self.fail_job(job, error)

    def snapshot(self) -> BatcherStats:
        """All numbers at one moment."""
        with self.lock:
            return self.counters.snapshot(
                queue_requests=self.schedule.requests,
                queue_tokens=self.schedule.tokens,
                queue_bytes=self.schedule.nbytes,
                running_tokens=self.running_tokens,
                per_token_s=self.schedule.latency.per_token_s,
                per_batch_s=self.schedule.latency.per_batch_s,
            )


def _own_rows(segments: Sequence[Segment], vectors: Float32) -> list[Float32]:
    """The rows of a batch, copied by caller: who keeps a vector keeps none of somebody else's.

    Texts of one `submit_many` share an array. A copy each would cost more than all else about
    them.
    """
    if len(segments) == len(vectors):
        return [row.copy() for row in vectors]
    rows: list[Float32] = []
    for _, start, stop in segments:
        at = len(rows)
        rows.extend(vectors[at : at + stop - start].copy())
    return rows


def _closed() -> BatcherClosed:
    return BatcherClosed("the batcher is closed", remedy="make a new Batcher")


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline has passed", remedy="allow more time")


def _unmeetable() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline cannot be met any more", remedy="allow more time, or send less at once"
    )
