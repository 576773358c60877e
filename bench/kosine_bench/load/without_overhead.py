"""What a batcher that costs nothing would carry, on this machine's engine.

The batcher's policy runs on a fake clock (`load.simulation`). A batch takes as long as the
engine took for as many tokens a moment ago, call after call; nothing else takes any time: no
tokenising, no thread, no waking up. So there are two things to hold the real measurement against:
what is lost between engine and caller, and how far packing can be ahead at all. Near the unloaded
latency few texts wait for each other, and small batches have less padding to save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kosine.packed import Packed
from kosine_bench.load.encoders import StagedEncoder
from kosine_bench.load.equal_p99 import load_at_p99
from kosine_bench.load.generator import UNBOUNDED_QUEUE
from kosine_bench.load.sampling import CLIMB, MOST_LOAD, Sampling
from kosine_bench.load.simulation import capacity_tps, simulate

__all__ = ["TIMED_TOKENS", "batch_of", "measure_batches", "without_overhead"]

# Tokens of the batches that are timed: from a word to a rectangle of a full batch's texts, all as
# long as the longest.
TIMED_TOKENS: Final = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1_024, 2_048, 8_192)
ROUNDS: Final = 7

Cost = Callable[[Packed], float]


def batch_of(tokens: int, texts: Packed) -> Packed:
    """A batch of exactly so many tokens: the texts in order, over and over, the last one cut."""
    times = -(-tokens // texts.num_tokens)
    ends = [texts.starts[1:] + round_ * texts.num_tokens for round_ in range(times)]
    stops = np.concatenate(ends)
    inner = stops[stops < tokens]
    starts = np.array([0, *inner.tolist(), tokens], np.int32)
    return Packed(np.tile(texts.ids, times)[:tokens], starts)


def measure_batches(encoder: StagedEncoder, texts: Packed) -> NDArray[np.float64]:
    """Median seconds of a batch of each of `TIMED_TOKENS`, in rounds over all of them."""
    batches = [batch_of(tokens, texts) for tokens in TIMED_TOKENS]
    seconds = np.empty((ROUNDS, len(batches)))
    for row in seconds:
        for column, batch in enumerate(batches):
            started = time.perf_counter()
            encoder.compute(batch)
            row[column] = time.perf_counter() - started
    return np.asarray(np.median(seconds, axis=0))


def without_overhead(
    lengths: Sequence[int],
    batch_s: NDArray[np.float64],
    batch_tokens: int,
    sampling: Sampling,
    seed: int,
    levels_s: Sequence[float],
) -> dict[str, Any]:
    """Simulate both ways at every load, and the load that each carries at each p99.

    Args:
        lengths: Tokens of each text, in the order in which they are asked for.
        batch_s: Seconds of a batch of each of `TIMED_TOKENS`; between them it is interpolated.
        batch_tokens: Budget of real tokens per batch, the same for both.
        sampling: As of the real measurement, so that a growing queue grows for as long; but for
            the number of passes.
        seed: Of the arrivals.
        levels_s: The p99 to keep, in seconds.

    Returns:
        The batches' times; and for each level its `p99_s`, the load of each way where it is
        within what was simulated, and their `ratio` where both are.
    """
    texts = ["x" * (length - 1) for length in lengths]  # a fake token a letter, and one in front

    def packed(batch: Packed) -> float:
        return float(np.interp(batch.num_tokens, TIMED_TOKENS, batch_s))

    def padded(batch: Packed) -> float:
        return float(np.interp(len(batch) * int(batch.lengths.max()), TIMED_TOKENS, batch_s))

    curves = {
        name: _curve(texts, cost, batch_tokens, sampling, seed, max(levels_s))
        for name, cost in (("packed", packed), ("padded", padded))
    }
    levels = []
    for level_s in levels_s:
        carried = {name: load_at_p99(*curve, level_s) for name, curve in curves.items()}
        row: dict[str, Any] = {"p99_s": round(level_s, 6)}
        row |= {f"{name}_rps": load and round(load, 2) for name, load in carried.items()}
        if carried["packed"] and carried["padded"]:
            row["ratio"] = round(carried["packed"] / carried["padded"], 3)
        levels.append(row)
    batches = dict(zip(map(str, TIMED_TOKENS), batch_s.round(6).tolist(), strict=True))
    return {"seconds_of_a_batch_of_tokens": batches, "levels": levels}


def _curve(
    texts: Sequence[str],
    cost: Cost,
    batch_tokens: int,
    sampling: Sampling,
    seed: int,
    climb_until_s: float,
) -> tuple[list[float], list[float]]:
    """Offered requests per second, ascending, and the p99 of each in seconds."""
    tokens = sum(len(text) + 1 for text in texts) / len(texts)
    capacity_rps = capacity_tps(texts, cost, batch_tokens) / tokens
    loads = list(sampling.loads)
    rates: list[float] = []
    p99_s: list[float] = []
    while loads:
        load = loads.pop(0)
        rate = load * capacity_rps
        count = sampling.count(rate)
        asked = [texts[number % len(texts)] for number in range(count)]
        found = [
            simulate(
                asked,
                rate * tokens,
                cost,
                seed=seed + 10_000 * number + round(1_000 * load),
                max_batch_tokens=batch_tokens,
                **UNBOUNDED_QUEUE,
            ).percentile_s(99)
            for number in range(sampling.simulated)
        ]
        rates.append(rate)
        p99_s.append(float(np.median(found)))
        if not loads and load < MOST_LOAD and p99_s[-1] < climb_until_s:
            loads.append(round(load + CLIMB, 2))
    return rates, p99_s
