"""Latency against load: the batcher packed, beside the same batcher on padded rectangles.

    python -m kosine_bench.load BUNDLE [--quick] [--out FILE.json] [--plot FILE.svg]

Texts of 5 to 63 tokens (mean 17, the korsts workload) arrive open-loop (Poisson). Capacity is
measured first, for each way of batching, with a queue that never runs dry; then the offered load
climbs in steps, the two ways taking turns at each step, so that a drifting machine hurts both
alike. Both use the same backend, policy and token budget; "padded" lengthens every sentence of a
batch to the longest one, which is what a rectangle computes. Figures are comparable within one
run only.

Printed at the end: p99 at 70 % of capacity against 4 x the unloaded p50 + one full batch; the
requests that kept their deadline at 200 %; and how many times the load of padded batching packed
batching carries at equal p99.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import kosine
from kosine.batcher import Batcher
from kosine.errors import BatcherError, DeadlineExceeded, MissingExtra, QueueFull
from kosine.packed import Float32, Packed, Pooled
from kosine.pipeline import Prepared, StagedEncoder
from kosine_bench import machine
from kosine_bench.arrivals import poisson_times
from kosine_bench.workload import WORDS, WORKLOADS, draw_lengths

__all__ = ["PaddedEncoder", "curve", "load_at_p99", "main", "mixed_texts", "offer", "plot"]

LENGTHS = WORKLOADS["korsts"].columns[0]
SHORTEST, LONGEST = LENGTHS.minimum, LENGTHS.maximum
LOADS = (0.05, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
QUICK_LOADS = (0.05, 0.4, 0.7, 0.9)
PERCENTS = (50, 90, 99)


class CountingEncoder(StagedEncoder, Protocol):
    """What the workload is made with, besides."""

    def count_tokens(self, texts: Sequence[str]) -> Any: ...


class PaddedEncoder:
    """The same encoder on rectangles. Its vectors are not the texts' own: only the time counts.

    Args:
        encoder: Whose stages are used.
    """

    def __init__(self, encoder: StagedEncoder) -> None:
        self._encoder = encoder
        self.dim = encoder.dim
        self.max_tokens = encoder.max_tokens

    def prepare(
        self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Prepared:
        return self._encoder.prepare(texts, prompt_name=prompt_name, prompt=prompt)

    def run(self, batch: Packed) -> Pooled:
        """Run the batch with every sentence as long as the longest."""
        lengths = batch.lengths
        longest = int(lengths.max())
        # Padding with the sentence's own first token keeps every id valid for any vocabulary.
        rows = np.repeat(batch.ids[batch.starts[:-1]], longest).reshape(-1, longest)
        rows[np.arange(longest) < lengths[:, None]] = batch.ids
        starts = np.arange(len(batch) + 1, dtype=np.int32) * np.int32(longest)
        return self._encoder.run(Packed(rows.reshape(-1), starts))

    def finish(self, pooled: Pooled, *, truncate_dim: int | None = None) -> Float32:
        return self._encoder.finish(pooled, truncate_dim=truncate_dim)


def mixed_texts(encoder: CountingEncoder, count: int, seed: int) -> list[str]:
    """Texts with the lengths of the korsts workload: 5 to 63 tokens, mean 17, special ones
    included."""
    generator = np.random.default_rng(seed)
    wanted = draw_lengths(LENGTHS, count, generator)
    pool = [" ".join(generator.choice(WORDS, size)) for size in range(1, 64) for _ in range(24)]
    tokens = np.asarray(encoder.count_tokens(pool))
    by_length = {n: np.flatnonzero(tokens == n) for n in set(tokens.tolist())}
    available = np.array(sorted(n for n in by_length if SHORTEST <= n <= LONGEST))
    nearest = available[np.abs(available[None, :] - wanted[:, None]).argmin(axis=1)]
    return [pool[int(generator.choice(by_length[int(n)]))] for n in nearest]


def capacity_rps(batcher: Batcher, texts: Sequence[str], seconds: float) -> float:
    """Requests per second with a queue that never runs dry."""
    started = time.perf_counter()
    before = batcher.stats().completed
    at = 0
    pending: list[Future[Any]] = []
    while time.perf_counter() < started + seconds:
        try:
            pending += batcher.submit_many([texts[(at + i) % len(texts)] for i in range(32)])
            at += 32
        except QueueFull:
            pending.pop(0).result()
    rate = (batcher.stats().completed - before) / (time.perf_counter() - started)
    batcher.close(drain=False)
    wait(pending)
    return rate


def offer(
    batcher: Batcher,
    texts: Sequence[str],
    rate_rps: float,
    seconds: float,
    seed: int,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Open-loop arrivals for `seconds`; latencies count from the scheduled arrival."""
    count = max(100, int(rate_rps * seconds))
    times = poisson_times(rate_rps, count, seed)
    latencies: list[float] = []
    rejected = late = 0
    lock = threading.Lock()

    def answered(future: Future[Any], due: float) -> None:
        nonlocal late
        took = time.perf_counter() - due
        error = future.exception()
        with lock:
            if error is None:
                latencies.append(took)
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
            future = batcher.submit(texts[number % len(texts)], deadline=left)
        except (QueueFull, DeadlineExceeded):
            rejected += 1
        else:
            future.add_done_callback(partial(answered, due=due))
            pending.append(future)
    wait(pending)
    elapsed = time.perf_counter() - started
    percentiles = np.percentile(latencies, PERCENTS) if latencies else [float("inf")] * 3
    return {
        "offered_rps": round(count / float(times[-1]), 3),
        "answered_rps": round(len(latencies) / elapsed, 3),
        "requests": count,
        "rejected": rejected,
        "late": late,
        **{f"p{p}_s": round(float(v), 6) for p, v in zip(PERCENTS, percentiles, strict=True)},
    }


