"""What is measured: which models, workloads and modes, and how much of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kosine_bench import paths
from kosine_bench.contestants.contestant import Checkpoint, Contestant
from kosine_bench.contestants.kosine import FORCED
from kosine_bench.measuring.models import ModelSize, flops_per_text
from kosine_bench.measuring.workload import Texts, Workload, make_texts

__all__ = [
    *("FULL", "GPU_FULL", "GPU_QUICK", "LOAD_SHARES", "MODES", "QUICK", "SCOPES", "WRAPPERS"),
    *("Effort", "Part", "WorkFile", "write_work"),
]

MODES = ("single", "burst", "bulk", "load")
SCOPES = ("engine", "end-to-end")
LOAD_SHARES = (0.3, 0.5, 0.7, 0.9)
SEED = 7
PARITY_TEXTS = 32
LEAST_TOKENS = {"single": 96, "burst": 1_024, "bulk": 2_048}
LEAST_BULK_BURSTS = 2
# Their engines are measured as contestants of their own.
WRAPPERS = frozenset({"fastembed-float32", "infinity-float32"})


@dataclass(frozen=True, slots=True)
class Part:
    """One workload on one model size, and what of it is measured.

    Attributes:
        omits: Contestants that do not take part.
        rounds: Modes that are measured in fewer rounds than the effort's, and in how many.
        load_shares: Rates of arrivals under load, as shares of the capacity.
        under_load: Contestants that are measured under load; None: all that serve.
    """

    workload: Workload
    size: ModelSize
    modes: tuple[str, ...] = MODES
    scopes: tuple[str, ...] = SCOPES
    omits: frozenset[str] = frozenset()
    rounds: Mapping[str, int] = field(default_factory=dict)
    load_shares: tuple[float, ...] = LOAD_SHARES
    under_load: frozenset[str] | None = None

    def loads(self, kind: type[Contestant]) -> bool:
        """Whether `kind` is measured under load."""
        if "load" not in self.modes:
            return False
        return kind.serves if self.under_load is None else kind.name in self.under_load

    def measures(self, mode: str, number: int) -> bool:
        """Whether round `number`, counted from 0, measures `mode` (other than load)."""
        return mode in self.modes and number < self.rounds.get(mode, number + 1)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run measures. Texts are the most; operations cut them on large models.

    Attributes:
        rounds: Interleaved rounds of everything but load.
        load_rounds: Rounds that measure latency under load too.
        omits: Contestants left out unless they are named.
        seconds: What one contestant spends on one mode in one round and scope, if the texts
            last that long; where a mode is missing, all its texts are measured.
        load_seconds, load_requests, most_load_seconds: How much each rate of arrivals measures;
            see `arrivals.num_requests`.
        tune_tokens: Tokens that a setting is tried on, in whole calls.
        import_rounds: Rounds that time the import in a fresh interpreter.
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
    seconds: Mapping[str, float] = field(default_factory=dict)
    load_requests: int = 100
    most_load_seconds: float = 20.0
    tune_tokens: int = 3_072
    import_rounds: int = 1


FULL = Effort(
    *(3, 1, 64, 12, 2048, 8e11, 1.6e12, 4e12, 4.0),
    seconds={"single": 0.7, "burst": 1.1, "bulk": 1.5},
    tune_tokens=2_048,
)
QUICK = Effort(
    *(2, 1, 24, 6, 512, 1e11, 3e11, 4e11, 0.5),
    # The first compiles for a minute; the others are engines measured here: in wrappers that are
    # slow to start, or held to an older instruction set.
    omits=frozenset({"torch-compiled", *WRAPPERS, *FORCED}),
    seconds={"single": 0.3, "burst": 0.3, "bulk": 0.3},
    tune_tokens=2_048,
    import_rounds=0,
)


GPU_FULL = Effort(
    *(2, 1, 128, 48, 8192, 1e14, 1e14, 2e14, 2.0),
    omits=frozenset({"torch-compiled-float16-cuda"}),  # It compiles for minutes.
    seconds={"single": 0.25, "burst": 0.15, "bulk": 0.25},
    tune_tokens=32_768,
)
GPU_QUICK = Effort(
    *(2, 1, 64, 24, 8192, 1e13, 1e14, 1e14, 0.5),
    omits=GPU_FULL.omits,
    seconds={"single": 0.1, "burst": 0.2, "bulk": 0.3},
    tune_tokens=16_384,
    import_rounds=0,
)


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
            return min(max(math.ceil(tokens), 2), len(self.lengths[mode]))
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


def _within(wanted: float, least: int, most: int) -> int:
    return max(least, min(int(wanted), most))
