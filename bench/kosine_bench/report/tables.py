"""Tables out of a result: what was measured, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kosine_bench.measuring.plan import CALL_MODES
from kosine_bench.measuring.result_file import device
from kosine_bench.report.figures import (
    ENOUGH_ARRIVALS,
    beaten_limits,
    cosine_columns,
    figure_of,
    min_cosine,
)
from kosine_bench.report.ratios import (
    LEVEL_HEADS,
    PACKED_HEADS,
    RATIO_HEADS,
    level_rows,
    packed_rows,
    ratio_rows,
)

__all__ = ["headline", "heads", "markdown", "share_rows", "text_table"]

# What float16 must keep on a GPU.
LEAST_GPU_COSINE = 0.9998


def share_rows(result: dict[str, Any], mode: str, scope: str = "end-to-end") -> list[list[str]]:
    """One row a contestant, one cell a workload: sentences/s, and the share of the limit."""
    rows = []
    beaten = beaten_limits(result)
    for contestant in result["contestants"]:
        cells = []
        for workload in result["workloads"]:
            figure = figure_of(result, contestant["name"], workload, mode, scope)
            if figure is None:
                cells.append("")
                continue
            share = figure["summary"]["limit_share"]
            text = f"{figure['summary']['sentences_per_second']:,.0f}"
            known = share is not None and contestant["precision"] not in beaten
            cells.append(f"{text} ({share:.0%})" if known else text)
        if any(cells):
            rows.append([contestant["label"], *cells])
    return rows


HEADLINE = (
    *("runtime", "single p50, ms", "single p99, ms", "burst, sentences/s", "bulk, sentences/s"),
    *("padding in a burst", "CPU s per 1000", "peak memory, MiB", "load, s"),
)
GPU_HEADLINE = (
    *("runtime", "single p50, ms", "single p99, ms", "burst, sentences/s", "bulk, sentences/s"),
    *("padding in a burst", "share of the limit, bulk", "load, s"),
)


def heads(result: dict[str, Any], workload: str) -> tuple[str, ...]:
    """Names of the columns of `headline`."""
    names = GPU_HEADLINE if device(result) == "cuda" else HEADLINE
    return (*names, *cosine_columns(result, workload))


def _peak(run: dict[str, Any] | None) -> str:
    if run is None:
        return ""
    peaks = run["peak_rss_bytes"]
    return f"{max(peaks) / 2**20:,.0f}" if peaks else "not measured"


def headline(result: dict[str, Any], workload: str, scope: str) -> list[list[str]]:
    """Cells of `heads`, one row a contestant, fastest burst first; absent ones last.

    Those that are held to an instruction set have tables of their own.
    """
    size = workload.split("@", 1)[1]
    cosines = cosine_columns(result, workload).values()
    gpu = device(result) == "cuda"
    rows: list[tuple[float, list[str]]] = []
    absent = []
    for contestant in result["contestants"]:
        if contestant.get("forced"):
            continue
        name, label = contestant["name"], contestant["label"]
        figures = {mode: figure_of(result, name, workload, mode, scope) for mode in CALL_MODES}
        if not any(figures.values()):
            if contestant["absent"]:
                absent.append([label, f"absent: {_short(contestant['absent'])}"])
            continue
        run = next(
            (r for r in result["runs"] if (r["contestant"], r["model"]) == (name, size)), None
        )
        rows.append(
            (
                -_value(figures["burst"], "sentences_per_second"),
                [
                    label,
                    _number(figures["single"], "p50_ms", "{:.1f}"),
                    _number(figures["single"], "p99_ms", "{:.1f}"),
                    _number(figures["burst"], "sentences_per_second", "{:,.0f}"),
                    _number(figures["bulk"], "sentences_per_second", "{:,.0f}"),
                    _number(figures["burst"], "padding_share", "{:.0%}"),
                    *(
                        [_number(figures["bulk"], "limit_share", "{:.0%}")]
                        if gpu
                        else [
                            _number(figures["bulk"], "cpu_seconds_per_1000", "{:.2f}"),
                            _peak(run),
                        ]
                    ),
                    f"{_median(run['load_seconds']):.2f}" if run else "",
                    *(_cosine(min_cosine(result, name, *keys), gpu) for keys in cosines),
                ],
            )
        )
    rows.sort(key=lambda row: row[0])
    return [row for _, row in rows] + absent


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], *, bold: str = "") -> str:
    """A GitHub table; rows whose first cell starts with `bold` are set in bold."""
    lines = ["| " + " | ".join(heads) + " |"]
    lines.append("|---|" + "---:|" * (len(heads) - 1))
    for row in rows:
        cells = [*row, *[""] * (len(heads) - len(row))]
        if bold and row[0].startswith(bold):
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def text_table(result: dict[str, Any]) -> str:
    """Everything measured, for a terminal."""
    parts = []
    labels = {entry["name"]: entry["label"] for entry in result["contestants"]}
    for workload in result["workloads"]:
        for scope in ("engine", "end-to-end"):
            rows = [row for row in headline(result, workload, scope) if len(row) > 2]
            if rows:
                parts.append(f"{workload}, {scope}\n{_aligned([heads(result, workload), *rows])}")
        loads = [entry for entry in result["load"] if entry["workload"] == workload]
        if loads:
            rows = [
                [
                    labels[entry["contestant"]],
                    f"{entry['capacity']:,.0f}",
                    *map(_latencies, entry["rows"]),
                ]
                for entry in loads
            ]
            names = ["runtime", "capacity, sentences/s"]
            names += [f"at {row['share']:.0%}, p50 / p95 ms" for row in loads[0]["rows"]]
            title = f"{workload}, Poisson arrivals (* fewer than {ENOUGH_ARRIVALS})"
            parts.append(f"{title}\n{_aligned([names, *rows])}")
    rows = ratio_rows(result)
    if rows:
        title = "kosine against the best rival, end to end"
        parts.append(f"{title}\n{_aligned([RATIO_HEADS, *rows])}")
    rows = level_rows(result)
    if rows:
        title = "kosine native float32 by instruction set, end to end, times faster"
        parts.append(f"{title}\n{_aligned([LEVEL_HEADS, *rows])}")
    rows = packed_rows(result)
    if rows:
        title = "packed rows against padding on ONNX Runtime, engine, times faster"
        parts.append(f"{title}\n{_aligned([PACKED_HEADS, *rows])}")
    shares = [
        [entry["label"], size, f"{share:.1%}"]
        for entry in result["contestants"]
        for size, share in entry.get("w8a16_share", {}).items()
    ]
    if shares:
        title = "share of the linear layers' multiply-adds that stays in w8a16"
        parts.append(f"{title}\n{_aligned(shares)}")
    absent = [
        [entry["label"], entry["absent"]] for entry in result["contestants"] if entry["absent"]
    ]
    if absent:
        parts.append(f"absent\n{_aligned(absent)}")
    return "\n\n".join(parts) + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _latencies(row: dict[str, Any]) -> str:
    few = " *" if row["requests"] < ENOUGH_ARRIVALS else ""
    return f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f}{few}"


def _value(figure: dict[str, Any] | None, key: str) -> float:
    return float(figure["summary"][key]) if figure else 0.0


def _number(figure: dict[str, Any] | None, key: str, form: str) -> str:
    value = figure["summary"][key] if figure else None
    return "" if value is None else form.format(value)


def _cosine(cosine: float | None, gpu: bool) -> str:
    if cosine is None:
        return ""
    under = f" (under {LEAST_GPU_COSINE})" if gpu and cosine < LEAST_GPU_COSINE else ""
    return f"{cosine:.6f}{under}"


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[middle])
    return float(ordered[middle - 1] + ordered[middle]) / 2


def _short(reason: str) -> str:
    first = reason.splitlines()[0]
    return first if len(first) <= 80 else first[:77] + "..."
