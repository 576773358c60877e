"""The generated part of the benchmark page: tables made from a result file, never typed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosine.errors import InputError
from kosine_bench import paths
from kosine_bench.measuring import result_file
from kosine_bench.report import cost, figures, ratios, tables
from kosine_bench.report.pictures import PICTURES, picture_path

__all__ = ["block", "summary", "update"]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
SUMMARY_BEGIN, SUMMARY_END = "<!-- speed:begin -->", "<!-- speed:end -->"
SUMMARY_COLUMNS = (
    *("runtime", "single p50, ms", "burst, sentences/s", "bulk, sentences/s"),
    *("peak memory, MiB", figures.COSINE, figures.TRAINED_COSINE),
)
GPU_BEGIN, GPU_END = "<!-- bench-gpu:begin -->", "<!-- bench-gpu:end -->"


def block(result: dict[str, Any], path: Path, root: Path) -> str:
    """Markdown between the page's markers: machine, tables, pictures.

    Args:
        result: A result file's content.
        path: That file.
        root: The folder that the page is in; links are relative to it.
    """
    made = result["made"]
    workload = figures.main_workload(result)
    size = workload.split("@", 1)[1]
    sentences = result["workloads"][workload]["sentences"]
    relative = Path(os.path.relpath(path, root)).as_posix()
    weights = result["models"][size]["weights"]
    commit = made.get("commit", "")[:12] or "unknown commit"
    rounds = "one round"
    if made["rounds"] > 1:
        rounds = f"medians of {made['rounds']} interleaved rounds"
    if made.get("repeats", 1) > 1:
        rounds = f"medians of {made['repeats']} repeats in one process each"
    heads = tables.heads(result, workload)
    rows = tables.headline(result, workload, "end-to-end")
    lines = [
        f"{_hardware(result)};"
        f" {made['date'][:10]}, {commit}; {size} model with {weights} weights, {sentences}"
        f" Korean sentences; {rounds}, raw samples in"
        f" [{path.name}]({relative}).{_missing(result)}",
        "",
        f"Text in, unit vectors out, workload `{workload.split('@')[0]}`:",
        "",
        tables.markdown(*_measured(heads, rows), bold="kosine"),
        "",
    ]
    trained = figures.trained_workloads(result)
    if trained and workload not in trained:
        lines += [f"Weights are trained on {', '.join(f'`{key}`' for key in trained)}.", ""]
    rows = ratios.ratio_rows(result)
    if rows:
        lines += [
            "kosine's fastest against the fastest rival of any precision, end to end:",
            "",
            tables.markdown(ratios.RATIO_HEADS, rows),
            "",
        ]
    gpu = result_file.device(result) == "cuda"
    for precision in () if gpu else ("bfloat16", "float32"):
        rows = ratios.ratio_rows(result, precision=precision)
        if rows:
            lines += _folded(
                f"The same among those that compute in {precision}",
                tables.markdown(ratios.RATIO_HEADS, rows),
            )
    rows = ratios.level_rows(result)
    if rows:
        lines += [
            "kosine's native engine in float32 by the instruction set that it is held to, text in,"
            " times faster than ONNX Runtime in float32, which takes what the CPU has and cannot be"
            " held to less:",
            "",
            tables.markdown(ratios.LEVEL_HEADS, rows),
            "",
        ]
    if gpu:
        lines += _gpu_tables(result)
    lines += _packed_table(result)
    matrix = result["ceilings"].get("matrix", {})
    for precision in sorted(figures.beaten_limits(result) & set(matrix)):
        flops = matrix[precision]["flops"]
        lines += [
            f"Shares of the limit are left out for {precision}: {flops / 1e9:,.0f} GFLOP/s were "
            "measured for it in this run, and contestants passed that.",
            "",
        ]
    for entry in result["contestants"]:
        if shares := entry.get("w8a16_share"):
            of_each = ", ".join(f"{share:.1%} of {size}'s" for size, share in shares.items())
            lines += [f"In {entry['label']} {of_each} multiply-adds stay in w8a16.", ""]
    if result_file.device(result) == "cpu":
        lines += [
            "Vectors in an hour of one core, by encoder and dtype, in bulk, text in; the core"
            " counts whether or not it was busy:",
            "",
            tables.markdown(cost.cost_heads(), cost.cost_rows(result)),
            "",
        ]
    for picture in PICTURES:
        file = picture_path(path, picture)
        if file.is_file():
            shown = Path(os.path.relpath(file, root)).as_posix()
            lines += [f"![{picture}]({shown})", ""]
    return "\n".join(lines).rstrip()


def _folded(summary: str, table: str) -> list[str]:
    """A table that a page shows when asked to; Markdown wants the empty lines."""
    return ["<details>", f"<summary>{summary}</summary>", "", table, "", "</details>", ""]


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


def _missing(result: dict[str, Any]) -> str:
    """Of a run that was cut off: what it did not come to."""
    if not result["made"].get("unfinished"):
        return ""
    found = {(figure["contestant"], figure["workload"]) for figure in result["figures"]}
    sizes = {workload.split("@", 1)[1] for _, workload in found}
    names = [each["label"] for each in result["contestants"] if not each["absent"]
             and each["name"] not in {name for name, _ in found}]  # fmt: skip
    names += [f"the size {size}" for size in result["models"] if size not in sizes]
    return f" The run was cut off: not measured are {', '.join(names)}."


def _measured(heads: Sequence[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns that say "not measured" of everybody; rows of absent ones are short."""
    whole = [row for row in rows if len(row) == len(heads)]
    kept = [i for i in range(len(heads)) if not whole or any(r[i] != "not measured" for r in whole)]
    return (
        [heads[i] for i in kept],
        [[row[i] for i in kept] if len(row) == len(heads) else row for row in rows],
    )


