"""How much load two ways of serving carry at the same p99, from measured points.

A point is a load and the latencies that it gave. Between two loads the logarithm of the p99 is
interpolated in the load; nothing is smoothed, and nothing is said outside the loads measured.
Confidence comes from a block bootstrap: the passes over a point are drawn again, and in each of
them whole stretches of neighbouring requests, because requests that queue together are late
together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["P99_LEVELS", "advantage", "interval", "load_at_p99", "resampled_p99"]

# The p99 at which ways are compared, as parts of the time of one full batch: fixed before
# anything is measured, from what only light loads keep to what an overloaded queue gives.
P99_LEVELS: Final = (0.0625, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
BLOCKS_PER_PASS: Final = 20
RESAMPLES: Final = 1_000
INTERVAL: Final = (5.0, 95.0)

Floats = NDArray[np.float64]


def load_at_p99(loads: Sequence[float], p99_s: Sequence[float], level_s: float) -> float | None:
    """The most requests per second at which the p99 is still within a level.

    Args:
        loads: Requests per second, ascending.
        p99_s: The p99 of each, in seconds.
        level_s: The p99 to keep, in seconds.

    Returns:
        None if the level is outside what was measured: every load exceeds it, or not even the
        heaviest does.
    """
    if not loads or p99_s[-1] <= level_s:
        return None
    for at in range(len(loads) - 1, 0, -1):
        if p99_s[at - 1] <= level_s:
            below, above = math.log(p99_s[at - 1]), math.log(p99_s[at])
            part = (math.log(level_s) - below) / (above - below)
            return loads[at - 1] + part * (loads[at] - loads[at - 1])
    return None


def resampled_p99(passes: Sequence[Floats], generator: np.random.Generator) -> Floats:
    """(RESAMPLES,) p99 of a point: the median over passes drawn with replacement, and in each of
    these the p99 of blocks drawn with replacement.

    Args:
        passes: Latencies in seconds in order of arrival, one array per pass.
        generator: What draws.
    """
    blocks = [np.array_split(each, min(BLOCKS_PER_PASS, len(each))) for each in passes]

    def p99(own: Sequence[Floats]) -> float:
        drawn = generator.integers(0, len(own), len(own))
        return float(np.percentile(np.concatenate([own[i] for i in drawn]), 99))

    draws = generator.integers(0, len(blocks), (RESAMPLES, len(blocks)))
    return np.array([np.median([p99(blocks[i]) for i in chosen]) for chosen in draws])


def interval(values: Floats) -> list[float]:
    """The middle 90 % of resampled values."""
    return [float(value) for value in np.percentile(values, INTERVAL)]


def advantage(
    points: Sequence[Mapping[str, Any]],
    resampled: Sequence[Floats],
    levels_s: Sequence[float],
) -> list[dict[str, Any]]:
    """How many times the load of padded batching packed batching carries, at each p99.

    Args:
        points: `way`, `offered_rps` and `p99_s` of each.
        resampled: The points' `resampled_p99`.
        levels_s: The p99 to keep, in seconds.

    Returns:
        For each level its `p99_s`; the load of each way, where it is within what was measured;
        and where both are, their `ratio`, its 90 % `interval`, and the share of the resamples
        that it rests on (in the others, one of the two was out of range).
    """
    curves = {}
    for way in ("packed", "padded"):
        chosen = [index for index, point in enumerate(points) if point["way"] == way]
        chosen.sort(key=lambda index: float(points[index]["offered_rps"]))
        loads = [float(points[index]["offered_rps"]) for index in chosen]
        p99_s = [float(points[index]["p99_s"]) for index in chosen]
        curves[way] = loads, p99_s, np.array([resampled[index] for index in chosen])
    found = []
    for level_s in levels_s:
        carried = {way: load_at_p99(*curve[:2], level_s) for way, curve in curves.items()}
        row: dict[str, Any] = {
            "p99_s": round(level_s, 6),
            **{f"{way}_rps": _rounded(load, 2) for way, load in carried.items()},
        }
        top, bottom = carried["packed"], carried["padded"]
        if top is not None and bottom is not None:
            ratios = _resampled_ratios(curves["packed"], curves["padded"], level_s)
            row["ratio"] = round(top / bottom, 3)
            row["interval"] = [round(value, 3) for value in interval(ratios)] if len(ratios) else []
            row["resamples_in_range"] = round(len(ratios) / RESAMPLES, 3)
        found.append(row)
    return found


def _resampled_ratios(
    packed: tuple[list[float], list[float], Floats],
    padded: tuple[list[float], list[float], Floats],
    level_s: float,
) -> Floats:
    ratios = []
    for column in range(RESAMPLES):
        top = load_at_p99(packed[0], packed[2][:, column].tolist(), level_s)
        bottom = load_at_p99(padded[0], padded[2][:, column].tolist(), level_s)
        if top is not None and bottom is not None:
            ratios.append(top / bottom)
    return np.array(ratios)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
