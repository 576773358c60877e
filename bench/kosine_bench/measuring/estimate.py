"""How long a run will take, before anything of it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kosine_bench.contestants.contestant import Contestant
from kosine_bench.measuring.arrivals import num_requests
from kosine_bench.measuring.models import flops_per_text, weight_bytes
from kosine_bench.measuring.work_file import Effort, WorkFile

__all__ = ["part_seconds", "start_seconds"]

# Of the peak, what runtimes reach on real lengths; and what a worker loads a second.
REACHED = {"float32": 0.65, "bfloat16": 0.5, "float16": 0.3, "int8": 0.35}
READ_BYTES_PER_SECOND = 5e8
TRIED_SETTINGS = {"burst": 4, "bulk": 3}
WARM_TOKENS = 768
OWN_WARM_UP_SECONDS = 1.5
MOST_REQUESTS = 600


def start_seconds(kind: type[Contestant], work: WorkFile) -> float:
    """Seconds of one process of `kind` before and after what it measures."""
    return kind.start_seconds + weight_bytes(work.size, "float32") / READ_BYTES_PER_SECOND


def part_seconds(
    kind: type[Contestant],
    work: WorkFile,
    effort: Effort,
    ceilings: Mapping[str, Any],
    number: int,
    *,
    settled: bool = False,
) -> dict[str, float]:
    """Seconds that `kind` spends on `work` in round `number`, by mode; `tune` is all trials.

    Args:
        settled: Whether the settings are known from another size.
    """
    matrix = ceilings.get("matrix", {})
    peak = (matrix.get(kind.precision) or matrix.get("float32") or {"flops": 1e12})["flops"]
    speed = REACHED[kind.precision] * peak
    one = flops_per_text(work.size, round(work.workload.mean)) / speed
    scopes = [scope for scope in work.part.scopes if scope != "engine" or kind.engine]
    seconds: dict[str, float] = {}
    for mode in work.part.modes:
        if not work.part.measures(mode, number) or mode == "load":
            continue
        total = work.flops(mode) / speed
        least = work.flops(mode, work.least(mode)) / speed
        budget = effort.seconds.get(mode, total)
        warm = (3 if mode == "single" else WARM_TOKENS / work.workload.mean) * one
        if work.workload.equal:
            warm = one
        seconds[mode] = len(scopes) * (warm + min(total, max(budget, least)))
        if kind.device == "cuda":  # Calls wait for the GPU: the time goes by calls, not operations.
            seconds[mode] = (len(scopes) + 2) * budget
            if number == 0:
                seconds["tune"] = seconds.get("tune", 0.0) + TRIED_SETTINGS.get(mode, 1) * 0.2
            continue
        if number == 0 and not (settled or (mode == "bulk" and work.settles_bulk)):
            tokens = max(effort.tune_tokens, work.workload.burst * work.workload.mean)
            first = one if mode == "single" else tokens / work.workload.mean * one
            again = 6 * one if mode == "single" else first
            trial = first if first >= OWN_WARM_UP_SECONDS else first + again
            tries = 1
            if not kind.ours and mode != "single":
                tries = 2 if work.workload.equal else TRIED_SETTINGS[mode]
            seconds["tune"] = seconds.get("tune", 0.0) + tries * trial
    if work.part.loads(kind) and number < effort.load_rounds:
        seconds["load"] = len(work.lengths["burst"]) * one
        for share in work.part.load_shares:
            rate = share / one
            most = (effort.load_requests, effort.most_load_seconds, MOST_REQUESTS)
            seconds["load"] += num_requests(rate, effort.load_seconds, *most) / rate
    if number == 0:
        seconds["check"] = len(scopes) * len(work.lengths["parity"]) * one
    return seconds