def _gpu_tables(result: dict[str, Any]) -> list[str]:
    lines = []
    rows = tables.share_rows(result, "bulk")
    if rows:
        names = ["runtime", *result["workloads"]]
        kept = [i for i in range(len(names)) if any(row[i] for row in rows)]
        names, *rows = ([row[i] for i in kept] for row in (names, *rows))
        lines += [
            "Bulk, text in, sentences/s (and the share of the limit), by workload and model size:",
            "",
            tables.markdown(names, rows, bold="kosine"),
            "",
        ]
    return lines


def _packed_table(result: dict[str, Any]) -> list[str]:
    rows = ratios.packed_rows(result)
    if all(set(row[2:]) == {"not measured"} for row in rows):
        return []
    return [
        "Packed rows on ONNX Runtime, engine only, times faster than padding on it:",
        "",
        tables.markdown(ratios.PACKED_HEADS, rows),
        "",
    ]


def summary(result: dict[str, Any], path: Path, root: Path) -> str:
    """Markdown for the README: kosine's ways and the fastest rival of each precision, in bulk."""
    workload = figures.main_workload(result)
    best: dict[str, tuple[float, str]] = {}
    shown = set()
    for contestant in result["contestants"]:
        figure = figures.figure_of(result, contestant["name"], workload, "bulk", "end-to-end")
        if figure is None or contestant.get("forced"):
            continue
        rate = figure["summary"]["sentences_per_second"]
        if contestant["ours"]:
            shown.add(contestant["label"])
        else:
            kind = contestant["precision"]
            best[kind] = max(best.get(kind, (0.0, "")), (rate, contestant["label"]))
    shown |= {label for _, label in best.values()}
    heads = tables.heads(result, workload)
    columns = [i for i, name in enumerate(heads) if name in SUMMARY_COLUMNS]
    rows = [
        [row[column] for column in columns]
        for row in tables.headline(result, workload, "end-to-end")
        if row[0] in shown
    ]
    relative = Path(os.path.relpath(path, root)).as_posix()
    made = result["made"]
    return "\n".join(
        [
            f"{result['machine']['cpu']}, {result['machine']['threads']} threads, base size, text"
            " in, unit vectors out; the fastest rival of each precision beside kosine, in one run"
            f" ([{made['date'][:10]}, {made.get('commit', '')[:12]}]({relative})):",
            "",
            tables.markdown(*_measured([heads[i] for i in columns], rows), bold="kosine"),
        ]
    )


def update(result: dict[str, Any], path: Path, page: Path | None = None) -> Path | None:
    """Replace what stands between the markers of the page, and the README's summary of it.

    Returns:
        The page; None outside a checkout.

    Raises:
        InputError: A page has no markers.
    """
    readme = None if page is not None else paths.readme()
    page = page or paths.page()
    if page is None:
        return None
    gpu = result_file.device(result) == "cuda"
    markers = (GPU_BEGIN, GPU_END) if gpu else (BEGIN, END)
    _replace(page, markers, block(result, path, page.parent))
    if readme is not None and not gpu:
        _replace(readme, (SUMMARY_BEGIN, SUMMARY_END), summary(result, path, readme.parent))
    return page


def _replace(page: Path, markers: tuple[str, str], made: str) -> None:
    opening, closing = markers
    head, begin, rest = page.read_text("utf-8").partition(opening)
    _, end, tail = rest.partition(closing)
    if not begin or not end:
        raise InputError(
            f"{page.name} has no markers for the table",
            limit=f"{opening} and {closing}",
            remedy="put both where the table belongs",
        )
    page.write_text(f"{head}{opening}\n{made}\n{closing}{tail}", "utf-8")
