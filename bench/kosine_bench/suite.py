"""What is measured: which models, workloads and modes, and how much of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosine_bench import places
from kosine_bench.contestant import Checkpoint
from kosine_bench.models import ModelSize, flops_per_text
from kosine_bench.workload import Texts, Workload, make_texts

__all__ = ["FULL", "MODES", "QUICK", "SCOPES", "Effort", "WorkFile", "write_work"]

MODES = ("single", "burst", "bulk", "load")
SCOPES = ("engine", "end-to-end")
SEED = 7
PARITY_TEXTS = 32


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run measures. Texts are the most; operations cut them on large models.

    Attributes:
        rounds: Interleaved rounds of everything but load.
        load_rounds: Rounds that measure latency under load too.
        omits: Contestants left out unless they are named.
    """

    rounds: int
    load_rounds: int
    single_texts: int
    bursts: int
    bulk_texts: int
    single_flops: float
    burst_flops: float
    bulk_flops: float
    load_seconds: float
    omits: frozenset[str] = frozenset()


FULL = Effort(3, 1, 64, 12, 2048, 8e11, 1.6e12, 4e12, 5.0)
QUICK = Effort(2, 1, 24, 6, 512, 1e11, 3e11, 4e11, 0.5, frozenset({"torch-compiled"}))


@dataclass(frozen=True, slots=True)
class WorkFile:
    """The texts of one workload for one checkpoint, in the file that workers read."""

    workload: Workload
    size: ModelSize
    path: Path
    source: str
    lengths: dict[str, list[int]]

    @property
    def key(self) -> str:
        return f"{self.workload.name}@{self.size.name}"

    def calls(self, mode: str) -> list[list[int]]:
        """Lengths of the texts of each call of `mode`."""
        lengths = self.lengths[mode]
        size = {"single": 1, "burst": self.workload.burst, "bulk": len(lengths)}[mode]
        return [lengths[i : i + size] for i in range(0, len(lengths), size)]

    def flops(self, modes: Sequence[str]) -> float:
        """Operations of one pass over `modes`, with no padding."""
        return sum(
            flops_per_text(self.size, n)
            for mode in modes
            if mode != "load"
            for n in self.lengths[mode]
        )

    def describe(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "workload": self.workload.name,
            "model": self.size.name,
            "sentences": self.source,
            "burst": self.workload.burst,
            "columns": [
                {
                    "minimum": column.minimum,
                    "mean": column.mean,
                    "maximum": column.maximum,
                    "prompt": bool(column.prompt),
                }
                for column in self.workload.columns
            ],
            "texts": {
                mode: {
                    "count": len(lengths),
                    "minimum": min(lengths),
                    "mean": sum(lengths) / len(lengths),
                    "maximum": max(lengths),
                }
                for mode, lengths in self.lengths.items()
            },
        }


def write_work(
    workload: Workload, size: ModelSize, checkpoint: Checkpoint, effort: Effort, folder: Path
) -> WorkFile:
    """Make the texts of `workload` and write them where workers find them."""
    tokenizer = checkpoint.tokenizer()
    single = sum(workload.columns[i].mean for i in workload.single) / len(workload.single)
    one_burst = workload.burst * flops_per_text(size, round(workload.mean))
    one_text = flops_per_text(size, round(workload.mean))
    bursts = _within(effort.burst_flops / one_burst, 2, effort.bursts)
    counts = {
        "single": _within(
            effort.single_flops / flops_per_text(size, round(single)), 6, effort.single_texts
        ),
        "burst": bursts * workload.burst,
        "bulk": _within(effort.bulk_flops / one_text, 8, effort.bulk_texts),
        "parity": min(PARITY_TEXTS, max(workload.burst, 8)),
    }
    data = places.data_dir()
    parts: dict[str, Texts] = {
        mode: make_texts(
            workload,
            tokenizer,
            count,
            SEED + i,
            data=data,
            columns=workload.single if mode == "single" else None,
        )
        for i, (mode, count) in enumerate(counts.items())
    }
    path = folder / f"{workload.name}-{size.name}.json"
    content = {
        "burst": workload.burst,
        "parts": {
            mode: {"texts": part.texts, "ids": part.ids, "lengths": part.lengths.tolist()}
            for mode, part in parts.items()
        },
    }
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    lengths = {mode: part.lengths.tolist() for mode, part in parts.items()}
    return WorkFile(workload, size, path, parts["bulk"].source, lengths)


def _within(wanted: float, least: int, most: int) -> int:
    return max(least, min(int(wanted), most))
