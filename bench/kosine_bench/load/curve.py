"""Latency against load, packed beside padded: the measurement and its verdict."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kosine import Batcher
from kosine.packed import Packed
from kosine_bench.load.encoders import CountingEncoder, PaddedEncoder, StagedEncoder
from kosine_bench.load.equal_p99 import P99_LEVELS, advantage, interval, resampled_p99
from kosine_bench.load.generator import (
    LONGEST,
    UNBOUNDED_QUEUE,
    kept_deadline,
    mixed_texts,
    offer,
    saturate,
    summary,
)
from kosine_bench.load.sampling import CLIMB, MOST_LOAD, Sampling
from kosine_bench.load.without_overhead import measure_batches, without_overhead
from kosine_bench.measuring import machine

__all__ = ["BATCH_TOKENS", "curve", "status"]

# Times the load of padded batching, at equal p99.
ADVANTAGE: Final = 2.0
BATCH_TOKENS: Final = 2_048
# Of texts and arrivals.
SEED: Final = 0
# Tokens per batch at which both ways are simulated besides: a small batch has less padding, and a
# CPU computes it nearly as fast per token.
SMALLER_BUDGETS: Final = (48, 128, 512)


def capacities_rps(
    ways: dict[str, StagedEncoder], texts: Sequence[str], batch_tokens: int, sampling: Sampling
) -> dict[str, float]:
    """Requests per second of each way, with a queue that never runs dry."""
    answered = dict.fromkeys(ways, 0)
    seconds = dict.fromkeys(ways, 0.0)
    for _ in range(sampling.passes):
        for name, way in ways.items():
            took, count = saturate(
                Batcher(way, max_batch_tokens=batch_tokens), texts, sampling.seconds / 2
            )
            answered[name] += count
            seconds[name] += took
    return {name: answered[name] / seconds[name] for name in ways}


def measure_points(
    ways: dict[str, StagedEncoder],
    texts: Sequence[str],
    capacities: dict[str, float],
    batch_tokens: int,
    sampling: Sampling,
    climb_until_s: float,
) -> tuple[list[dict[str, Any]], list[NDArray[np.float64]]]:
    """Every way at every load, and the resampled p99 of each of these points.

    A way whose p99 is still under `climb_until_s` at the last load is offered more and more:
    padded batches only become as wasteful as at capacity once they are full.
    """
    order = [(load, name) for load in sampling.loads for name in ways]
    measured: dict[tuple[float, str], list[dict[str, Any]]] = {key: [] for key in order}

    def one_pass(load: float, name: str, number: int) -> None:
        rate = load * capacities[name]
        # The same arrivals and texts for both ways, but for the pace.
        drawn = SEED + 10_000 * number + round(1_000 * load)
        with Batcher(ways[name], max_batch_tokens=batch_tokens, **UNBOUNDED_QUEUE) as batcher:
            found = offer(batcher, texts, rate, sampling.count(rate), drawn)
        measured.setdefault((load, name), []).append(found)

    for number in range(sampling.passes):
        for load, name in reversed(order) if number % 2 else order:
            one_pass(load, name, number)
    for name in ways:
        load = sampling.loads[-1]
        while load < MOST_LOAD and summary(measured[load, name])["p99_s"] < climb_until_s:
            load = round(load + CLIMB, 2)
            for number in range(sampling.passes):
                one_pass(load, name, number)
    generator = np.random.default_rng(SEED)
    points, resampled = [], []
    for (load, name), passes in measured.items():
        again = resampled_p99([one["latencies_s"] for one in passes], generator)
        point = {"way": name, "load": load, **summary(passes)}
        point["p99_interval_s"] = [round(value, 6) for value in interval(again)]
        points.append(point)
        resampled.append(again)
    return points, resampled


def curve(
    encoder: CountingEncoder,
    sampling: Sampling | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, Any]:
    """Measure both ways of batching at every load.

    Args:
        encoder: A real one.
        sampling: How much is measured.
        batch_tokens: Budget of real tokens per batch, the same for both.
    """
    sampling = sampling or Sampling()
    texts = mixed_texts(encoder, 2_000, SEED)
    ways: dict[str, StagedEncoder] = {"packed": encoder, "padded": PaddedEncoder(encoder)}
    for way in ways.values():
        with Batcher(way, max_batch_tokens=batch_tokens, **UNBOUNDED_QUEUE) as batcher:
            wait(batcher.submit_many(texts[:64]))  # warms up
    capacities = capacities_rps(ways, texts, batch_tokens, sampling)
    sys.stderr.write(
        f"capacity {', '.join(f'{name} {rate:.1f}' for name, rate in capacities.items())} "
        f"texts/s; the points take {sampling.total_s(capacities) / 60:.0f} minutes\n"
    )
    full = encoder.prepare(texts).batch
    fits = int(np.searchsorted(full.starts, batch_tokens, side="right")) - 1
    batch = full.take(range(fits))
    full_batch_s = {
        name: float(np.median([_seconds(way, batch) for _ in range(5)]))
        for name, way in ways.items()
    }
    batch_s = measure_batches(encoder, full)
    points, resampled = measure_points(
        ways,
        texts,
        capacities,
        batch_tokens,
        sampling,
        P99_LEVELS[-1] * full_batch_s["packed"],
    )
    packed = [point for point in points if point["way"] == "packed"]
    unloaded = packed[0]
    at_70 = min(packed, key=lambda point: abs(point["load"] - 0.7))
    deadline = 4 * unloaded["p50_s"] + 2 * full_batch_s["packed"]
    twice = 2 * capacities["packed"]
    with Batcher(encoder, max_batch_tokens=batch_tokens) as batcher:
        rate, few = capacities["packed"], min(sampling.seconds, 5.0)
        offer(batcher, texts, rate, math.ceil(rate * few), SEED)  # it learns the rate
        overload = summary(
            [offer(batcher, texts, twice, sampling.count(twice), SEED + 1, deadline)]
        )
    bar_s = 4 * unloaded["p50_s"] + full_batch_s["packed"]
    levels_s = [level * full_batch_s["packed"] for level in P99_LEVELS]
    rough = replace(sampling, simulated=-(-sampling.simulated // 3))

    def possible(budget: int, sampling: Sampling) -> dict[str, Any]:
        asked_s = [*levels_s, bar_s]
        return without_overhead(full.lengths.tolist(), batch_s, budget, sampling, SEED, asked_s)

    return {
        "machine": machine.describe(threads=0),
        **machine.commit(),
        "seed": SEED,
        "lengths": "korsts",
        "mean_tokens": round(full.num_tokens / len(full), 2),
        "batch_tokens": batch_tokens,
        "passes": sampling.passes,
        "pass_seconds": sampling.seconds,
        "simulated_passes": sampling.simulated,
        "real_fraction_of_a_rectangle": round(full.num_tokens / (len(full) * LONGEST), 3),
        "capacity_rps": {name: round(value, 2) for name, value in capacities.items()},
        "full_batch_s": round(full_batch_s["packed"], 5),
        "padded_full_batch_s": round(full_batch_s["padded"], 5),
        "points": points,
        "at_70_percent": {
            "p99_s": at_70["p99_s"],
            "bar_s": round(bar_s, 5),
            "within": at_70["p99_s"] <= bar_s,
        },
        "at_200_percent": {
            "deadline_s": round(deadline, 5),
            **overload,
            "accepted_p99_within": kept_deadline(
                overload["p99_s"],
                deadline,
                accepted=overload["requests"] - overload["rejected"],
                late=overload["late"],
            ),
            "goodput_over_capacity": round(overload["answered_rps"] / capacities["packed"], 3),
        },
        "packed_over_padded_at_equal_p99": advantage(points, resampled, levels_s),
        "packed_over_padded_at_the_bar": advantage(points, resampled, [bar_s])[0],
        "without_overhead": possible(batch_tokens, sampling),
        "without_overhead_at_smaller_budgets": {
            str(budget): possible(budget, rough)["levels"] for budget in SMALLER_BUDGETS
        },
    }


def _seconds(encoder: StagedEncoder, batch: Packed) -> float:
    started = time.perf_counter()
    encoder.compute(batch)
    return time.perf_counter() - started


def status(report: Mapping[str, Any]) -> int:
    """Exit status of a report: 0 if every figure is within its bar, else 1.

    Packed batches have to carry twice the load of padded ones where the p99 is the bar's, and at
    each level where they would if only the engine took any time.
    """
    within = report["at_70_percent"]["within"] and report["at_200_percent"]["accepted_p99_within"]
    bar = report["packed_over_padded_at_the_bar"]
    possible = {
        row["p99_s"]
        for row in report["without_overhead"]["levels"]
        if row.get("ratio", 0.0) >= ADVANTAGE
    }
    asked = [
        bar,
        *(row for row in report["packed_over_padded_at_equal_p99"] if row["p99_s"] in possible),
    ]
    return 0 if within and all(row.get("ratio", 0.0) >= ADVANTAGE for row in asked) else 1
