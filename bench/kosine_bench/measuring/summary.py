"""From raw samples to figures: medians over rounds, spread, ratios, shares of a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kosine_bench.measuring.models import ModelSize, flops_per_text, weight_bytes

__all__ = ["limit_seconds", "ratio", "summarise", "summarise_load"]


def summarise(mode: str, rounds: Sequence[dict[str, Any]], limit: float | None) -> dict[str, Any]:
    """What a table needs of one contestant in one mode.

    Args:
        mode: "single", "burst" or "bulk".
        rounds: Raw samples of each round, as the worker returned them.
        limit: Seconds that a round's calls would take at the machine's limits, if known.

    Returns:
        Medians over rounds with `[lowest, highest]` beside them: `tokens_per_second`,
        `sentences_per_second`, `cpu_seconds_per_1000`; `padding_share` of the tokens computed;
        `limit_share`; and p50, p95, p99 of the calls' milliseconds over all rounds.
    """
    totals = [sum(one["seconds"]) for one in rounds]
    calls = np.concatenate([one["seconds"] for one in rounds]) * 1e3
    sentences, tokens = rounds[0]["sentences"], rounds[0]["tokens"]
    computed = rounds[0]["computed_tokens"]
    cpu = [one["cpu_seconds"] / one["sentences"] * 1e3 for one in rounds]
    summary: dict[str, Any] = {
        **_spread("tokens_per_second", [tokens / total for total in totals]),
        **_spread("sentences_per_second", [sentences / total for total in totals]),
        **_spread("cpu_seconds_per_1000", cpu),
        "padding_share": 1 - tokens / computed,
        "limit_share": limit / float(np.median(totals)) if limit else None,
    }
    if mode != "bulk":
        medians = [float(np.median(one["seconds"])) * 1e3 for one in rounds]
        for percent in (50, 95, 99):
            summary[f"p{percent}_ms"] = float(np.percentile(calls, percent))
        summary["p50_ms_spread"] = [min(medians), max(medians)]
    return summary


def summarise_load(rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per share of capacity: rate, and latency percentiles in milliseconds."""
    rows = []
    for points in zip(*(one["points"] for one in rounds), strict=True):
        latencies = np.concatenate([point["latencies"] for point in points]) * 1e3
        rows.append(
            {
                "share": points[0]["share"],
                "rate": float(np.median([point["rate"] for point in points])),
                "requests": len(latencies),
                **{f"p{p}_ms": float(np.percentile(latencies, p)) for p in (50, 95, 99)},
            }
        )
    return rows


def ratio(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many times faster `ours` is: the median over rounds, each round against itself.

    Rounds are interleaved, so a slow spell of the machine falls on both sides of a round. Times
    are per token: the slower side may have been given fewer texts.

    Returns:
        `{"ratio": median, "spread": [lowest, highest]}`, over the rounds that both ran.
    """
    pairs = [
        (sum(b["seconds"]) / b["tokens"]) / (sum(a["seconds"]) / a["tokens"])
        for a, b in zip(ours, theirs, strict=False)
    ]
    return {"ratio": float(np.median(pairs)), "spread": [min(pairs), max(pairs)]}


def limit_seconds(
    size: ModelSize,
    precision: str,
    calls: Sequence[Sequence[int]],
    ceilings: Mapping[str, Any],
) -> float | None:
    """Seconds that calls over texts of those lengths would take at the machine's limits.

    A call can be no faster than its arithmetic without any padding at the matrix peak, nor
    than one read of the linear layers' weights from memory. None where the peak is unknown.
    """
    peak = ceilings.get("matrix", {}).get(precision)
    bandwidth = ceilings.get("memory", {}).get("bytes_per_second")
    if not peak or not bandwidth:
        return None
    reading = weight_bytes(size, precision) / float(bandwidth)
    computing = (sum(flops_per_text(size, n) for n in call) / peak["flops"] for call in calls)
    return float(sum(max(seconds, reading) for seconds in computing))


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {name: float(np.median(values)), f"{name}_spread": [min(values), max(values)]}
