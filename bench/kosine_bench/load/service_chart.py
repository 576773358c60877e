"""A report of the service beside others: a table for the documentation, and a picture."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Final

from kosine.errors import MissingExtra
from kosine_bench.report.tables import markdown

__all__ = ["plot", "table"]

LABELS: Final = {
    "bare": "a bare Starlette route that returns the same bytes",
    "kosine": "kosine serve, base64",
    "kosine_float": "kosine serve, numbers",
    "batcher": "kosine's batcher in the process, without HTTP",
    "engine": "kosine's encode, as many texts a call",
    "naive": "FastAPI and sentence-transformers",
    "infinity": "infinity",
}
HEADS: Final = (
    *("model", "service", "requests/s", "p50, ms", "p99, ms", "p50 of one client, ms"),
    *("CPU s per 1000", "memory, MiB"),
)
FIELDS: Final = (
    *("requests_per_s", "p50_ms", "p99_ms", "alone_p50_ms", "cpu_s_per_1000"),
    "resident_mib",
)


def table(report: dict[str, Any]) -> str:
    """Markdown: a row for each model and service."""
    rows = []
    for model, found in report["models"].items():
        for service in LABELS:
            figures = found["services"].get(service)
            if figures is not None:
                cells = [_digits(figures.get(field)) for field in FIELDS]
                rows.append([model, LABELS[service], *cells])
    return markdown(HEADS, rows)


def _digits(figure: float | None) -> str:
    """Four of them; all of those before the point."""
    if not figure:
        return ""
    return f"{figure:,.0f}" if figure >= 1_000 else f"{figure:.4g}"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw requests a second, a panel for each model.

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
    matplotlib.rcParams["svg.hashsalt"] = "kosine"
    pyplot = import_module("matplotlib.pyplot")
    models = report["models"]
    figure, panels = pyplot.subplots(
        len(models), 1, figsize=(7.6, 2.6 * len(models)), layout="constrained", squeeze=False
    )
    for axes, (model, found) in zip(panels[:, 0], models.items(), strict=True):
        names = [name for name in reversed(LABELS) if name in found["services"]]
        rates = [found["services"][name]["requests_per_s"] for name in names]
        colours = ["#0b6e4f" if name.startswith("kosine") else "#9aa5b1" for name in names]
        bars = axes.barh([LABELS[name] for name in names], rates, color=colours)
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=4)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{model} ({found['engine']})", loc="left")
    panels[-1, 0].set_xlabel(f"requests per second, {report['clients']} clients, one text each")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
