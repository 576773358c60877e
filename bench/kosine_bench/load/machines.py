"""How many machines a load needs: queues and batches of several, simulated from measured times.

    python -m kosine_bench.load.machines [RESULT] [--out FILE] [--plot FILE]

RESULT is a report of `make load` (default: the newest committed one), which holds how long
batches took by their tokens. Each machine runs one batch at a time, and takes all that waits for
it, up to the budget of that report; texts arrive at random (Poisson). A front gives them to the
machines in turn, as most proxies do, or each to the machine that has the fewest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from kosine_bench import paths
from kosine_bench.measuring.arrivals import poisson_times
from kosine_bench.measuring.workload import WORKLOADS, draw_lengths
from kosine_bench.report.tables import markdown

__all__ = ["batch_seconds", "latencies", "most_load", "report", "table"]

Front = Literal["in turn", "fewest"]
FRONTS: Final[tuple[Front, ...]] = ("in turn", "fewest")
MACHINES: Final = (1, 2, 3, 4, 6, 8)
P99_MS: Final = (50, 100, 200)
ARRIVALS: Final = 40_000
SHARES: Final = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


def batch_seconds(result: Mapping[str, Any]) -> Callable[[int], float]:
    """Seconds of a batch by its tokens: straight lines between those that were measured."""
    measured = result["without_overhead"]["seconds_of_a_batch_of_tokens"]
    tokens = sorted(int(each) for each in measured)
    seconds = [float(measured[str(each)]) for each in tokens]
    return lambda count: float(np.interp(count, tokens, seconds))


def latencies(
    times: Sequence[float],
    tokens: Sequence[int],
    machines: int,
    seconds: Callable[[int], float],
    *,
    batch_tokens: int,
    front: Front = "in turn",
) -> NDArray[np.float64]:
    """(n,) seconds from each text's arrival to its answer.

    Args:
        times: (n,) ascending arrivals, in seconds.
        tokens: (n,) of each text.
        machines: How many.
        seconds: Of a batch, by its tokens.
        batch_tokens: Most in one batch; a longer text goes alone.
        front: Who gets a text: each machine in turn, or the one with the fewest unanswered.
    """
    waiting: list[deque[int]] = [deque() for _ in range(machines)]
    running: list[list[int]] = [[] for _ in range(machines)]
    free_at = [0.0] * machines
    answered = np.zeros(len(times))

    def begin(machine: int, now: float) -> None:
        taken, total = running[machine], 0
        queue = waiting[machine]
        while queue and (not taken or total + tokens[queue[0]] <= batch_tokens):
            total += tokens[queue[0]]
            taken.append(queue.popleft())
        free_at[machine] = now + seconds(total)

    def until(now: float) -> None:
        """End every batch that ends by `now`, and begin those that follow."""
        for machine in range(machines):
            while running[machine] and free_at[machine] <= now:
                end = free_at[machine]
                answered[running[machine]] = end
                running[machine].clear()
                if waiting[machine]:
                    begin(machine, end)

    for number, now in enumerate(times):
        until(now)
        chosen = number % machines
        if front == "fewest":
            loads = [len(waiting[m]) + len(running[m]) for m in range(machines)]
            chosen = int(np.argmin(loads))
        waiting[chosen].append(number)
        if not running[chosen]:
            begin(chosen, now)
    until(float("inf"))
    delays: NDArray[np.float64] = answered - np.asarray(times)
    return delays


def most_load(loads: Sequence[float], p99: Sequence[float], level: float) -> float:
    """The load at which p99 reaches `level`, on the line between two simulated ones."""
    return float(np.interp(level, np.maximum.accumulate(p99), loads))


def report(result: Mapping[str, Any], *, arrivals: int = ARRIVALS, seed: int = 0) -> dict[str, Any]:
    """p99 by offered load for each number of machines and front, and the loads at `P99_MS`."""
    seconds = batch_seconds(result)
    budget = int(result["batch_tokens"])
    column = WORKLOADS["korsts"].columns[0]
    tokens = draw_lengths(column, arrivals, np.random.default_rng(seed)).tolist()
    alone = budget / seconds(budget) / float(np.mean(tokens))
    curves = []
    for front in FRONTS:
        for machines in MACHINES:
            if machines == 1 and front != FRONTS[0]:
                continue
            loads = [share * alone * machines for share in SHARES]
            p99 = []
            for load in loads:
                times = poisson_times(load, arrivals, seed)
                found = latencies(
                    times.tolist(), tokens, machines, seconds, batch_tokens=budget, front=front
                )
                p99.append(float(np.percentile(found, 99)))
            at = {str(ms): round(most_load(loads, p99, ms / 1e3), 1) for ms in P99_MS}
            curves.append({
                "front": front,
                "machines": machines,
                "texts_per_second": [round(load, 1) for load in loads],
                "p99_s": [round(each, 6) for each in p99],
                "texts_per_second_at_p99_ms": at,
            })  # fmt: skip
    return {
        "from": {key: result[key] for key in ("machine", "commit", "backend", "dtype", "lengths")},
        "mean_tokens": round(float(np.mean(tokens)), 2),
        "batch_tokens": budget,
        "arrivals": arrivals,
        "seed": seed,
        "capacity_of_one": round(alone, 1),
        "curves": curves,
    }


def table(made: Mapping[str, Any]) -> str:
    """Texts per second at each p99, and their share of what the machines could do at most."""
    rows = []
    for curve in made["curves"]:
        most = made["capacity_of_one"] * curve["machines"]
        cells = []
        for ms in P99_MS:
            load = curve["texts_per_second_at_p99_ms"][str(ms)]
            over = load >= curve["texts_per_second"][-1]
            cells.append(f"{'over ' * over}{load:,.0f} ({load / most:.0%})")
        rows.append([str(curve["machines"]), curve["front"], *cells])
    return markdown(("machines", "texts go to", *(f"p99 {ms} ms" for ms in P99_MS)), rows)


def plot(made: Mapping[str, Any], path: Path) -> None:
    """p99 against the load of each number of machines."""
    import_module("matplotlib").use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7.2, 4.5), layout="constrained")
    colours = dict(zip(MACHINES, pyplot.get_cmap("viridis")(np.linspace(0, 0.9, 6)), strict=True))
    for curve in made["curves"]:
        machines, fewest = curve["machines"], curve["front"] == "fewest"
        axes.plot(
            curve["texts_per_second"], [1e3 * each for each in curve["p99_s"]],
            ":" if fewest else "-", color=colours[machines], marker=None if fewest else ".",
            label=None if fewest else f"{machines} machine{'s' * (machines > 1)}",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("offered load, texts per second")
    axes.set_ylabel("p99, ms")
    axes.set_title("Simulated: texts to machines in turn; dotted: to the one with the fewest")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kosine_bench.load.machines", description=__doc__)
    parser.add_argument("result", nargs="?", type=Path, help="a report of `make load`")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of what was simulated")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it")
    args = parser.parse_args(words)
    source = args.result or _newest()
    made = {"result": source.name, **report(json.loads(source.read_text("utf-8")))}
    text = json.dumps(made, indent=1) + "\n"
    if args.out:
        args.out.write_text(text, "utf-8")
    else:
        sys.stdout.write(text)
    if args.plot:
        plot(made, args.plot)
    return 0


def _newest() -> Path:
    root = paths.results_dir()
    found = sorted(p for p in (root / "load").glob("*.json") if "slowed" not in p.name)
    return found[-1]


if __name__ == "__main__":
    raise SystemExit(main())