def curve(
    encoder: CountingEncoder,
    loads: Sequence[float] = LOADS,
    seconds: float = 20.0,
    batch_tokens: int = 2_048,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure both ways of batching at every load.

    Args:
        encoder: A real one.
        loads: Offered load, as parts of the packed capacity, ascending.
        seconds: Per load and way of batching.
        batch_tokens: Budget of real tokens per batch, the same for both.
        seed: Of texts and arrivals.
    """
    texts = mixed_texts(encoder, 2_000, seed)
    ways: dict[str, StagedEncoder] = {"packed": encoder, "padded": PaddedEncoder(encoder)}
    options: dict[str, Any] = {"max_batch_tokens": batch_tokens, "max_queue_tokens": 1 << 22}
    options["max_queue_requests"] = 1 << 20
    for way in ways.values():
        with Batcher(way, **options) as batcher:
            wait(batcher.submit_many(texts[:64]))  # warms up
    capacities = {
        name: capacity_rps(Batcher(way, max_batch_tokens=batch_tokens), texts, seconds)
        for name, way in ways.items()
    }
    full = encoder.prepare(texts).batch
    fits = int(np.searchsorted(full.starts, batch_tokens, side="right")) - 1
    batch = full.take(range(fits))
    full_batch_s = float(np.median([_seconds(encoder, batch) for _ in range(5)]))
    points: list[dict[str, Any]] = []
    for load in loads:
        for name, way in ways.items():
            rate = load * capacities["packed"]
            if rate > 1.1 * capacities[name]:
                continue
            with Batcher(way, **options) as batcher:
                point = offer(batcher, texts, rate, seconds, seed + len(points))
            points.append({"way": name, "load": load, **point})
    packed = [point for point in points if point["way"] == "packed"]
    unloaded = min(packed, key=lambda point: float(point["load"]))
    at_70 = min(packed, key=lambda point: abs(point["load"] - 0.7))
    deadline = 4 * unloaded["p50_s"] + 2 * full_batch_s
    with Batcher(encoder, max_batch_tokens=batch_tokens) as batcher:
        offer(batcher, texts, capacities["packed"], min(seconds, 5.0), seed)  # it learns the rate
        overload = offer(batcher, texts, 2 * capacities["packed"], seconds, seed, deadline)
    bar_s = 4 * unloaded["p50_s"] + full_batch_s
    return {
        "machine": machine.describe(threads=0),
        **machine.commit(),
        "seed": seed,
        "batch_tokens": batch_tokens,
        "real_fraction_of_a_rectangle": round(full.num_tokens / (len(full) * LONGEST), 3),
        "capacity_rps": {name: round(value, 2) for name, value in capacities.items()},
        "full_batch_s": round(full_batch_s, 5),
        "points": points,
        "at_70_percent": {
            "p99_s": at_70["p99_s"],
            "bar_s": round(bar_s, 5),
            "within": at_70["p99_s"] <= bar_s,
        },
        "at_200_percent": {
            "deadline_s": round(deadline, 5),
            **overload,
            "accepted_p99_within": overload["p99_s"] <= deadline,
            "goodput_over_capacity": round(overload["answered_rps"] / capacities["packed"], 3),
        },
        "packed_over_padded_at_equal_p99": _advantage(points),
    }


def _seconds(encoder: StagedEncoder, batch: Packed) -> float:
    started = time.perf_counter()
    encoder.run(batch)
    return time.perf_counter() - started


def load_at_p99(points: Sequence[dict[str, Any]], way: str, p99_s: float) -> float:
    """Requests per second that a way of batching carries before its p99 exceeds `p99_s`,
    interpolated between measured loads; 0 if it never stays below."""
    mine = sorted((p for p in points if p["way"] == way), key=lambda p: float(p["offered_rps"]))
    carried = 0.0
    for before, after in zip([None, *mine], [*mine, None], strict=True):
        if before is None:
            if after is None or after["p99_s"] > p99_s:
                return 0.0
            continue
        carried = float(before["offered_rps"])
        if after is None:
            return carried
        if after["p99_s"] > p99_s:
            part = (p99_s - before["p99_s"]) / float(after["p99_s"] - before["p99_s"])
            return carried + float(part) * (float(after["offered_rps"]) - carried)
    return carried


def _advantage(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many times the load, at several p99 that both can keep."""
    lowest = max(
        min((p["p99_s"] for p in points if p["way"] == way), default=float("inf"))
        for way in ("packed", "padded")
    )
    found = {}
    for factor in (1.2, 1.5, 2.0, 3.0):
        padded = load_at_p99(points, "padded", lowest * factor)
        packed = load_at_p99(points, "packed", lowest * factor)
        if padded:
            found[f"p99 {lowest * factor * 1e3:.1f} ms"] = round(packed / padded, 2)
    return found


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw p50 and p99 against offered load for both ways.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as error:
        raise MissingExtra(
            "matplotlib is not installed", remedy="pip install 'kosine[bench]'"
        ) from error
    matplotlib.use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7.2, 4.5), layout="constrained")
    for way, colour in (("packed", "tab:blue"), ("padded", "tab:orange")):
        mine = [point for point in report["points"] if point["way"] == way]
        loads = [point["offered_rps"] for point in mine]
        for percent, style in ((99, "o-"), (50, "o:")):
            values = [point[f"p{percent}_s"] * 1e3 for point in mine]
            axes.plot(loads, values, style, color=colour, label=f"{way}, p{percent}")
        axes.axvline(report["capacity_rps"][way], color=colour, alpha=0.3)
    axes.set_yscale("log")
    axes.set_xlabel("offered load, texts per second (vertical: capacity)")
    axes.set_ylabel("latency, ms")
    axes.set_title(f"Texts of {SHORTEST}-{LONGEST} tokens, Poisson arrivals")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write, draw; exits 1 if a figure is outside its bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch-tokens", type=int, default=2_048)
    parser.add_argument("--seconds", type=float, default=20.0, help="per load and way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few loads, 4 s each")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--plot", type=Path, help="where to draw the curve (.svg or .png)")
    options = parser.parse_args(argv)
    encoder = kosine.load(
        options.bundle, backend=options.backend, dtype=options.dtype, threads=options.threads
    )
    report = curve(
        encoder,
        QUICK_LOADS if options.quick else LOADS,
        min(options.seconds, 4.0) if options.quick else options.seconds,
        options.batch_tokens,
        options.seed,
    )
    report["backend"], report["dtype"] = encoder.backend.name, encoder.backend.dtype
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if options.plot is not None:
        plot(report, options.plot)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    within = report["at_70_percent"]["within"] and report["at_200_percent"]["accepted_p99_within"]
    twice = min(report["packed_over_padded_at_equal_p99"].values(), default=0.0) >= 2.0
    return 0 if within and twice else 1


if __name__ == "__main__":
    raise SystemExit(main())
