"""What vectors cost: how many one core gives in an hour, by encoder and dtype."""

from __future__ import annotations

from typing import Any

from kosine_bench.report.figures import figure_of

__all__ = ["DTYPES", "cost_heads", "cost_rows"]

DTYPES = ("float32", "bfloat16", "w8a16", "int8")
NOT_MEASURED = "not measured"
# Where the choice of `auto` comes first: its figure is the cell.
BACKENDS = ("native", "onnx")


def cost_heads(price: float | None = None) -> tuple[str, ...]:
    """Heads of the table; with the price of a core-hour its cells are of money."""
    what = "vectors" if price is None else "a million vectors"
    return ("encoder", "texts", "tokens a text", *(f"{what}, {dtype}" for dtype in DTYPES))


def cost_rows(result: dict[str, Any], price: float | None = None) -> list[list[str]]:
    """A row for each encoder and its texts, in bulk, text in and unit vectors out.

    A core-hour is one of the cores that the run was given, busy or not, for an hour.

    Args:
        result: A result file's content, of a CPU.
        price: Of a core-hour, in any currency; None counts vectors.
    """
    rows = []
    for key, workload in result["workloads"].items():
        name, _, size = key.partition("@")
        tokens = [column["mean"] for column in workload["columns"]]
        cells = [_cell(result, key, dtype, price) for dtype in DTYPES]
        rows.append([size, name, f"{sum(tokens) / len(tokens):.0f}", *cells])
    return sorted(rows, key=lambda row: row[0])


def _cell(result: dict[str, Any], workload: str, dtype: str, price: float | None) -> str:
    for backend in BACKENDS:
        figure = figure_of(result, f"kosine-{backend}-{dtype}", workload, "bulk", "end-to-end")
        if figure is not None:
            rate = float(figure["summary"]["sentences_per_second"])
            an_hour = rate * 3600 / result["machine"]["threads"]
            if price is None:
                return f"{an_hour:,.0f}"
            return f"{price * 1e6 / an_hour:,.3f}"
    return NOT_MEASURED
