"""`top_k` beside PyTorch's product and topk, and NumPy's: seconds, written as JSON.

    python -m kosine_bench.measuring.search OUT.json

Contestants take turns, each call of one followed by one of the others; the best of the rounds
counts, which has the least of the machine's noise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kosine
from kosine.threads import usable_cpus
from kosine_bench.measuring import machine

__all__ = ["main"]

SHAPES = [
    *[(q, 20_000, d) for d in (256, 768) for q in (1, 10, 100, 2_000)],
    (1, 1_000_000, 256),
    (10, 1_000_000, 256),
]
K = 10
Call = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="at least, for a shape")
    parser.add_argument("--most-rows", type=int, default=1_000_000, help="leave larger corpora out")
    args = parser.parse_args()
    results = []
    for queries, rows, dim in SHAPES:
        if rows > args.most_rows:
            continue
        seconds = _seconds(_contestants(queries, rows, dim), args.rounds, args.seconds)
        results.append({"queries": queries, "rows": rows, "dim": dim, "k": K, "seconds": seconds})
        print(results[-1])  # noqa: T201
    threads = usable_cpus()
    report = {
        "what": "top_k on unit vectors; seconds, the best of the rounds, which take turns",
        "date": date.today().isoformat(),
        "machine": machine.describe(threads),
        "commit": machine.commit(),
        "rounds": args.rounds,
        "seconds_a_shape": args.seconds,
        "versions": _versions(),
        "results": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


def _contestants(queries: int, rows: int, dim: int) -> dict[str, Call]:
    rng = np.random.default_rng(1)
    corpus, asked = _unit(rng, rows, dim), _unit(rng, queries, dim)
    ranges: dict[str, Any] = {"min": [-0.5] * dim, "max": [0.5] * dim}
    small = np.clip(np.floor((corpus + 0.5) * 255), 0, 255).astype(np.uint8)
    bits, asked_bits = np.packbits(corpus > 0, axis=1), np.packbits(asked > 0, axis=1)
    calls: dict[str, Call] = {
        "kosine, dot": lambda: kosine.top_k(asked, corpus, K, similarity="dot"),
        "kosine, cosine": lambda: kosine.top_k(asked, corpus, K),
        "kosine, uint8": lambda: kosine.top_k(asked, small, K, precision="uint8", ranges=ranges),
        "kosine, bits": lambda: kosine.top_k(asked_bits, bits, K, precision="ubinary"),
        "numpy, matmul and argpartition": lambda: _by_numpy(asked, corpus),
    }
    try:
        import torch
    except ImportError:
        return calls
    torch.set_num_threads(usable_cpus())
    a, b = torch.from_numpy(asked), torch.from_numpy(corpus)
    calls["torch, matmul and topk"] = lambda: torch.topk(a @ b.T, K, dim=1)
    return calls


def _by_numpy(asked: NDArray[np.float32], corpus: NDArray[np.float32]) -> NDArray[np.int64]:
    scores = asked @ corpus.T
    best = np.argpartition(scores, -K, axis=1)[:, -K:]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


def _unit(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    vectors = rng.standard_normal((rows, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _seconds(calls: dict[str, Call], rounds: int, at_least: float) -> dict[str, float]:
    """The best of so many rounds, and of as many as take so long in all."""
    best: dict[str, float] = {}
    start, done = time.perf_counter(), 0
    while done <= rounds or time.perf_counter() < start + at_least:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best.get(name, 1e9), time.perf_counter() - begin)
        done += 1
    return {name: round(seconds, 6) for name, seconds in best.items()}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("numpy", "torch", "kosine"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    raise SystemExit(main())
