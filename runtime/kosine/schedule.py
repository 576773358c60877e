"""The batcher's policy: who is admitted, who goes next, who is dropped. No threads, no clock.

Every method takes the time as an argument and returns a decision; the caller carries it out.

- A queue is bounded in requests, tokens and bytes; a call is admitted whole or not at all.
- Order is by arrival, with a head start of `ageing_s` seconds per level of priority. Since
  everybody ages alike, that order never changes while waiting: nothing starves, and no
  re-sorting is needed.
- A batch takes requests in that order until the next text does not fit. A text over the
  budget goes alone. What is left of a request that was split queues up again at the end of
  its level, so that a huge request neither blocks the others nor waits for them for ever.
- A request whose deadline has passed, or is predicted to pass before its batch ends, is shed
  before it costs anything.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from kosine.ageing_queue import SWEEP_AT, AgeingQueue
from kosine.job import Job
from kosine.latency import LatencyModel
from kosine.segments import Segment

__all__ = ["Batch", "Limits", "Refusal", "Schedule"]

# A request is admitted, and a batch grown, if the answer is predicted within this part of the
# time that is left: under overload the queue settles at the limit, and predictions are not exact.
# A machine may become a tenth slower at any time, and then everybody in the queue is late together.
# A shorter queue serves no fewer: as many have to be refused, only earlier.
HEADROOM = 0.85
# How full a part of a call is meant to make a batch where upper estimates are not exact: a part
# that is over the budget after all leaves a remnant, which may have to run alone.
PART_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Limits:
    """What the queue may hold and how batches are cut. Seconds, tokens, UTF-8 bytes."""

    batch_tokens: int = 4_096
    wait_s: float = 0.0
    queue_tokens: int = 65_536
    queue_requests: int = 8_192
    queue_bytes: int = 16 << 20
    ageing_s: float = 1.0


@dataclass(slots=True)
class Batch:
    """What runs next, and what was dropped on the way to it."""

    segments: list[Segment] = field(default_factory=list)
    tokens: int = 0
    shed: list[Job] = field(default_factory=list)


class Refusal(NamedTuple):
    """Why a job was not admitted.

    Attributes:
        what: "tokens", "requests", "bytes" or "deadline".
        value: What the queue would have held; for a deadline, the predicted wait in seconds.
        limit: The bound; for a deadline, the time that was left.
        retry_after: Seconds until there should be room; infinite where there never can be.
        countable: The bound was only broken by the upper estimate of the tokens, and an exact
            count may well fit.
    """

    what: str
    value: float
    limit: float
    retry_after: float
    countable: bool = False


class Schedule:
    """The queue of one batcher.

    Args:
        limits: Bounds and budget.

    Attributes:
        tokens, requests, nbytes: What the queue holds. Tokens are upper estimates until a
            text is tokenised and exact afterwards.
        waiting: Jobs to tokenise.
        ready: Jobs to run.
        latency: What batches take.
        last_run_s: What the last one took; infinite before the first.
        estimate_ratio: What the upper estimates come to, as a running mean.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.latency = LatencyModel()
        self.waiting = AgeingQueue(limits.ageing_s)
        self.ready = AgeingQueue(limits.ageing_s)
        self.tokens = self.requests = self.nbytes = 0
        self.ready_tokens = 0
        self.busy_until = -math.inf
        self.last_run_s = math.inf
        self.estimate_ratio = 1.0
        self._level_tokens: dict[int, int] = {}
        self._deadlines: list[tuple[float, int, Job]] = []
        self._serial = count()
        self._deadlined = 0

    # Admission

    def admit(self, jobs: Sequence[Job], now: float) -> Refusal | None:
        """Put the jobs of one call into the queue, all of them, or say why not."""
        limits = self.limits
        if len(jobs) == 1:
            job = jobs[0]
            tokens, requests, nbytes = job.tokens, job.requests, job.nbytes
        else:
            tokens = sum(job.tokens for job in jobs)
            requests = sum(job.requests for job in jobs)
            nbytes = sum(job.nbytes for job in jobs)
        if (
            self.tokens + tokens > limits.queue_tokens
            or self.requests + requests > limits.queue_requests
            or self.nbytes + nbytes > limits.queue_bytes
        ):
            return self._over(jobs, tokens, requests, nbytes, now)
        if jobs[0].deadline != math.inf:
            refusal = self._late(jobs[0], tokens, now)
            if refusal is not None:
                return refusal
            for job in jobs:
                heapq.heappush(self._deadlines, (job.deadline, next(self._serial), job))
            self._deadlined += len(jobs)
        self.tokens += tokens
        self.requests += requests
        self.nbytes += nbytes
        if jobs[0].priority:
            self._charge_level(jobs[0].priority, tokens)
        for job in jobs:
            job.arrived = job.queued = now
            if job.packed is None:
                self.waiting.push(job)
            else:
                self.ready_tokens += job.tokens
                self.ready.push(job)
        return None

    def _over(
        self, jobs: Sequence[Job], tokens: int, requests: int, nbytes: int, now: float
    ) -> Refusal:
        limits = self.limits
        counted = jobs[0].packed is not None
        worst: Refusal | None = None
        for what, held, extra, limit in (
            ("requests", self.requests, requests, limits.queue_requests),
            ("bytes", self.nbytes, nbytes, limits.queue_bytes),
            ("tokens", self.tokens, tokens, limits.queue_tokens),
        ):
            if held + extra <= limit:
                continue
            countable = False
            if what == "tokens" and not counted:
                countable = held + extra * self.estimate_ratio <= limit
            if extra > limit and not countable:
                # A refusal for ever is never given on an estimate.
                texts = sum(job.count for job in jobs)
                countable = what == "tokens" and not counted and texts <= limit
                return Refusal(what, extra, limit, math.inf, countable)
            # What must leave first is a part of what is held: so is the time that it takes.
            share = min(1.0, (held + extra - limit) / held) if held else 0.0
            refusal = Refusal(what, held + extra, limit, self._backlog_s(now) * share, countable)
            if worst is None or not refusal.countable:
                worst = refusal
        assert worst is not None, "called because a bound is broken"
        return worst._replace(retry_after=max(worst.retry_after, self._batch_s()))

    def _late(self, job: Job, tokens: int, now: float) -> Refusal | None:
        """Whether the backlog ahead leaves no time; an idle batcher always tries."""
        if not self.tokens and now >= self.busy_until:
            return None
        ahead = self._expected(self._ahead(job.priority, now))
        own = tokens if job.packed is not None else tokens * self.estimate_ratio
        budget = self.limits.batch_tokens
        total = ahead + own
        if total > budget:
            # Behind a full batch the next one will be full too, and ends for all of it at once.
            total = -(-total // budget) * budget
        finish = max(now, self.busy_until) + self.latency.drain_at_most(total, budget)
        allowed = HEADROOM * (job.deadline - now)
        if finish - now <= allowed:
            return None
        return Refusal("deadline", finish - now, job.deadline - now, finish - now - allowed)

    def _ahead(self, priority: int, now: float) -> int:
        """Tokens in the queue that go before what arrives now."""
        levels = self._level_tokens
        if not levels:
            return self.tokens if priority <= 0 else self._aged_tokens(priority, now)
        return self._aged_tokens(priority, now)

    def _aged_tokens(self, priority: int, now: float) -> int:
        held = dict(self._level_tokens)
        held[0] = self.tokens - sum(held.values())
        ageing_s = self.limits.ageing_s
        aged = {
            head.priority
            for queue in (self.waiting, self.ready)
            for head in queue.heads()
            if head.queued - head.priority * ageing_s < now - priority * ageing_s
        }
        return sum(n for level, n in held.items() if level >= priority or level in aged)

    def _expected(self, tokens: int) -> float:
        """Tokens of a backlog, with the estimated part at what estimates have come to."""
        ready = min(self.ready_tokens, tokens)
        return ready + (tokens - ready) * self.estimate_ratio

    def _backlog_s(self, now: float) -> float:
        left = max(0.0, self.busy_until - now)
        return left + self.latency.drain(self._expected(self.tokens), self.limits.batch_tokens)

    def _batch_s(self) -> float:
        return self.latency.predict(self.limits.batch_tokens) if self.latency else 1.0

    # Tokenising

    def part_tokens(self) -> int:
        """Tokens, by the upper estimate, of a part of a call that should make one whole batch."""
        return int(self.limits.batch_tokens * max(1.0, PART_SHARE / self.estimate_ratio))

    def take_waiting(self) -> list[Job]:
        """Who is tokenised next: one prompt, about a batch's worth, in order."""
        chosen: list[Job] = []
        waiting = self.waiting
        room = self.limits.batch_tokens / self.estimate_ratio
        prompt = None
        while (job := waiting.head()) is not None:
            room -= job.tokens
            if chosen and (room < 0 or job.prompt != prompt):
                break
            prompt = job.prompt
            waiting.pop(job)
            chosen.append(job)
        return chosen

    def mark_ready(self, job: Job, change: int) -> None:
        """A job was tokenised, and its charge moved by `change`."""
        self.learn(job.tokens, job.tokens - change)
        self.tokens += change
        if job.priority:
            self._charge_level(job.priority, change)
        self.ready_tokens += job.tokens
        self.ready.push(job)

    def learn(self, tokens: int, estimate: int) -> None:
        """What an estimate has come to."""
        if estimate:
            self.estimate_ratio += 0.02 * (max(0.02, tokens / estimate) - self.estimate_ratio)

    def take_through(self, jobs: Sequence[Job], tokens: int, now: float) -> bool:
        """Pass jobs that were just tokenised straight into a batch of their own, if they would be
        exactly the next batch anyway: nothing else is ready, they fit, and nobody left or may
        have to be shed.

        Args:
            jobs: Whole jobs.
            tokens: Their exact tokens altogether.
        """
        if tokens > self.limits.batch_tokens or self.limits.wait_s > 0.0:
            return False
        if self.ready.head() is not None:
            return False
        for job in jobs:
            if job.remaining != job.count or job.deadline != math.inf or job.priority:
                return False
        estimate = requests = nbytes = 0
        for job in jobs:
            estimate += job.tokens
            requests += job.requests
            nbytes += job.nbytes
            job.tokens = job.requests = job.nbytes = 0
            job.taken = job.count
        self.learn(tokens, estimate)
        self.tokens -= estimate
        self.requests -= requests
        self.nbytes -= nbytes
        self.busy_until = now + self.latency.predict(tokens)
        return True

    # Running

    def run_at(self, now: float) -> float:
        """When the next batch should start: now or earlier, a time to wait for, or never."""
        head = self.ready.head()
        if head is None:
            return math.inf
        if self.limits.wait_s <= 0.0 or self.ready_tokens >= self.limits.batch_tokens:
            return now
        oldest = min(job.arrived for job in self.ready.heads())
        at = oldest + self.limits.wait_s
        self._drop_settled_deadlines()
        if self._deadlines:
            at = min(at, self._deadlines[0][0] - self.latency.predict(self.ready_tokens))
        return at

    def take(self, now: float) -> Batch:
        """Cut the next batch, in order, up to the budget; shed who cannot make it.

        A batch also ends where the next text would make it too long for the deadline of one that
        is in it already.
        """
        batch = Batch()
        budget = self.limits.batch_tokens
        probe: Job | None = None
        patience = math.inf
        while batch.tokens < budget and (job := self.ready.head()) is not None:
            if job.deadline != math.inf:
                need = self.latency.drain_at_most(batch.tokens + job.tokens, budget)
                if now + need > job.deadline:
                    self.ready.pop(job)
                    self.ready_tokens -= job.tokens
                    if probe is None and job.deadline > now:
                        probe = job
                    else:
                        batch.shed.append(job)
                    continue
            start = job.skip_settled()
            stop = job.fit(start, budget - batch.tokens)
            if stop == start:
                if batch.segments:
                    break
                stop = start + 1
            if patience != math.inf and batch.segments:
                longer = batch.tokens + job.span_tokens(start, stop)
                if self.latency.drain_at_most(longer, budget) > patience:
                    break
            patience = min(patience, HEADROOM * (job.deadline - now))
            self.ready.pop(job)
            self._take_segment(batch, job, start, stop, now)
        if probe is not None:
            # Nothing else to run: trying costs nobody's place and keeps the prediction honest.
            if batch.segments:
                batch.shed.append(probe)
            else:
                start = probe.skip_settled()
                stop = max(probe.fit(start, budget), start + 1)
                self.ready_tokens += probe.tokens
                self._take_segment(batch, probe, start, stop, now)
        if batch.segments:
            self.busy_until = now + self.latency.predict(batch.tokens)
        return batch

    def _take_segment(self, batch: Batch, job: Job, start: int, stop: int, now: float) -> None:
        """Move texts [start, stop) of a popped job into the batch."""
        used = 0
        runs = job.pending_runs(start, stop)
        for low, high in runs:
            batch.segments.append(Segment(job, low, high))
            used += job.span_tokens(low, high)
        batch.tokens += used
        job.taken = stop
        self.ready_tokens -= used
        if job.skip_settled() >= job.count:
            self._discharge(job, job.tokens, job.requests, job.nbytes)
            return
        sizes = job.sizes
        nbytes = texts = 0
        for low, high in runs:
            nbytes += sum(sizes[low:high])
            texts += high - low
        self._discharge(job, used, texts if job.grouped else 0, nbytes)
        job.queued = now
        self.ready.push(job)

    def learn_run(self, tokens: int, seconds: float) -> None:
        """What a batch has taken."""
        self.last_run_s = seconds
        self.latency.observe(tokens, seconds)

    def batch_done(self, now: float) -> None:
        """The backend is free."""
        self.busy_until = min(self.busy_until, now)

    # Leaving early

    def drop_text(self, job: Job, index: int) -> int:
        """One text of a grouped job is no longer waited for: give its place back.

        Returns 1, or 0 if it was answered before.
        """
        fresh = job.settle(index, index + 1)
        if fresh and index >= job.taken:
            tokens = job.text_tokens(index)
            if job.place is self.ready:
                self.ready_tokens -= tokens
            self._discharge(job, tokens, 1, job.sizes[index])
        if not job.remaining:
            self.leave(job)
        return fresh

    def drop(self, job: Job) -> None:
        """Nobody waits for this job any more: give its places back."""
        if job.place is self.ready:
            self.ready_tokens -= job.tokens
        job.remaining = 0
        self.leave(job)

    def leave(self, job: Job) -> None:
        """Forget a job that is answered, wherever it is."""
        if job.place is not None:
            job.place.bury()
            job.place = None
        if job.requests:
            self._discharge(job, job.tokens, job.requests, job.nbytes)
        if job.deadline != math.inf:
            self._deadlined -= 1
            job.deadline = math.inf
            if len(self._deadlines) > SWEEP_AT + 2 * self._deadlined:
                self._deadlines = [entry for entry in self._deadlines if entry[2].remaining]
                heapq.heapify(self._deadlines)
        job.release()

    def expired(self, now: float) -> list[Job]:
        """Unanswered jobs whose deadline has passed, whether they wait or run."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            job = heapq.heappop(self._deadlines)[2]
            if job.remaining:
                late.append(job)
        return late

    def next_deadline(self) -> float:
        """The earliest deadline of an unanswered job; infinite if there is none."""
        self._drop_settled_deadlines()
        return self._deadlines[0][0] if self._deadlines else math.inf

    def recount(self, tokenising: Iterable[Job]) -> None:
        """Recompute the sums from the jobs: a killed thread may have left a half-done step."""
        jobs = [*self.waiting, *tokenising, *self.ready]
        self.tokens = sum(job.tokens for job in jobs)
        self.requests = sum(job.requests for job in jobs)
        self.nbytes = sum(job.nbytes for job in jobs)
        self.ready_tokens = sum(job.tokens for job in self.ready)
        self._level_tokens = {}
        for job in jobs:
            if job.priority:
                self._charge_level(job.priority, job.tokens)

    def _discharge(self, job: Job, tokens: int, requests: int, nbytes: int) -> None:
        self.tokens -= tokens
        self.requests -= requests
        self.nbytes -= nbytes
        job.tokens -= tokens
        job.requests -= requests
        job.nbytes -= nbytes
        if job.priority:
            self._charge_level(job.priority, -tokens)

    def _charge_level(self, priority: int, tokens: int) -> None:
        """Tokens by priority, for those that are not 0."""
        held = self._level_tokens.get(priority, 0) + tokens
        if held:
            self._level_tokens[priority] = held
        else:
            self._level_tokens.pop(priority, None)

    def _drop_settled_deadlines(self) -> None:
        while self._deadlines and not self._deadlines[0][2].remaining:
            heapq.heappop(self._deadlines)
