"""Resident memory over many requests."""

from __future__ import annotations

import gc
import os
from concurrent.futures import CancelledError

from kosine import Batcher
from kosine.errors import BatcherError
from kosine.testing import FAULT_MARKS, FakeEncoder
from kosine_bench.load.generator import UNBOUNDED_QUEUE
from kosine_bench.reliability.harness import PATIENCE_S, Figures, lean_backend

__all__ = ["memory_growth", "resident_bytes"]


def resident_bytes() -> int:
    """This process's resident set, in bytes (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - not a real file
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_growth(requests: int = 200_000, leak: bool = False) -> Figures:
    """Resident growth over many requests after a warm-up, faults and cancellations among them.

    Args:
        requests: How many.
        leak: Keep a little of every request, as a bug might: the negative control.
    """
    leaked: list[object] = []
    encoder = FakeEncoder(lean_backend(faults=FAULT_MARKS))
    with Batcher(encoder, **UNBOUNDED_QUEUE) as batcher:

        def serve(count: int) -> None:
            for number in range(count // 100):
                texts = [f"request {number} {i} " + "x" * 60 for i in range(100)]
                if number % 10 == 0:
                    texts[7] += "\x11"
                if number % 2:
                    futures = batcher.submit_many(texts, deadline=60.0)
                else:
                    futures = [batcher.submit(text, deadline=60.0) for text in texts]
                futures[3].cancel()
                for future in futures:
                    try:
                        future.result(PATIENCE_S)
                    except (RuntimeError, CancelledError, BatcherError):
                        continue
                if leak:
                    leaked.append(texts)

        serve(max(10_000, requests // 10))
        gc.collect()
        before = resident_bytes()
        serve(requests)
        gc.collect()
        grown = resident_bytes() - before
    return {"requests": requests, "leak": leak, "growth_mib": round(grown / 2**20, 2)}
