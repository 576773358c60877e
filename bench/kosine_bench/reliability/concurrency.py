"""Many callers at once: mixed-up answers, cancellations, and texts that make a batch fail."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from kosine import Batcher
from kosine.packed import Float32
from kosine.testing import FAULT_MARKS, FakeBackend, FakeEncoder, Fault, linear_cost
from kosine_bench.load.generator import UNBOUNDED_QUEUE
from kosine_bench.reliability.harness import PATIENCE_S, Figures, in_threads, lean_backend

__all__ = ["cancel_storm", "mixups", "poison"]

MIXUP_THREADS = 8
CANCEL_THREADS = 4
TEXTS_PER_BATCH = 32
POISONS = (Fault.RAISE, Fault.NAN, Fault.SHAPE)


def mixups(requests: int = 100_000, encoder: FakeEncoder | None = None) -> Figures:
    """Tagged requests from threads and an event loop; how many got another's vector."""
    encoder = encoder or FakeEncoder(lean_backend())
    share = requests // (MIXUP_THREADS + 1)
    swaps = [0] * (MIXUP_THREADS + 1)

    def check(slot: int, texts: Sequence[str], rows: Sequence[Float32]) -> None:
        right = FakeEncoder(lean_backend()).encode(texts)
        swaps[slot] += int((np.stack(rows) != right).any(axis=1).sum())

    with Batcher(encoder, **UNBOUNDED_QUEUE) as batcher:

        def caller(number: int) -> None:
            chance = random.Random(number)
            done = 0
            while done < share:
                count = min(chance.randint(1, 120), share - done)
                texts = [f"thread {number} request {done + i}" for i in range(count)]
                kind = chance.randrange(3)
                if kind == 0:
                    rows = [future.result(PATIENCE_S) for future in batcher.submit_many(texts)]
                elif kind == 1:
                    rows = list(batcher.submit(texts).result(PATIENCE_S))
                else:
                    futures = [batcher.submit(text) for text in texts]
                    rows = [future.result(PATIENCE_S) for future in futures]
                check(number, texts, rows)
                done += count

        async def loop_caller() -> None:
            done = 0
            while done < share:
                count = min(100, share - done)
                texts = [f"loop request {done + i}" for i in range(count)]
                rows = await asyncio.gather(*[batcher.aencode(text) for text in texts])
                check(MIXUP_THREADS, texts, rows)
                done += count

        started = time.perf_counter()
        with in_threads(caller, MIXUP_THREADS):
            asyncio.run(loop_caller())
        seconds = time.perf_counter() - started
    return {
        "requests": share * (MIXUP_THREADS + 1),
        "threads": MIXUP_THREADS,
        "swaps": sum(swaps),
        "seconds": round(seconds, 2),
    }


def cancel_storm(cancels: int = 10_000) -> Figures:
    """Cancel at random stages; what is still held afterwards, and whether the worker lives."""
    backend = lean_backend(cost=linear_cost(2e-7, 2e-4))
    cancelled = [0] * CANCEL_THREADS
    wrong = [0] * CANCEL_THREADS
    with Batcher(FakeEncoder(backend), max_batch_tokens=512, **UNBOUNDED_QUEUE) as batcher:

        def caller(number: int) -> None:
            chance = random.Random(number)
            while cancelled[number] < cancels // CANCEL_THREADS:
                texts = [f"cancelled {chance.random()}" for _ in range(40)]
                kind = chance.randrange(3)
                if kind == 0:
                    futures: Sequence[Future[Any]] = batcher.submit_many(texts)
                elif kind == 1:
                    futures = [batcher.submit(text) for text in texts]
                else:
                    futures = [batcher.submit(texts)]
                time.sleep(chance.choice((0.0, 0.0, 1e-4, 1e-3)))
                for future in futures:
                    if chance.random() < 0.8 and future.cancel():
                        cancelled[number] += 1
                        wrong[number] += not future.cancelled()
                for future in futures:
                    if not future.cancelled():
                        future.result(PATIENCE_S)

        with in_threads(caller, CANCEL_THREADS):
            pass
        alive = batcher.submit("alive").result(PATIENCE_S).shape == (8,)
        stats, health = batcher.stats(), batcher.health()
    return {
        "cancelled": sum(cancelled),
        "cancelled_counted": stats.cancelled,
        "not_really_cancelled": sum(wrong),
        "held_requests": stats.queue_requests,
        "held_tokens": stats.queue_tokens,
        "held_bytes": stats.queue_bytes,
        "worker_alive": alive and health.ok,
        "worker_crashes": health.worker_crashes,
    }


def poison(batches: int = 500) -> Figures:
    """Faulty texts in many batches, of each kind; how many healthy texts failed with them."""
    kinds = [mark for mark, fault in FAULT_MARKS.items() if fault in POISONS]
    chance = random.Random(0)
    healthy_failed = faulty_answered = wrong = most_runs = 0
    backend = FakeBackend(faults=FAULT_MARKS)
    encoder = FakeEncoder(backend)
    with Batcher(encoder, **UNBOUNDED_QUEUE) as batcher:
        for mark in kinds:
            for number in range(batches):
                texts = [f"batch {number} text {i}" for i in range(TEXTS_PER_BATCH)]
                faulty = set(chance.sample(range(TEXTS_PER_BATCH), chance.choice((1, 1, 1, 2, 5))))
                for position in faulty:
                    texts[position] += chr(mark)
                backend.batches.clear()
                futures = batcher.submit_many(texts)
                wait(futures, PATIENCE_S)
                if len(faulty) == 1:
                    most_runs = max(most_runs, len(backend.batches))
                right = encoder.encode(texts)
                for position, future in enumerate(futures):
                    failed = future.exception(PATIENCE_S) is not None
                    healthy_failed += failed and position not in faulty
                    faulty_answered += not failed and position in faulty
                    if not failed:
                        wrong += not np.array_equal(future.result(), right[position])
        stats = batcher.stats()
    return {
        "batches": batches * len(kinds),
        "texts": batches * len(kinds) * TEXTS_PER_BATCH,
        "healthy_failed": healthy_failed,
        "faulty_answered": faulty_answered,
        "wrong": wrong,
        "most_runs_for_one_faulty": most_runs,
        "bisections": stats.bisections,
    }
