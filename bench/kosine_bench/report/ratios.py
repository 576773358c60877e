"""How many times faster kosine is: than the best rival, and than padding on ONNX Runtime."""

from __future__ import annotations

from itertools import product
from typing import Any

from kosine_bench.measuring.plan import CALL_MODES
from kosine_bench.measuring.result_file import device
from kosine_bench.measuring.summary import ratio
from kosine_bench.report.figures import figure_of, min_cosine

__all__ = [
    *("LEVEL_HEADS", "PACKED_HEADS", "RATIO_HEADS"),
    *("best_ratio", "level_rows", "packed_rows", "ratio_rows"),
]

RATIO_HEADS = ("workload", "mode", "kosine", "best rival", "times faster", "rounds")
LEVEL_HEADS = (
    *("workload", "mode", "kosine", "sentences/s"),
    *("against plain padding", "against its best setting", "rounds"),
)
PACKED_HEADS = ("workload", "mode", "against plain padding", "against its best setting")
WRONG_COSINE = 0.9
# Packed rows, and the same runtime with padding: plain, and at its best setting.
PACKED = {
    "cpu": ("kosine-onnx-float32", "onnxruntime-plain", "onnxruntime-float32"),
    "cuda": (
        *("kosine-onnx-float16-cuda", "onnxruntime-plain-float16-cuda"),
        "onnxruntime-float16-cuda",
    ),
}


def best_ratio(
    result: dict[str, Any],
    workload: str,
    mode: str,
    scope: str,
    precision: str | None = None,
    ours: str | None = None,
) -> dict[str, Any] | None:
    """kosine's fastest against the fastest rival that computes the right thing.

    Args:
        precision: Compare within that precision only.
        ours: Compare that contestant. By default the fastest of kosine's that are not held to an
            instruction set.

    Returns:
        `ours` and `rival` (names), `ratio` and `spread` (times faster, over interleaved
        rounds); None where either side is missing. A rival whose lowest cosine to the
        reference is under 0.9 does not count.
    """
    sides: dict[bool, tuple[float, dict[str, Any]]] = {}
    for contestant in result["contestants"]:
        if precision and contestant["precision"] != precision:
            continue
        wanted = contestant["name"] == ours if ours else not contestant.get("forced")
        if contestant["ours"] and not wanted:
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
    mine, rival = sides[True][1], sides[False][1]
    return {
        "ours": mine["contestant"],
        "rival": rival["contestant"],
        **ratio(mine["rounds"], rival["rounds"]),
    }


def ratio_rows(
    result: dict[str, Any], scope: str = "end-to-end", precision: str | None = None
) -> list[list[str]]:
    """One row per workload and mode: who is best on either side, and how many times faster.

    With `precision`, among those that compute in it, and a row more for each of kosine's that is
    held to an instruction set.
    """
    labels = {entry["name"]: entry["label"] for entry in result["contestants"]}
    forced = [
        entry["name"]
        for entry in result["contestants"]
        if precision and entry.get("forced") and entry["precision"] == precision
    ]
    rows = []
    for workload, mode in product(result["workloads"], CALL_MODES):
        for ours in (None, *forced):
            best = best_ratio(result, workload, mode, scope, precision, ours)
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
        for mode in CALL_MODES:
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


def level_rows(result: dict[str, Any], scope: str = "end-to-end") -> list[list[str]]:
    """One row per workload, mode and instruction set of the native engine in float32.

    Against ONNX Runtime in float32, plain and at its best setting, with the lowest and highest
    round of the latter. None where no instruction set was forced.
    """
    _, plain, tuned = PACKED["cpu"]
    native = [
        entry
        for entry in result["contestants"]
        if entry["name"] == "kosine-native-float32" or entry.get("forced")
    ]
    rows = []
    for workload, mode in product(result["workloads"], CALL_MODES):
        found = [(e, figure_of(result, e["name"], workload, mode, scope)) for e in native]
        if not any(entry.get("forced") and figure for entry, figure in found):
            continue
        for entry, figure in found:
            if figure is None:
                continue
            cells = [f"{figure['summary']['sentences_per_second']:,.0f}"]
            spread = ""
            for rival in (plain, tuned):
                theirs = figure_of(result, rival, workload, mode, scope)
                times = ratio(figure["rounds"], theirs["rounds"]) if theirs else None
                cells.append(f"{times['ratio']:.2f}x" if times else "not measured")
                spread = "{:.2f}-{:.2f}".format(*times["spread"]) if times else ""
            rows.append([workload, mode, entry["label"], *cells, spread])
    return rows
