"""Tables out of a result: what was measured, side by side, with the ratio to the best rival."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kosine_bench.results import device
from kosine_bench.summary import ratio

__all__ = [
    *("best_ratio", "figure_of", "headline", "heads", "markdown", "packed_rows", "ratio_rows"),
    *("beaten_limits", "share_rows", "text_table"),
]

WRONG_COSINE = 0.9
# What float16 must keep on a GPU.
LEAST_GPU_COSINE = 0.9998
# A limit that somebody passes by more than noise was measured too low, and is none.
MOST_SHARE = 1.05
# Packed rows, and the same runtime with padding: plain, and at its best setting.
PACKED = {
    "cpu": ("kosine-onnx-float32", "onnxruntime-plain", "onnxruntime-float32"),
    "cuda": (
        *("kosine-onnx-float16-cuda", "onnxruntime-plain-float16-cuda"),
        "onnxruntime-float16-cuda",
    ),
}
MODES = ("single", "burst", "bulk")


def figure_of(
    result: dict[str, Any], contestant: str, workload: str, mode: str, scope: str
) -> dict[str, Any] | None:
    """That figure, or None where it was not measured."""
    wanted = (contestant, workload, mode, scope)
    for figure in result["figures"]:
        if (figure["contestant"], figure["workload"], figure["mode"], figure["scope"]) == wanted:
            return dict(figure)
    return None


def min_cosine(result: dict[str, Any], contestant: str, workload: str) -> float | None:
    """The lowest cosine to PyTorch's vectors over both ways in, or None where unchecked."""
    found = [
        float(entry["min_cosine"])
        for entry in result["parity"]
        if (entry["contestant"], entry["workload"]) == (contestant, workload)
    ]
    return min(found, default=None)


def beaten_limits(result: dict[str, Any]) -> set[str]:
    """Precisions whose matrix limit, as it was measured, some contestant passed."""
    precision = {entry["name"]: str(entry["precision"]) for entry in result["contestants"]}
    return {
        precision[figure["contestant"]]
        for figure in result["figures"]
        if (figure["summary"].get("limit_share") or 0.0) > MOST_SHARE
    }


def best_ratio(
    result: dict[str, Any], workload: str, mode: str, scope: str, precision: str | None = None
) -> dict[str, Any] | None:
    """kosine's fastest against the fastest rival that computes the right thing.

    Args:
        precision: Compare within that precision only.

    Returns:
        `ours` and `rival` (names), `ratio` and `spread` (times faster, over interleaved
        rounds); None where either side is missing. A rival whose lowest cosine to the
        reference is under 0.9 does not count.
    """
    sides: dict[bool, tuple[float, dict[str, Any]]] = {}
    for contestant in result["contestants"]:
        if precision and contestant["precision"] != precision:
            continue
        figure = figure_of(result, contestant["name"], workload, mode, scope)
        cosine = min_cosine(result, contestant["name"], workload)
        if figure is None or (cosine is not None and cosine < WRONG_COSINE):
            continue
        speed = figure["summary"]["tokens_per_second"]
        if contestant["ours"] not in sides or speed > sides[contestant["ours"]][0]:
            sides[contestant["ours"]] = (speed, figure)
    if len(sides) < 2:
        return None
    ours, rival = sides[True][1], sides[False][1]
    return {
        "ours": ours["contestant"],
        "rival": rival["contestant"],
        **ratio(ours["rounds"], rival["rounds"]),
    }


def ratio_rows(
    result: dict[str, Any], scope: str = "end-to-end", precision: str | None = None
) -> list[list[str]]:
    """One row per workload and mode: who is best on either side, and how many times faster.

    With `precision`, among those that compute in it.
    """
    labels = {entry["name"]: entry["label"] for entry in result["contestants"]}
    rows = []
    for workload in result["workloads"]:
        for mode in MODES:
            best = best_ratio(result, workload, mode, scope, precision)
            if best:
                low, high = best["spread"]
                rows.append(
                    [
                        *(workload, mode, labels[best["ours"]], labels[best["rival"]]),
                        f"{best['ratio']:.2f}x",
                        f"{low:.2f}-{high:.2f}",
                    ]
                )
    return rows


def packed_rows(result: dict[str, Any], scope: str = "engine") -> list[list[str]]:
    """One row per workload and mode: packed rows against the same runtime with padding."""
    ours, *rivals = PACKED[device(result)]
    rows = []
    for workload in result["workloads"]:
        for mode in MODES:
            packed = figure_of(result, ours, workload, mode, scope)
            if packed is None:
                continue
            cells = []
            for rival in rivals:
                padded = figure_of(result, rival, workload, mode, scope)
                found = ratio(packed["rounds"], padded["rounds"]) if padded else None
                cells.append(f"{found['ratio']:.2f}x" if found else "not measured")
            rows.append([workload, mode, *cells])
    return rows


PACKED_HEADS = ("workload", "mode", "against plain padding", "against its best setting")


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
    *("padding in a burst", "CPU s per 1000", "peak memory, MiB", "load, s", "lowest cosine"),
)
GPU_HEADLINE = (
    *("runtime", "single p50, ms", "single p99, ms", "burst, sentences/s", "bulk, sentences/s"),
    *("padding in a burst", "share of the limit, bulk", "load, s", "lowest cosine"),
)


def heads(result: dict[str, Any]) -> tuple[str, ...]:
    """Names of the columns of `headline`."""
    return GPU_HEADLINE if device(result) == "cuda" else HEADLINE


def headline(result: dict[str, Any], workload: str, scope: str) -> list[list[str]]:
    """Cells of `heads`, one row a contestant, fastest burst first; absent ones last."""
    size = workload.split("@")[1]
    gpu = device(result) == "cuda"
    rows: list[tuple[float, list[str]]] = []
    absent = []
    for contestant in result["contestants"]:
        name, label = contestant["name"], contestant["label"]
        figures = {mode: figure_of(result, name, workload, mode, scope) for mode in MODES}
        if not any(figures.values()):
            if contestant["absent"]:
                absent.append([label, f"absent: {_short(contestant['absent'])}"])
            continue
        run = next(
            (r for r in result["runs"] if (r["contestant"], r["model"]) == (name, size)), None
        )
        cosine = min_cosine(result, name, workload)
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
                            f"{max(run['peak_rss_bytes']) / 2**20:,.0f}" if run else "",
                        ]
                    ),
                    f"{_median(run['load_seconds']):.2f}" if run else "",
                    _cosine(cosine, gpu),
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
                parts.append(f"{workload}, {scope}\n{_aligned([heads(result), *rows])}")
        loads = [entry for entry in result["load"] if entry["workload"] == workload]
        if loads:
            rows = [
                [
                    labels[entry["contestant"]],
                    f"{entry['capacity']:,.0f}",
                    *(f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f}" for row in entry["rows"]),
                ]
                for entry in loads
            ]
            names = ["runtime", "capacity, sentences/s"]
            names += [f"at {row['share']:.0%}, p50 / p95 ms" for row in loads[0]["rows"]]
            parts.append(f"{workload}, Poisson arrivals\n{_aligned([names, *rows])}")
    rows = ratio_rows(result)
    if rows:
        names = ["workload", "mode", "kosine", "best rival", "times faster", "rounds"]
        parts.append(f"kosine against the best rival, end to end\n{_aligned([names, *rows])}")
    rows = packed_rows(result)
    if rows:
        title = "packed rows against padding on ONNX Runtime, engine, times faster"
        parts.append(f"{title}\n{_aligned([PACKED_HEADS, *rows])}")
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
