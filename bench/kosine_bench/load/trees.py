"""The batchers of two source trees side by side: `python -m kosine_bench.load.trees OLD`.

Each tree runs in a process of its own and loads the same bundle; rounds alternate between the two,
so that only ratios inside one run mean anything. What is measured: texts a second through a window
of requests that never runs dry, `submit_many` of one large call, the p50 of a text that comes
alone, and the p99 at 70 % of the first tree's capacity. A ratio is how many times better the
second tree is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kosine
from kosine.threads import usable_cpus
from kosine_bench.load.base_model import base_bundle
from kosine_bench.load.generator import mixed_texts
from kosine_bench.measuring import machine, result_file
from kosine_bench.measuring.arrivals import poisson_times

__all__ = ["main"]

# Many short rounds: a machine that is shared changes its speed within seconds.
ROUNDS, LOAD, SEED = 60, 0.7, 7
# Seconds; texts.
LOADED_S, ALONE = 1.0, 16
# Small batches, for the same reason. Requests that wait while capacity is measured, in seconds of
# work, and their bounds: more than two full batches, or the batcher would have to wait for them.
BATCH_TOKENS = 512
WINDOW_S, LEAST, MOST = 0.3, 64, 2_048
# Higher is better for these; for latencies, lower.
RATES = ("capacity", "submit_many")
RESAMPLED = 10_000

WORKER = """
import collections, json, sys, time
# An editable install finds its own tree first.
sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
import numpy as np, kosine
bundle, batch_tokens = sys.argv[1:3]
texts = json.loads(sys.stdin.readline())
encoder = kosine.load(bundle)
batcher = kosine.Batcher(encoder, max_batch_tokens=int(batch_tokens), max_queue_tokens=1 << 24,
                         max_queue_requests=1 << 20, max_queue_bytes=1 << 28)
batcher.submit(texts[0]).result()

def capacity(how):
    # A window of requests that never runs dry, until all have been brought and answered.
    count, window = how
    waiting = collections.deque()
    started = time.perf_counter()
    for number in range(count):
        if len(waiting) == window:
            waiting.popleft().result()
        waiting.append(batcher.submit(texts[number % len(texts)]))
    for future in waiting:
        future.result()
    return count / (time.perf_counter() - started)

def submit_many(count):
    started = time.perf_counter()
    [future.result() for future in batcher.submit_many(texts[:count])]
    return count / (time.perf_counter() - started)

def alone(count):
    took = []
    for text in texts[:count]:
        time.sleep(0.005)
        started = time.perf_counter()
        batcher.submit(text).result()
        took.append(time.perf_counter() - started)
    return float(np.median(took))

def loaded(times):
    took = []
    begun = time.perf_counter()
    for number, due in enumerate(times):
        delay = begun + due - time.perf_counter()
        if delay > 0:
            time.sleep(delay)
        arrived = begun + due
        batcher.submit(texts[number % len(texts)]).add_done_callback(
            lambda _, arrived=arrived: took.append(time.perf_counter() - arrived))
    while len(took) < len(times):
        time.sleep(0.01)
    return float(np.percentile(took, 99))

print(json.dumps({"file": kosine.__file__, "engine": repr(encoder)}), flush=True)
for line in sys.stdin:
    name, argument = json.loads(line)
    print(json.dumps(globals()[name](argument)), flush=True)
"""


class Tree:
    """A source tree's batcher, in a process that waits for what to do."""

    def __init__(self, root: Path, bundle: Path, texts: Sequence[str]) -> None:
        parts = ("runtime", "kernels")
        path = os.pathsep.join(str(root / part) for part in parts)
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(bundle), str(BATCH_TOKENS)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.made = self._ask(list(texts))
        if not Path(self.made["file"]).is_relative_to(root.resolve()):
            raise SystemExit(f"{root} is hidden by {self.made['file']}")

    def measure(self, what: str, argument: Any) -> float:
        return float(self._ask([what, argument]))

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None, "it was opened with pipes"
        assert self._process.stdout is not None, "it was opened with pipes"
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def interval(ratios: Sequence[float]) -> dict[str, float]:
    """The median of paired ratios and the 90 % interval of that median (bootstrap)."""
    values = np.asarray(ratios)
    generator = np.random.default_rng(SEED)
    drawn = np.median(generator.choice(values, (RESAMPLED, len(values))), axis=1)
    low, high = np.percentile(drawn, [5, 95])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path, help="the source tree to compare with")
    parser.add_argument("--bundle", type=Path, help="the benchmark's base model if left out")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    options = parser.parse_args(argv)
    bundle = options.bundle or base_bundle()
    new = Path(kosine.__file__).resolve().parent.parent.parent
    texts = mixed_texts(kosine.load(bundle, backend="onnx"), 2_048, SEED)
    trees = [Tree(options.old.resolve(), bundle, texts), Tree(new, bundle, texts)]
    for tree in trees:  # the first round of each warms up
        rate = tree.measure("capacity", (LEAST, LEAST))
    window = int(min(max(WINDOW_S * rate, LEAST), MOST))
    rate = trees[0].measure("capacity", (2 * window, window))
    rounds: list[list[dict[str, float]]] = []
    for number in range(options.rounds):
        times = poisson_times(LOAD * rate, int(LOAD * rate * LOADED_S), number).tolist()
        pair: list[dict[str, float]] = [{}, {}]
        for what, argument, name in (
            ("capacity", (2 * window, window), "capacity"),
            ("submit_many", window // 2, "submit_many"),
            ("alone", ALONE, "unloaded_p50"),
            ("loaded", times, "p99_at_70_percent"),
        ):
            # Who goes first changes from round to round.
            for side in (0, 1) if number % 2 else (1, 0):
                pair[side][name] = trees[side].measure(what, argument)
        rounds.append(pair)
        sys.stderr.write(f"{number + 1}/{options.rounds} {pair}\n")
    ratios = {}
    for name in rounds[0][0]:
        better = [
            pair[1][name] / pair[0][name] if name in RATES else pair[0][name] / pair[1][name]
            for pair in rounds
        ]
        ratios[name] = interval(better)
    report = {
        "made": {"date": result_file.now(), **machine.commit(), "rounds": options.rounds},
        "seed": SEED,
        "batch_tokens": BATCH_TOKENS,
        "machine": machine.describe(usable_cpus()),
        "trees": [tree.made["engine"] for tree in trees],
        "capacity_for_load": rate,
        "ratios": ratios,
        "rounds": rounds,
    }
    text = json.dumps(report, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", "utf-8")
    sys.stdout.write(json.dumps(ratios, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
