"""How many texts a second the batcher's own machinery moves, beside a naive batcher.

    python -m kosine_bench.load.overhead [--out FILE]

The encoder is fake and its backend free, so what is measured is queues, futures and threads. The
naive batcher is what one writes on an afternoon: a `queue.Queue` of (text, Future) and a thread
that empties it, with none of the batcher's promises; it takes 32 texts at a time, or as many as
fit into the other's batches of 4,096 tokens. The futures are awaited in order. Rounds alternate
between the contestants, and only ratios inside one run mean anything.
"""

from __future__ import annotations

import argparse
import gc
import json
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from kosine import Batcher
from kosine.packed import Float32, Packed, Pooled
from kosine.testing import FakeBackend, FakeEncoder

__all__ = ["NaiveBatcher", "main", "measure"]

# What sentence-transformers and the servers modelled on it take by default.
NAIVE_BATCH_TEXTS = 32
BATCH_TOKENS = 4_096
# Texts of a round, as many as fit into the default queue.
TEXTS = 2_000
ROUNDS = 41


class FreeBackend(FakeBackend):
    """All vectors are zeros: even hashing ids takes longer than the batcher itself."""

    def run(self, batch: Packed) -> Pooled:
        """See `kosine.backend.Backend`."""
        return Pooled(np.zeros((len(batch), self.dim), np.float32), np.ones(len(batch), np.float32))


class NaiveBatcher:
    """A queue and a thread; no deadlines, no bounds, and one failure fails a batch."""

    def __init__(self, encoder: FakeEncoder, max_texts: int) -> None:
        self._encoder = encoder
        self._max_texts = max_texts
        self._queue: queue.Queue[tuple[str, Future[Float32]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, text: str) -> Future[Float32]:
        future: Future[Float32] = Future()
        self._queue.put((text, future))
        return future

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < self._max_texts:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._queue.put(None)
                    break
                batch.append(following)
            prepared = self._encoder.prepare([text for text, _ in batch])
            rows = self._encoder.finish(self._encoder.compute(prepared.batch))
            for (_, future), row in zip(batch, rows, strict=True):
                future.set_result(row)


def _texts_per_s(submit: Callable[[], Sequence[Future[Any]]], count: int) -> float:
    gc.collect()
    started = time.perf_counter()
    for future in submit():
        future.result()
    return count / (time.perf_counter() - started)


def measure() -> dict[str, Any]:
    """Texts per second of each contestant, the median over rounds, and the ratios."""
    encoder = FakeEncoder(FreeBackend())
    sentences = [f"sentence number {number}" for number in range(TEXTS)]
    same = BATCH_TOKENS // (1 + len(sentences[-1]))
    naive = NaiveBatcher(encoder, NAIVE_BATCH_TEXTS)
    naive_same = NaiveBatcher(encoder, same)
    with Batcher(encoder, max_batch_tokens=BATCH_TOKENS) as batcher:
        contestants: dict[str, Callable[[], Sequence[Future[Any]]]] = {
            "naive": lambda: [naive.submit(text) for text in sentences],
            "naive_same_batch": lambda: [naive_same.submit(text) for text in sentences],
            "submit": lambda: [batcher.submit(text) for text in sentences],
            "submit_many": lambda: batcher.submit_many(sentences),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(ROUNDS + 1):
            for name, submit in contestants.items():
                rate = _texts_per_s(submit, TEXTS)
                if number:  # the first round warms up
                    rates[name].append(rate)
    naive.close()
    naive_same.close()
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        f"{mine}_over_{other}": statistics.median(
            [a / b for a, b in zip(rates[mine], rates[other], strict=True)]
        )
        for mine in ("submit", "submit_many")
        for other in ("naive", "naive_same_batch")
    }
    return {
        "texts": TEXTS,
        "rounds": ROUNDS,
        "naive_batch_texts": NAIVE_BATCH_TEXTS,
        "same_batch_texts": same,
        "texts_per_s": median,
        "ratios": ratios,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    options = parser.parse_args(argv)
    report = measure()
    text = json.dumps(report, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n", "utf-8")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
