"""The curve of a load report as a picture, and its loads at equal p99 as a table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from kosine.errors import MissingExtra
from kosine_bench.load.generator import LONGEST, SHORTEST
from kosine_bench.report.tables import markdown

__all__ = ["level_table", "plot"]

LEVEL_HEADS: Final = (
    *("p99, ms", "packed, texts/s", "padded, texts/s"),
    *("times more", "90 % interval", "without overhead"),
)


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
        mine.sort(key=lambda point: float(point["offered_rps"]))
        loads = [point["offered_rps"] for point in mine]
        for percent, style in ((99, "o-"), (50, "o:")):
            values = [point[f"p{percent}_s"] * 1e3 for point in mine]
            axes.plot(loads, values, style, color=colour, label=f"{way}, p{percent}")
        # Runs before the bootstrap have no intervals.
        if all("p99_interval_s" in point for point in mine):
            low, high = np.array([point["p99_interval_s"] for point in mine]).T * 1e3
            axes.fill_between(loads, low, high, color=colour, alpha=0.15)
        axes.axvline(report["capacity_rps"][way], color=colour, alpha=0.3)
    axes.set_yscale("log")
    axes.set_xlabel("offered load, texts per second (vertical: capacity)")
    axes.set_ylabel("latency, ms")
    axes.set_title(f"Texts of {SHORTEST}-{LONGEST} tokens (korsts), Poisson arrivals")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def level_table(report: Mapping[str, Any]) -> str:
    """Markdown: the load that each way carries at each p99, measured and without overhead.

    Levels that half of the resamples or more leave out of range are left out.
    """
    possible = {row["p99_s"]: row.get("ratio") for row in report["without_overhead"]["levels"]}
    rows = []
    for row in report["packed_over_padded_at_equal_p99"]:
        if row.get("resamples_in_range", 0.0) < 0.5:
            continue
        low, high = row["interval"]
        best = possible[row["p99_s"]]
        rows.append(
            [
                f"{row['p99_s'] * 1e3:.0f}",
                f"{row['packed_rps']:.0f}",
                f"{row['padded_rps']:.0f}",
                f"{row['ratio']:.2f}x",
                f"{low:.2f}-{high:.2f}",
                "" if best is None else f"{best:.2f}x",
            ]
        )
    return markdown(LEVEL_HEADS, rows)
