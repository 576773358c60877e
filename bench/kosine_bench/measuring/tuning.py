"""Which setting a contestant is measured at, and on how many texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kosine_bench.measuring.models import flops_per_text
from kosine_bench.measuring.work_file import WorkFile

__all__ = ["affordable_texts", "known_setting"]


def known_setting(
    tuning: Mapping[tuple[str, str, str], dict[str, Any]],
    files: Sequence[WorkFile],
    name: str,
    work: WorkFile,
    mode: str,
    *,
    on_gpu: bool = False,
) -> dict[str, Any] | None:
    """What is known to be best: for bursts where that settles bulk; on another size, but for
    trained models, whose shapes are others.

    Args:
        tuning: What was settled so far, by contestant, workload and mode.
        files: All workloads of the run.
        name: The contestant.
        on_gpu: Whether it runs on a GPU, which batches longer than a burst fill better.

    Returns:
        As the worker's `tune`, with `settled_by`; None where nothing is known. The speed on
        another size is scaled to this one.
    """
    if mode == "bulk" and work.settles_bulk and not on_gpu:
        burst = tuning[name, work.key, "burst"]
        return {
            "best": burst["best"],
            "tokens_per_second": burst["tokens_per_second"],
            "trials": [],
            "settled_by": "burst",
        }
    for other in () if work.size.trained else files:
        tuned = tuning.get((name, other.key, mode))
        if tuned and other.workload is work.workload and other.size is not work.size:
            tokens = round(work.workload.mean)
            share = flops_per_text(other.size, tokens) / flops_per_text(work.size, tokens)
            speed = tuned["tokens_per_second"] * share
            return {
                "best": tuned["best"],
                "tokens_per_second": speed,
                "trials": [],
                "settled_by": other.key,
            }
    return None


def affordable_texts(
    work: WorkFile, mode: str, tokens_per_second: float, seconds: float | None
) -> int:
    """How many of a mode's texts a contestant of that speed computes in `seconds`.

    Whole bursts, and in bulk whole bursts' worth; never under the mode's least.
    """
    lengths = work.lengths[mode]
    if seconds is None:
        return len(lengths)
    count = int(np.searchsorted(np.cumsum(lengths), tokens_per_second * seconds, "right"))
    if count >= len(lengths):
        return len(lengths)
    step = 1 if mode == "single" else work.workload.burst
    return min(max(count // step * step, work.least(mode)), len(lengths))
