"""Numbers for operators: what the batcher holds, has done, refused, and how long stages take.

Counts and durations only: nothing in here comes from a text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, Final

__all__ = ["BatcherStats", "Counters", "Health", "Histogram", "HistogramSnapshot"]

# Seconds: 0.1 ms to 10 s, about three to a decade.
BUCKETS_S: Final = (
    *(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
STAGES: Final = ("queue", "prepare", "run", "finish")


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """Durations in seconds.

    Attributes:
        count: How many were observed.
        total_s: Their sum.
        buckets: For each upper bound in seconds, how many were at most that long.
    """

    count: int
    total_s: float
    buckets: Mapping[float, int]

    @property
    def mean_s(self) -> float:
        return self.total_s / self.count if self.count else 0.0


class Histogram:
    """Durations counted into fixed buckets."""

    __slots__ = ("_counts", "total_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def snapshot(self) -> HistogramSnapshot:
        counts = list(self._counts)
        below = 0
        buckets = {}
        for bound, number in zip(BUCKETS_S, counts, strict=False):
            below += number
            buckets[bound] = below
        return HistogramSnapshot(sum(counts), self.total_s, buckets)


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """A snapshot. "Requests" are futures: one per `submit`, one per text of `submit_many`.

    Attributes:
        queue_requests, queue_tokens, queue_bytes: What waits now.
        running_tokens: Tokens in the batch that runs now.
        submitted: Requests admitted so far; each ends in one of completed, failed, cancelled,
            expired or shed.
        completed: Ended with a result.
        failed: Ended with an error of their own, of the backend or of the worker.
        cancelled: Ended by `cancel`.
        expired: Ended because their deadline passed.
        shed: Ended because their deadline could no longer be met.
        rejected: Calls refused at the door, by reason: tokens, requests, bytes, deadline.
        batches, batch_tokens, batch_texts: Batches run, and what was in them altogether.
        bisections: Failed batches that were split to find the guilty text.
        truncated: Texts cut at the encoder's limit.
        unknown: Tokens that the tokenizer did not know.
        worker_crashes: How often a worker thread died and was replaced.
        cache_hits, cache_misses: Texts that the cache knew, and did not (0 without one).
        cache_bytes: What the cache takes.
        stages: Durations by stage: "queue" per text from arrival to batch, "prepare" per
            tokenised call, "run" and "finish" per batch.
        per_token_s, per_batch_s: The fitted line of what batches take.
    """

    queue_requests: int
    queue_tokens: int
    queue_bytes: int
    running_tokens: int
    submitted: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    shed: int
    rejected: Mapping[str, int]
    batches: int
    batch_tokens: int
    batch_texts: int
    bisections: int
    truncated: int
    unknown: int
    worker_crashes: int
    cache_hits: int
    cache_misses: int
    cache_bytes: int
    stages: Mapping[str, HistogramSnapshot]
    per_token_s: float
    per_batch_s: float

    @property
    def cache_hit_rate(self) -> float:
        """The share of texts that the cache knew; 0 where none were asked for."""
        return self.cache_hits / max(1, self.cache_hits + self.cache_misses)


# Read when a snapshot is taken; all other whole numbers are counted.
GAUGES: Final = ("queue_requests", "queue_tokens", "queue_bytes", "running_tokens")
COUNTED: Final = tuple(
    each.name for each in fields(BatcherStats) if each.type == "int" and each.name not in GAUGES
)


class Counters(SimpleNamespace):
    """What a batcher has counted, by the names of `BatcherStats`; changed only under its lock."""

    def __init__(self) -> None:
        super().__init__(**dict.fromkeys(COUNTED, 0))
        self.rejected: dict[str, int] = {}
        self.stages = {stage: Histogram() for stage in STAGES}

    def reject(self, what: str) -> None:
        self.rejected[what] = self.rejected.get(what, 0) + 1

    def snapshot(self, **gauges: Any) -> BatcherStats:
        """Everything counted so far, beside what is passed in."""
        counted = {name: getattr(self, name) for name in COUNTED}
        stages = {name: stage.snapshot() for name, stage in self.stages.items()}
        return BatcherStats(rejected=dict(self.rejected), stages=stages, **counted, **gauges)


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
