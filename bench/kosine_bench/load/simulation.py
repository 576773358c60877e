"""The batcher under open-loop load on a fake clock: exact, repeatable, and as fast as it goes.

While a batch "runs", the arrivals that fall into it are submitted at their times. What comes out
depends on the policy and the cost of batches only, never on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kosine.errors import BatcherError, QueueFull
from kosine.packed import Packed, Pooled
from kosine.testing import FakeBackend, FakeClock, FakeEncoder, SteppedBatcher
from kosine_bench.measuring.arrivals import poisson_times

__all__ = ["Outcome", "capacity_tps", "simulate"]


@dataclass(slots=True)
class Outcome:
    """What became of the requests.

    Attributes:
        latencies_s: Of the answered, in seconds, from their scheduled arrival.
        rejected: Refused when they were submitted.
        answered_tokens: Of the answered.
        late: Accepted, but failed by their deadline.
        seconds: From the first arrival to the last answer.
        most_queue_tokens: The largest queue seen.
    """

    latencies_s: list[float] = field(default_factory=list)
    answered_tokens: int = 0
    rejected: int = 0
    late: int = 0
    seconds: float = 0.0
    most_queue_tokens: int = 0

    @property
    def goodput_tps(self) -> float:
        """Tokens of answered requests per second."""
        return self.answered_tokens / self.seconds if self.seconds else 0.0

    def percentile_s(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent)) if self.latencies_s else 0.0


class _SteppedBackend(FakeBackend):
    """Lets time pass through a callback, so that others may act meanwhile."""

    def __init__(self, cost: Callable[[Packed], float]) -> None:
        super().__init__(dim=2)
        self.keep_batches = False
        self.seconds = cost
        self.pass_time: Callable[[float], object] = float

    def run(self, batch: Packed) -> Pooled:
        self.pass_time(self.seconds(batch))
        return super().run(batch)


def capacity_tps(texts: Sequence[str], cost: Callable[[Packed], float], batch_tokens: int) -> float:
    """Tokens per second with a queue that never runs dry."""
    encoder = FakeEncoder(FakeBackend(dim=2))
    batch = encoder.prepare(texts).batch
    seconds = 0.0
    start = 0
    for stop in range(1, len(batch) + 1):
        full = stop == len(batch)
        if full or batch.starts[stop + 1] - batch.starts[start] > batch_tokens:
            seconds += cost(batch.take(range(start, stop)))
            start = stop
    return batch.num_tokens / seconds


def simulate(
    texts: Sequence[str],
    rate_tps: float,
    cost: Callable[[Packed], float],
    *,
    deadline: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Outcome:
    """Offer one request per text at Poisson times.

    Args:
        texts: What is asked for, in order.
        rate_tps: Mean offered tokens per second.
        cost: Seconds that a batch takes.
        deadline: Of each request, in seconds from its arrival.
        seed: Of the arrival times.
        options: Passed on to `Batcher`.
    """
    clock = FakeClock()
    backend = _SteppedBackend(cost)
    encoder = FakeEncoder(backend)
    batcher = SteppedBatcher(encoder, clock=clock, **options)
    begun = clock.now()
    sizes = encoder.count_tokens(texts)
    rate_rps = rate_tps * len(texts) / sum(sizes)
    times = (begun + poisson_times(rate_rps, len(texts), seed)).tolist()
    outcome = Outcome()
    following = 0

    def answered(future: Future[Any], number: int) -> None:
        if future.exception() is None:
            outcome.latencies_s.append(clock.now() - times[number])
            outcome.answered_tokens += sizes[number]
        elif isinstance(future.exception(), BatcherError):
            outcome.late += 1
        else:
            raise RuntimeError("a simulated request failed") from future.exception()

    def arrive() -> None:
        nonlocal following
        number = following
        try:
            future = batcher.submit(texts[following], deadline=deadline)
        except QueueFull:
            outcome.rejected += 1
        else:
            future.add_done_callback(lambda done: answered(done, number))
        following += 1
        outcome.most_queue_tokens = max(outcome.most_queue_tokens, batcher.stats().queue_tokens)

    def pass_time(seconds: float) -> None:
        until = clock.now() + seconds
        while following < len(times) and times[following] <= until:
            clock.advance(max(0.0, times[following] - clock.now()))
            batcher.expire()
            arrive()
        clock.advance(max(0.0, until - clock.now()))
        batcher.expire()

    backend.pass_time = pass_time
    while True:
        batcher.expire()
        at = batcher.run_at()
        arrival = times[following] if following < len(times) else float("inf")
        if at <= clock.now():
            batcher.run_batch()
        elif min(at, arrival) == float("inf"):
            break
        else:
            pass_time(max(0.0, min(at, arrival) - clock.now()))
    outcome.seconds = clock.now() - begun
    batcher.close()
    return outcome
