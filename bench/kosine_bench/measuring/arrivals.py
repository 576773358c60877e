"""Open-loop load: requests arrive on their own schedule, whether or not earlier ones are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["num_requests", "poisson_times", "serve"]

SPIN_SECONDS = 2e-4
LEAST_REQUESTS = 8


def num_requests(
    rate: float, seconds: float, requests: int, most_seconds: float, most_requests: int
) -> int:
    """How many requests measure one rate of arrivals.

    What arrives in `seconds`; where that is fewer than `requests`, as many as arrive in up to
    `most_seconds`; never more than `most_requests`, nor fewer than 8.
    """
    wanted = max(rate * seconds, min(requests, rate * max(most_seconds, seconds)))
    return int(min(max(wanted, LEAST_REQUESTS), most_requests))


def poisson_times(rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """(count,) arrival times in seconds of a Poisson process of `rate` requests a second."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    times: NDArray[np.float64] = np.cumsum(gaps)
    return times


def serve(
    encode: Callable[[list[str]], object],
    texts: Sequence[str],
    times: Sequence[float] | NDArray[np.float64],
    most: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[float], int]:
    """Serve `texts` as they arrive at `times`, in batches of whatever waits, up to `most`.

    A request's latency counts from its scheduled arrival to the end of its batch, so time
    spent waiting behind a slow batch is in it.

    Returns:
        Latency of each request in seconds, in order of arrival; how many batches there were.
    """
    latencies = [0.0] * len(texts)
    start, done, batches = clock(), 0, 0
    while done < len(texts):
        now = clock() - start
        wait = times[done] - now
        if wait > 0:
            if wait > SPIN_SECONDS:
                sleep(float(wait - SPIN_SECONDS))
            continue
        end = done + 1
        while end < len(texts) and end - done < most and times[end] <= now:
            end += 1
        encode(list(texts[done:end]))
        finished = clock() - start
        for i in range(done, end):
            latencies[i] = float(finished - times[i])
        done, batches = end, batches + 1
    return latencies, batches
