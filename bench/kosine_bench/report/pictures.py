"""Pictures of a result: throughput, latency under load, shares of the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kosine.errors import MissingExtra
from kosine_bench.measuring.plan import CALL_MODES
from kosine_bench.report import figures
from kosine_bench.report.figures import ENOUGH_ARRIVALS

__all__ = ["PICTURES", "draw", "picture_path"]

PICTURES = ("throughput", "load", "limits")
OURS, RIVAL, INK, FAINT = "#0b6e4f", "#9aa5b1", "#1f2933", "#d9dee3"
STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
RIVAL_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#9467bd", "#d62728", "#8c564b", "#e377c2", "#17becf", "#bcbd22"),
    *("#aec7e8", "#ffbb78", "#c5b0d5", "#ff9896", "#c49c94", "#7f7f7f"),
)


def picture_path(path: Path, picture: str) -> Path:
    """Where the picture of the result at `path` goes."""
    return path.with_name(f"{path.stem}-{picture}.svg")


def draw(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw the pictures of the result at `path` beside it; those it has figures for.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra(
            "pictures need matplotlib, which is not installed",
            remedy="pip install 'kosine[bench]'",
        ) from error
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "kosine",
            "font.size": 10,
            "axes.edgecolor": FAINT,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    from matplotlib import pyplot

    drawn = []
    for picture, figure in (
        ("throughput", _throughput(result)),
        ("load", _load(result)),
        ("limits", _limits(result)),
    ):
        if figure is not None:
            machine = result["machine"]
            device = machine["gpu"]["name"] if "gpu" in machine else machine["cpu"]
            figure.suptitle(device, fontsize=9, color=RIVAL)
            file = picture_path(path, picture)
            figure.savefig(file, metadata={"Date": None}, bbox_inches="tight", facecolor="white")
            pyplot.close(figure)
            drawn.append(file)
    return drawn


def _bars(result: dict[str, Any], workload: str, mode: str, key: str) -> list[Any]:
    """(label, ours, value, low, high) per contestant, smallest first: bars grow upwards."""
    bars = []
    beaten = figures.beaten_limits(result) if key == "limit_share" else set()
    for contestant in result["contestants"]:
        if contestant["precision"] in beaten or contestant.get("forced"):
            continue
        figure = figures.figure_of(result, contestant["name"], workload, mode, "end-to-end")
        if figure is None or figure["summary"].get(key) is None:
            continue
        value = figure["summary"][key]
        low, high = figure["summary"].get(f"{key}_spread", (value, value))
        bars.append((contestant["label"], contestant["ours"], value, low, high))
    return sorted(bars, key=lambda bar: bar[2])


def _panel(axes: Any, bars: list[Any], form: str) -> None:
    values = [bar[2] for bar in bars]
    errors = [
        [bar[2] - bar[3] for bar in bars],
        [bar[4] - bar[2] for bar in bars],
    ]
    axes.barh(
        [bar[0] for bar in bars],
        values,
        xerr=errors,
        color=[OURS if bar[1] else RIVAL for bar in bars],
        error_kw={"ecolor": INK, "elinewidth": 0.8},
        height=0.72,
    )
    top = max([*(bar[4] for bar in bars), 0]) or 1
    for i, bar in enumerate(bars):
        axes.text(bar[4] + top * 0.015, i, form.format(bar[2]), va="center", fontsize=8)
    axes.set_xlim(0, top * 1.18)
    axes.tick_params(length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _grid(rows: int, columns: int, num_bars: int) -> Any:
    from matplotlib import pyplot

    return pyplot.subplots(
        rows,
        columns,
        figsize=(5.6 * columns, rows * (0.9 + 0.27 * num_bars)),
        squeeze=False,
        layout="constrained",
    )


def _throughput(result: dict[str, Any]) -> Any:
    """Tokens per second of bursts and bulk, one row of panels a workload."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    modes = [mode for mode in ("burst", "bulk") if mode in result["made"]["modes"]]
    panels = {
        (workload, mode): _bars(result, workload, mode, "tokens_per_second")
        for workload in result["workloads"]
        for mode in modes
    }
    workloads = [w for w in result["workloads"] if any(panels[w, m] for m in modes)]
    if not workloads:
        return None
    most = max(map(len, panels.values()))
    figure, axes = _grid(len(workloads), len(modes), most)
    for row, workload in zip(axes, workloads, strict=True):
        for panel, mode in zip(row, modes, strict=True):
            if not panels[workload, mode]:  # that mode was not measured there
                panel.set_visible(False)
                continue
            _panel(panel, panels[workload, mode], "{:,.0f}")
            panel.set_title(f"{workload}: {mode}", loc="left", fontsize=10, fontweight="bold")
            panel.set_xlabel("real tokens per second, text to vector")
            panel.xaxis.set_major_locator(MaxNLocator(5))
            panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure


