"""More load than the batcher can carry, in real time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import numpy as np

from kosine import Batcher
from kosine.errors import DeadlineExceeded, QueueFull
from kosine.testing import FakeEncoder, linear_cost
from kosine_bench.load.generator import kept_deadline
from kosine_bench.reliability.harness import PATIENCE_S, Figures, lean_backend

__all__ = ["overload", "within_overload_bar"]

DEADLINE_S = 0.3
QUEUE_TOKENS = 16_384


def overload(factor: float = 2.0, seconds: float = 10.0) -> Figures:
    """Offer a multiple of the measured capacity; what is served, refused, and how fast."""
    backend = lean_backend(cost=linear_cost(5e-5, 1e-3))
    chance = random.Random(0)
    texts = [chance.choice("abc") * chance.randint(5, 63) for _ in range(512)]
    mean_tokens = sum(len(text) + 1 for text in texts) / len(texts)
    accepted: list[tuple[float, int]] = []
    refusals: list[float] = []
    late = most_queued = offered = 0
    with Batcher(
        FakeEncoder(backend), max_batch_tokens=1_024, max_queue_tokens=QUEUE_TOKENS
    ) as batcher:
        capacity = _capacity_tps(batcher, texts)
        rate = capacity * factor / mean_tokens
        lock = threading.Lock()

        def answered(future: Future[Any], arrived: float, tokens: int) -> None:
            nonlocal late
            took = time.monotonic() - arrived
            with lock:
                if future.exception() is None:
                    accepted.append((took, tokens))
                elif isinstance(future.exception(), DeadlineExceeded):
                    late += 1
                else:
                    raise RuntimeError("failed under overload") from future.exception()

        started = time.monotonic()
        due = started
        while due < started + seconds:
            due += chance.expovariate(rate)
            delay = due - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            text = texts[offered % len(texts)]
            offered += 1
            arrived = time.monotonic()
            try:
                future = batcher.submit(text, deadline=DEADLINE_S)
            except QueueFull:
                refusals.append(time.monotonic() - arrived)
            else:
                future.add_done_callback(partial(answered, arrived=arrived, tokens=len(text) + 1))
            most_queued = max(most_queued, batcher.stats().queue_tokens)
        ended = time.monotonic()
    latencies = [took for took, _ in accepted]
    served = sum(tokens for _, tokens in accepted)
    return {
        "factor": factor,
        "offered_factor": round(offered * mean_tokens / (ended - started) / capacity, 2),
        "capacity_tokens_per_s": round(capacity),
        "goodput_over_capacity": round(served / (ended - started) / capacity, 4),
        "accepted": len(accepted),
        "refused": len(refusals),
        "admitted_but_late": late,
        "deadline_s": DEADLINE_S,
        "accepted_p99_s": round(float(np.percentile(latencies, 99)), 4),
        "refusal_p99_s": round(float(np.percentile(refusals, 99)), 6) if refusals else 0.0,
        "most_queue_tokens": most_queued,
        "max_queue_tokens": QUEUE_TOKENS,
    }


def within_overload_bar(figures: Figures) -> bool:
    """90 % of capacity served, 99 % of the accepted in time, quick refusals, a bounded queue."""
    late = figures["admitted_but_late"]
    return bool(
        figures["goodput_over_capacity"] >= 0.9
        and kept_deadline(
            figures["accepted_p99_s"],
            figures["deadline_s"],
            accepted=figures["accepted"] + late,
            late=late,
        )
        and figures["refusal_p99_s"] <= 0.020
        and figures["most_queue_tokens"] <= figures["max_queue_tokens"]
    )


def _capacity_tps(batcher: Batcher, texts: Sequence[str], seconds: float = 1.0) -> float:
    """Tokens per second with a queue that never runs dry, deadlines and refusals aside."""
    before = batcher.stats().batch_tokens
    started = time.monotonic()
    waiting: list[Future[Any]] = []
    while time.monotonic() < started + seconds:
        try:
            waiting += batcher.submit_many(texts[:64])
        except QueueFull:
            waiting.pop(0).result(PATIENCE_S)
    ended = time.monotonic()
    tokens = batcher.stats().batch_tokens - before
    wait(waiting, PATIENCE_S)
    return tokens / (ended - started)
