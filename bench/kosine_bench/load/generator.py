"""What is offered to a batcher: texts of mixed lengths, open-loop or without a pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kosine import Batcher
from kosine.errors import BatcherError, DeadlineExceeded, QueueFull
from kosine_bench.load.encoders import CountingEncoder
from kosine_bench.measuring.arrivals import poisson_times
from kosine_bench.measuring.workload import WORDS, WORKLOADS, draw_lengths

__all__ = [
    *("LONGEST", "SHORTEST", "UNBOUNDED_QUEUE", "kept_deadline", "mixed_texts", "offer"),
    *("saturate", "summary"),
]

KORSTS: Final = WORKLOADS["korsts"].columns[0]
SHORTEST, LONGEST = KORSTS.minimum, KORSTS.maximum
# Options of a `Batcher` that refuses nobody: beyond capacity its queue grows while texts arrive.
UNBOUNDED_QUEUE: Final[dict[str, Any]] = {
    "max_queue_tokens": 1 << 24,
    "max_queue_requests": 1 << 22,
    "max_queue_bytes": 1 << 28,
}
# Of accepted requests: what a 99th percentile leaves out.
LATE: Final = 0.01
PERCENTS: Final = (50, 90, 99)
# Latencies are answers' only; a point without any says so by an infinite p99.
NO_ANSWER: Final = float("inf")


def mixed_texts(encoder: CountingEncoder, count: int, seed: int) -> list[str]:
    """Texts of 5 to 63 tokens, special ones included, with the lengths of the korsts workload.

    Args:
        encoder: Whose tokens are counted.
        count: How many texts.
        seed: Of lengths and words.
    """
    generator = np.random.default_rng(seed)
    wanted = draw_lengths(KORSTS, count, generator)
    pool = [" ".join(generator.choice(WORDS, size)) for size in range(1, 64) for _ in range(24)]
    tokens = np.asarray(encoder.count_tokens(pool))
    by_length = {n: np.flatnonzero(tokens == n) for n in set(tokens.tolist())}
    available = np.array(sorted(n for n in by_length if SHORTEST <= n <= LONGEST))
    nearest = available[np.abs(available[None, :] - wanted[:, None]).argmin(axis=1)]
    return [pool[int(generator.choice(by_length[int(n)]))] for n in nearest]


def saturate(batcher: Batcher, texts: Sequence[str], seconds: float) -> tuple[float, int]:
    """Keep a queue from running dry for so long; the seconds it took, the requests answered."""
    started = time.perf_counter()
    at = 0
    pending: list[Future[Any]] = []
    while time.perf_counter() < started + seconds:
        try:
            pending += batcher.submit_many([texts[(at + i) % len(texts)] for i in range(32)])
            at += 32
        except QueueFull:
            pending.pop(0).result()
    took, count = time.perf_counter() - started, batcher.stats().completed
    batcher.close(drain=False)
    wait(pending)
    return took, count


def offer(
    batcher: Batcher,
    texts: Sequence[str],
    rate_rps: float,
    count: int,
    seed: int,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Open-loop arrivals; latencies, in seconds, count from the scheduled arrival.

    Returns:
        Under "latencies_s" those of the answered requests, in order of arrival; and the counts.
    """
    times = poisson_times(rate_rps, count, seed)
    latencies = np.full(count, np.nan)
    late = rejected = 0
    lock = threading.Lock()

    def answered(future: Future[Any], number: int, due: float) -> None:
        nonlocal late
        took = time.perf_counter() - due
        error = future.exception()
        with lock:
            if error is None:
                latencies[number] = took
            elif isinstance(error, BatcherError):
                late += 1
            else:
                raise error

    started = time.perf_counter()
    pending = []
    for number, offset in enumerate(times.tolist()):
        due = started + offset
        delay = due - time.perf_counter()
        if delay > 0:
            time.sleep(delay)
        # A generator that lags behind its schedule must not grant extra time.
        left = None if deadline is None else deadline - (time.perf_counter() - due)
        try:
            future = batcher.submit(texts[(seed + number) % len(texts)], deadline=left)
        except (QueueFull, DeadlineExceeded):
            rejected += 1
        else:
            future.add_done_callback(partial(answered, number=number, due=due))
            pending.append(future)
    wait(pending)
    return {
        "latencies_s": latencies[~np.isnan(latencies)],
        "arrivals_s": float(times[-1]),
        "seconds": time.perf_counter() - started,
        "requests": count,
        "rejected": rejected,
        "late": late,
    }


def kept_deadline(p99_s: float, deadline_s: float, *, accepted: int, late: int) -> bool:
    """Whether the p99 of all accepted requests is within their deadline.

    Args:
        p99_s: Of the answered ones. Who was failed at the deadline has no latency, and is over it
            all the same.
        deadline_s: Counted like the latencies.
        accepted: How many, those that were failed included.
        late: How many were failed.
    """
    return p99_s <= deadline_s and late <= LATE * accepted


def summary(passes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one point: counts of all its passes, and medians of their percentiles.

    A median, because another tenant of the machine can take half a second from any one pass.
    Under `p99_s_of_passes` is what it is the median of.
    """
    total = {
        key: sum(one[key] for one in passes)
        for key in ("requests", "rejected", "late", "arrivals_s", "seconds")
    }
    answered = sum(len(one["latencies_s"]) for one in passes)
    each = np.array([_percentiles(one["latencies_s"]) for one in passes])
    middle = zip(PERCENTS, np.median(each, axis=0).tolist(), strict=True)
    return {
        "offered_rps": round(total["requests"] / total["arrivals_s"], 3),
        "answered_rps": round(answered / total["seconds"], 3),
        "requests": total["requests"],
        "rejected": total["rejected"],
        "late": total["late"],
        **{f"p{percent}_s": round(value, 6) for percent, value in middle},
        "p99_s_of_passes": each[:, PERCENTS.index(99)].round(6).tolist(),
    }


def _percentiles(latencies: NDArray[np.float64]) -> list[float]:
    if len(latencies) == 0:
        return [NO_ANSWER] * len(PERCENTS)
    found: list[float] = np.percentile(latencies, PERCENTS).tolist()
    return found
