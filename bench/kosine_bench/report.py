"""Pictures and the README's table, made from a result file and never typed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kosine.errors import InputError, MissingExtra
from kosine_bench import places, results, tables
from kosine_bench.tables import text_table

__all__ = ["draw", "readme_block", "text_table", "update_readme"]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
GPU_BEGIN, GPU_END = "<!-- bench-gpu:begin -->", "<!-- bench-gpu:end -->"
OURS, RIVAL, INK, FAINT = "#0b6e4f", "#9aa5b1", "#1f2933", "#d9dee3"
STYLES = ("-", "--", "-.", ":")
PICTURES = ("throughput", "load", "limits")


def readme_block(result: dict[str, Any], path: Path, root: Path) -> str:
    """Markdown between the README's markers: machine, tables, pictures."""
    made = result["made"]
    workload = _main_workload(result)
    size = workload.split("@")[1]
    sentences = result["workloads"][workload]["sentences"]
    relative = Path(os.path.relpath(path, root)).as_posix()
    weights = result["models"][size]["weights"]
    commit = made.get("commit", "")[:12] or "unknown commit"
    lines = [
        f"{_hardware(result)};"
        f" {made['date'][:10]}, {commit}; {size} model with {weights} weights, {sentences}"
        f" Korean sentences; medians of {made['rounds']} interleaved rounds, raw samples in"
        f" [{path.name}]({relative}).",
        "",
        f"Text in, unit vectors out, workload `{workload.split('@')[0]}`:",
        "",
        tables.markdown(
            tables.heads(result), tables.headline(result, workload, "end-to-end"), bold="kosine"
        ),
        "",
    ]
    rows = tables.ratio_rows(result)
    heads = ("workload", "mode", "kosine", "best rival", "times faster", "rounds")
    if rows:
        lines += [
            "kosine's fastest against the fastest rival of any precision, end to end:",
            "",
            tables.markdown(heads, rows),
            "",
        ]
    gpu = results.device(result) == "cuda"
    for precision in () if gpu else ("bfloat16", "float32"):
        rows = tables.ratio_rows(result, precision=precision)
        if rows:
            lines += [f"The same among those that compute in {precision}:", ""]
            lines += [tables.markdown(heads, rows), ""]
    if gpu:
        lines += _gpu_tables(result)
    lines += _packed_table(result)
    matrix = result["ceilings"].get("matrix", {})
    for precision in sorted(tables.beaten_limits(result) & set(matrix)):
        flops = matrix[precision]["flops"]
        lines += [
            f"Shares of the limit are left out for {precision}: {flops / 1e9:,.0f} GFLOP/s were "
            "measured for it in this run, and contestants passed that.",
            "",
        ]
    for picture in PICTURES:
        file = picture_path(path, picture)
        if file.is_file():
            shown = Path(os.path.relpath(file, root)).as_posix()
            lines += [f"![{picture}]({shown})", ""]
    return "\n".join(lines).rstrip()


def _hardware(result: dict[str, Any]) -> str:
    """What the run was made on; of a GPU's, with the limits that were measured in it."""
    machine = result["machine"]
    cpu = f"{machine['cpu']}, {machine['threads']} threads"
    gpu = machine.get("gpu")
    if gpu is None:
        return f"{cpu} ({', '.join(machine['isa'])})"
    text = f"{gpu['name']} ({gpu['memory_gib']:.0f} GiB, CUDA {gpu['cuda_driver']}), {cpu}"
    peak = result["ceilings"].get("matrix", {}).get("float16")
    moved = result["ceilings"].get("memory", {}).get("bytes_per_second")
    if peak and moved:
        text += (
            f"; in the same run {peak['flops'] / 1e12:,.0f} TFLOP/s of dense fp16 products"
            f" and {moved / 1e12:.1f} TB/s of device memory, the limits"
        )
    return text


def _gpu_tables(result: dict[str, Any]) -> list[str]:
    lines = []
    names = ("runtime", *result["workloads"])
    rows = tables.share_rows(result, "bulk")
    if rows:
        lines += [
            "Bulk, text in, sentences/s (and the share of the limit), by workload and model size:",
            "",
            tables.markdown(names, rows, bold="kosine"),
            "",
        ]
    return lines


