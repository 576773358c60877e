"""What is measured: which models, workloads and modes, and how much of each."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosine_bench import paths
from kosine_bench.contestants.contestant import Checkpoint
from kosine_bench.measuring.models import ModelSize, flops_per_text
from kosine_bench.measuring.plan import SEED, Effort, Part
from kosine_bench.measuring.workload import Texts, Workload, make_texts

__all__ = ["WorkFile", "calibration_ids", "write_work"]

PARITY_TEXTS = 32
LEAST_TOKENS = {"single": 96, "burst": 1_024, "bulk": 2_048}
LEAST_BULK_BURSTS = 2
CALIBRATION_TEXTS = 128
CALIBRATION_FLOPS = 2e12
LEAST_CALIBRATION_TEXTS = 16
MOST_CALIBRATION_TOKENS = 512


@dataclass(frozen=True, slots=True)
class WorkFile:
    """The texts of one workload for one checkpoint, in the file that workers read."""

    workload: Workload
    size: ModelSize
    path: Path
    source: str
    lengths: dict[str, list[int]]
    part: Part

    @property
    def key(self) -> str:
        return f"{self.workload.name}@{self.size.name}"

    @property
    def settles_bulk(self) -> bool:
        """Whether what is best for bursts is best in bulk: nothing to sort, nothing to cut."""
        return self.workload.equal and "burst" in self.part.modes

    def calls(self, mode: str, texts: int | None = None) -> list[list[int]]:
        """Lengths of the texts of each call of `mode`, of the first `texts` texts."""
        lengths = self.lengths[mode][:texts]
        size = {"single": 1, "burst": self.workload.burst, "bulk": len(lengths)}[mode]
        return [lengths[i : i + size] for i in range(0, len(lengths), size)]

    def flops(self, mode: str, texts: int | None = None) -> float:
        """Operations of one pass over `mode`'s first `texts` texts, with no padding."""
        return sum(flops_per_text(self.size, n) for n in self.lengths[mode][:texts])

    def least(self, mode: str) -> int:
        """Texts that a round of `mode` measures however slow the contestant."""
        burst = self.workload.burst
        tokens = LEAST_TOKENS[mode] / self.workload.mean
        if mode == "single":
            fewest = 1 if self.workload.mean >= LEAST_TOKENS["bulk"] else 2
            return min(max(math.ceil(tokens), fewest), len(self.lengths[mode]))
        bursts = max(math.ceil(tokens / burst), LEAST_BULK_BURSTS if mode == "bulk" else 1)
        return min(bursts * burst, len(self.lengths[mode]))

    def describe(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "workload": self.workload.name,
            "model": self.size.name,
            "sentences": self.source,
            "burst": self.workload.burst,
            "modes": list(self.part.modes),
            "rounds": dict(self.part.rounds),
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


def write_work(part: Part, checkpoint: Checkpoint, effort: Effort, folder: Path) -> WorkFile:
    """Make the texts of `part` and write them where workers find them."""
    workload, size = part.workload, part.size
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
        "parity": min(PARITY_TEXTS, workload.burst),
    }
    data = paths.data_dir()
    texts: dict[str, Texts] = {
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
            mode: {"texts": made.texts, "ids": made.ids, "lengths": made.lengths.tolist()}
            for mode, made in texts.items()
        },
    }
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    lengths = {mode: made.lengths.tolist() for mode, made in texts.items()}
    return WorkFile(workload, size, path, texts["bulk"].source, lengths, part)


def calibration_ids(
    parts: Sequence[Part], size: ModelSize, checkpoint: Checkpoint
) -> list[list[int]]:
    """Ids of texts like all workloads of `parts` on `size`, none of them measured; of long ones
    the beginning.
    """
    columns = tuple(
        column for part in parts if part.size is size for column in part.workload.columns
    )
    mixed = Workload("calibration", columns, (0,))
    affordable = int(CALIBRATION_FLOPS / flops_per_text(size, round(mixed.mean)))
    count = _within(affordable, LEAST_CALIBRATION_TEXTS, CALIBRATION_TEXTS)
    made = make_texts(mixed, checkpoint.tokenizer(), count, SEED + 100, data=paths.data_dir())
    return [row[:MOST_CALIBRATION_TOKENS] for row in made.ids]


def _within(wanted: float, least: int, most: int) -> int:
    return max(least, min(int(wanted), most))
