"""The batcher's promises in real time: every experiment at full size, then mixed faults for long.

    python -m kosine_bench.reliability.soak [--hours 8 | --seconds N] [--only NAME]... [--out FILE]

Prints one line per experiment, with its figures and whether they are within the bar; exits 1 if
any is not. `make soak` runs it all. Kills and overload take a minute each; overload compares a rate
measured in a second with a minute's, and wants a machine of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np

from kosine import Batcher
from kosine.errors import BackendError, DeadlineExceeded, NonFiniteVector, QueueFull, WorkerCrashed
from kosine.testing import FAULT_MARKS, FakeEncoder, linear_cost
from kosine_bench.reliability.concurrency import cancel_storm, mixups, poison
from kosine_bench.reliability.harness import Figures, in_threads, lean_backend
from kosine_bench.reliability.kills import THREADS, Killer, kills
from kosine_bench.reliability.memory import memory_growth, resident_bytes
from kosine_bench.reliability.overload import overload, within_overload_bar

__all__ = ["experiments", "main", "soak"]

MIB = 2**20
GROWTH_MIB = 8.0
CALLERS = 4
KILL_EVERY_S = 5.0
# Length of the experiments that are measured in time, not in requests.
TIMED_SECONDS = 60.0
# What a text's mark explains; everything may also be cancelled, late, or lost to a kill.
EXPLAINED = {
    "\x11": RuntimeError,
    "\x12": NonFiniteVector,
    "\x13": BackendError,
    "\x14": WorkerCrashed,
}


def soak(seconds: float) -> Figures:
    """Everything at once for `seconds`: sizes, priorities, deadlines, cancels, faults, kills.

    Every answer is compared with the right one, every error must be explained by what was sent,
    and memory, descriptors and threads are sampled all along.
    """
    faulty = lean_backend(cost=linear_cost(1e-6, 5e-4), faults=FAULT_MARKS, delay_s=0.05)
    encoder = FakeEncoder(faulty, max_tokens=128, prompts={"query": "query: "})
    batcher = Batcher(
        encoder, max_batch_tokens=1_024, max_queue_tokens=20_000, max_queue_requests=2_000
    )
    killer = Killer()
    ends = time.monotonic() + seconds
    outcomes: list[Counter[str]] = [Counter() for _ in range(CALLERS)]
    unexplained: list[str] = []
    samples: list[tuple[float, int, int, int]] = []

    def judge(seen: Counter[str], future: Future[Any], texts: list[str], query: bool) -> None:
        marks = "".join(texts)
        try:
            value = future.result(60.0)
        except (CancelledError, DeadlineExceeded, WorkerCrashed) as error:
            seen[type(error).__name__] += 1
        except TimeoutError:
            seen["hung"] += 1
            unexplained.append("a future hangs")
        except Exception as error:  # noqa: BLE001 - judged by what was sent
            seen[type(error).__name__] += 1
            if not any(
                mark in marks and isinstance(error, kind) for mark, kind in EXPLAINED.items()
            ):
                unexplained.append(f"{type(error).__name__}: {error}")
        else:
            seen["answered"] += 1
            right = encoder.encode(texts, prompt_name="query" if query else None)
            if not np.array_equal(np.atleast_2d(value), right):
                unexplained.append("a wrong vector")

    def caller(number: int) -> None:
        chance = random.Random(number)
        seen = outcomes[number]
        while time.monotonic() < ends:
            texts = [_text(chance) for _ in range(chance.choice((1, 1, 1, 3, 10, 60)))]
            query = chance.random() < 0.3
            options: dict[str, Any] = {
                "prompt_name": "query" if query else None,
                "priority": chance.choice((0, 0, 0, 1, 5, -2)),
                "deadline": chance.choice((None, None, 0.01, 0.1, 1.0)),
            }
            kind = chance.randrange(3)
            futures: list[Any]
            try:
                if kind == 0:
                    futures = batcher.submit_many(texts, **options)
                    owners = [[text] for text in texts]
                else:
                    one = texts[0] if kind == 1 else texts
                    futures = [batcher.submit(one, **options)]
                    owners = [texts[:1] if kind == 1 else texts]
            except QueueFull as error:
                seen["QueueFull"] += 1
                time.sleep(min(error.retry_after, 0.02))
                continue
            for future in futures:
                if chance.random() < 0.1:
                    future.cancel()
            for future, owned in zip(futures, owners, strict=True):
                judge(seen, future, owned, query)

    def watch() -> None:
        chance = random.Random(0)
        next_kill = time.monotonic() + KILL_EVERY_S
        every = max(0.25, seconds / 200)
        while time.monotonic() < ends:
            time.sleep(every)
            now = time.monotonic()
            if now >= next_kill:
                next_kill = now + KILL_EVERY_S
                killer.kill(chance.choice(THREADS))
            descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of links
            samples.append((now, resident_bytes(), descriptors, threading.active_count()))

    started = time.monotonic()
    with killer, in_threads(caller, CALLERS):
        watch()
    alive = batcher.submit("alive").result(60.0).shape == (8,)
    health, stats = batcher.health(), batcher.stats()
    ended_well = batcher.close(timeout=60.0)
    total = sum(outcomes, Counter[str]())
    return {
        "seconds": round(time.monotonic() - started, 1),
        "outcomes": dict(sorted(total.items())),
        "unexplained": len(unexplained),
        "first_unexplained": unexplained[:5],
        "worker_crashes": health.worker_crashes,
        "alive_at_the_end": alive and health.ok and ended_well,
        "held_tokens": stats.queue_tokens,
        **_flatness(samples),
    }


def _text(chance: random.Random) -> str:
    text = "".join(chance.choice("가나다라 abc") for _ in range(chance.randint(0, 60)))
    if chance.random() < 0.01:
        text += chance.choice("\x11\x12\x13\x15")
    elif chance.random() < 0.0005:
        text += "\x14"
    return text


def _flatness(samples: Sequence[tuple[float, int, int, int]]) -> Figures:
    """The last third against the second: the first one warms up."""
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    if not middle or not last:
        return {"samples": len(samples)}

    def median(rows: Sequence[tuple[float, int, int, int]], column: int) -> float:
        return float(np.median([row[column] for row in rows]))

    return {
        "samples": len(samples),
        "rss_growth_mib": round((median(last, 1) - median(middle, 1)) / MIB, 2),
        "descriptor_growth": median(last, 2) - median(middle, 2),
        "thread_growth": median(last, 3) - median(middle, 3),
    }


def flat_and_explained(figures: Figures) -> bool:
    """The bar of the soak."""
    return bool(
        figures["unexplained"] == 0
        and figures["alive_at_the_end"]
        and figures["held_tokens"] == 0
        and figures["rss_growth_mib"] < GROWTH_MIB
        and figures["descriptor_growth"] <= 0
        and figures["thread_growth"] <= 0
    )


Experiment = tuple[Callable[[], Figures], Callable[[Figures], bool]]


def experiments() -> dict[str, Experiment]:
    """By name, each experiment at full size, and its bar."""
    return {
        "mixups": (mixups, lambda f: f["swaps"] == 0),
        "cancel_storm": (
            cancel_storm,
            lambda f: (
                f["cancelled"] == f["cancelled_counted"]
                and f["held_requests"] == f["held_tokens"] == f["held_bytes"] == 0
                and f["worker_alive"]
            ),
        ),
        "poison": (
            poison,
            lambda f: f["healthy_failed"] == f["faulty_answered"] == f["wrong"] == 0,
        ),
        "kills": (
            lambda: kills(round(TIMED_SECONDS), TIMED_SECONDS),
            lambda f: f["hung"] == f["wrong"] == 0 and f["worker_alive"] and f["crashes_seen"] > 0,
        ),
        "overload_2x": (
            lambda: overload(2.0, TIMED_SECONDS),
            within_overload_bar,
        ),
        "overload_10x": (
            lambda: overload(10.0, TIMED_SECONDS),
            within_overload_bar,
        ),
        "memory": (memory_growth, lambda f: f["growth_mib"] < GROWTH_MIB),
        "memory_seeded_leak_must_fail": (
            lambda: memory_growth(leak=True),
            lambda f: f["growth_mib"] >= GROWTH_MIB,
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiments, then the soak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, help="length of the soak, instead of --hours")
    parser.add_argument("--only", action="append", choices=[*experiments(), "soak"])
    parser.add_argument("--out", type=Path, help="where to write all figures as JSON")
    options = parser.parse_args(argv)
    seconds = options.hours * 3_600 if options.seconds is None else options.seconds
    chosen: dict[str, Experiment] = experiments()
    chosen["soak"] = (lambda: soak(seconds), flat_and_explained)
    report: dict[str, Figures] = {}
    for name in options.only or chosen:
        experiment, within = chosen[name]
        gc.collect()
        figures = experiment()
        figures["within_bar"] = within(figures)
        report[name] = figures
        verdict = "ok  " if figures["within_bar"] else "FAIL"
        sys.stdout.write(f"{verdict} {name}: {json.dumps(figures)}\n")
        sys.stdout.flush()
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0 if all(figures["within_bar"] for figures in report.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