def _packed_table(result: dict[str, Any]) -> list[str]:
    rows = tables.packed_rows(result)
    if not rows:
        return []
    return [
        "Packed rows on ONNX Runtime, engine only, times faster than padding on it:",
        "",
        tables.markdown(tables.PACKED_HEADS, rows),
        "",
    ]


def update_readme(result: dict[str, Any], path: Path, readme: Path | None = None) -> Path | None:
    """Replace what stands between the markers of the README; None outside a checkout.

    Raises:
        InputError: The README has no markers.
    """
    if readme is None:
        root = places.checkout()
        if root is None:
            return None
        readme = root / "README.md"
    text = readme.read_text("utf-8")
    gpu = results.device(result) == "cuda"
    opening, closing = (GPU_BEGIN, GPU_END) if gpu else (BEGIN, END)
    head, begin, rest = text.partition(opening)
    _, end, tail = rest.partition(closing)
    if not begin or not end:
        raise InputError(
            f"{readme.name} has no markers for the table",
            limit=f"{opening} and {closing}",
            remedy="put both where the table belongs",
        )
    block = readme_block(result, path, readme.parent)
    readme.write_text(f"{head}{opening}\n{block}\n{closing}{tail}", "utf-8")
    return readme


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


def _main_workload(result: dict[str, Any]) -> str:
    keys: list[str] = list(result["workloads"])
    return next((key for key in keys if key == "korsts@base"), keys[0])


def _bars(result: dict[str, Any], workload: str, mode: str, key: str) -> list[Any]:
    """(label, ours, value, low, high) per contestant, smallest first: bars grow upwards."""
    bars = []
    beaten = tables.beaten_limits(result) if key == "limit_share" else set()
    for contestant in result["contestants"]:
        if contestant["precision"] in beaten:
            continue
        figure = tables.figure_of(result, contestant["name"], workload, mode, "end-to-end")
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
    return figure


def _load(result: dict[str, Any]) -> Any:
    """p95 latency against the rate of arrivals, one panel a workload."""
    from matplotlib import pyplot

    workloads = [w for w in result["workloads"] if any(e["workload"] == w for e in result["load"])]
    if not workloads:
        return None
    contestants = {entry["name"]: entry for entry in result["contestants"]}
    figure, axes = pyplot.subplots(
        len(workloads),
        1,
        figsize=(8.4, 4.2 * len(workloads)),
        squeeze=False,
        layout="constrained",
    )
    colours = [pyplot.get_cmap("tab20")(i) for i in range(20)]
    names = {
        ours: [entry["name"] for entry in result["contestants"] if entry["ours"] is ours]
        for ours in (True, False)
    }
    for panel, workload in zip(axes[:, 0], workloads, strict=True):
        for entry in result["load"]:
            if entry["workload"] != workload:
                continue
            name = entry["contestant"]
            ours = contestants[name]["ours"]
            rank = names[ours].index(name)
            panel.plot(
                [row["rate"] for row in entry["rows"]],
                [row["p95_ms"] for row in entry["rows"]],
                marker="o",
                markersize=4,
                color=OURS if ours else colours[rank % len(colours)],
                linestyle=STYLES[rank % len(STYLES)] if ours else "-",
                linewidth=2.4 if ours else 1.2,
                zorder=3 if ours else 2,
                label=contestants[name]["label"],
            )
        panel.set_yscale("log")
        panel.set_xlim(left=0)
        panel.set_xlabel("arrivals per second (Poisson), at 30, 50, 70 and 90 % of capacity")
        panel.set_ylabel("p95 latency, ms")
        panel.set_title(workload, loc="left", fontsize=10, fontweight="bold")
        panel.grid(color=FAINT, linewidth=0.6)
        where = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        panel.legend(fontsize=8, frameon=False, handlelength=4.5, **where)
    return figure


def _limits(result: dict[str, Any]) -> Any:
    """Share of the machine's limit that each contestant reaches, on the main workload."""
    workload = _main_workload(result)
    modes = [mode for mode in ("single", "burst", "bulk") if mode in result["made"]["modes"]]
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