def _load(result: dict[str, Any]) -> Any:
    """p95 latency against the rate of arrivals, one panel a workload, one legend for all."""
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    workloads = [w for w in result["workloads"] if any(e["workload"] == w for e in result["load"])]
    if not workloads:
        return None
    columns = min(len(workloads), 2)
    rows = -(-len(workloads) // columns)
    size = (8.4, 4.2) if columns == 1 else (5.2 * columns, 3.6 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    handles: dict[str, Any] = {}
    few = False
    panels = list(axes.flat)
    for panel, workload in zip(panels, workloads, strict=False):
        for entry in result["load"]:
            if entry["workload"] == workload:
                line, some = _curve(panel, result, entry)
                handles.setdefault(line.get_label(), line)
                few = few or some
        shares = [f"{row['share']:.0%}" for row in _first_load(result, workload)["rows"]]
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xlim(left=0)
        panel.set_xlabel(f"arrivals per second (Poisson), at {', '.join(shares)} of capacity")
        panel.set_ylabel("p95 latency, ms")
        panel.set_title(workload, loc="left", fontsize=10, fontweight="bold")
        panel.grid(color=FAINT, linewidth=0.6)
    for panel in panels[len(workloads) :]:
        panel.set_axis_off()
    shown = list(handles.values())
    if few:
        hollow = Line2D([], [], linestyle="none", marker="o", markersize=5, color=INK)
        hollow.set_markerfacecolor("white")
        hollow.set_label(f"hollow: fewer than {ENOUGH_ARRIVALS} arrivals")
        shown.append(hollow)
    style: dict[str, Any] = {"fontsize": 8, "frameon": False, "handlelength": 4.5}
    if columns == 1:
        panels[0].legend(handles=shown, loc="center left", bbox_to_anchor=(1.01, 0.5), **style)
    elif len(panels) > len(workloads):
        panels[-1].legend(handles=shown, loc="center left", **style)
    else:
        figure.legend(handles=shown, loc="outside lower center", ncols=3, **style)
    return figure


def _first_load(result: dict[str, Any], workload: str) -> dict[str, Any]:
    return next(dict(entry) for entry in result["load"] if entry["workload"] == workload)


def _curve(panel: Any, result: dict[str, Any], entry: dict[str, Any]) -> tuple[Any, bool]:
    """Draw one contestant; its line, and whether a point has too few arrivals for a p95."""
    contestants = {one["name"]: one for one in result["contestants"]}
    name = entry["contestant"]
    ours = contestants[name]["ours"]
    # A contestant looks the same in each panel.
    rank = [one for one in contestants if contestants[one]["ours"] is ours].index(name)
    colour = OURS if ours else RIVAL_COLOURS[rank % len(RIVAL_COLOURS)]
    (line,) = panel.plot(
        [row["rate"] for row in entry["rows"]],
        [row["p95_ms"] for row in entry["rows"]],
        marker="o",
        markersize=4,
        color=colour,
        linestyle=STYLES[rank % len(STYLES)] if ours else "-",
        linewidth=2.4 if ours else 1.2,
        zorder=3 if ours else 2,
        label=contestants[name]["label"],
    )
    few = [row for row in entry["rows"] if row["requests"] < ENOUGH_ARRIVALS]
    panel.plot(
        [row["rate"] for row in few],
        [row["p95_ms"] for row in few],
        linestyle="none",
        marker="o",
        markersize=5,
        markerfacecolor="white",
        color=colour,
        zorder=4,
    )
    return line, bool(few)


def _limits(result: dict[str, Any]) -> Any:
    """Share of the machine's limit that each contestant reaches, on the main workload."""
    workload = figures.main_workload(result)
    modes = [mode for mode in CALL_MODES if mode in result["made"]["modes"]]
    panels = []
    for mode in modes:
        bars = _bars(result, workload, mode, "limit_share")
        if bars:
            panels.append((mode, bars))
    if not panels:
        return None
    figure, axes = _grid(1, len(panels), max(len(bars) for _, bars in panels))
    for panel, (mode, bars) in zip(axes[0], panels, strict=True):
        _panel(panel, bars, "{:.0%}")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.set_title(f"{workload}: {mode}", loc="left", fontsize=10, fontweight="bold")
        panel.set_xlabel("share of the limit at that precision, text to vector")
    return figure
