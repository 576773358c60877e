"""What is measured: which models, workloads and modes, and how much of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kosine_bench import places
from kosine_bench.contestant import Checkpoint
from kosine_bench.models import ModelSize, flops_per_text
from kosine_bench.workload import Texts, Workload, make_texts

__all__ = [
    *("GPU_FULL", "GPU_QUICK", "gpu_parts"),
    *("FULL", "MODES", "QUICK", "SCOPES", "Effort", "Part", "WorkFile", "default_parts"),
    "write_work",
]

MODES = ("single", "burst", "bulk", "load")
SCOPES = ("engine", "end-to-end")
SEED = 7
PARITY_TEXTS = 32
LEAST_TOKENS = {"single": 96, "burst": 1_024, "bulk": 2_048}
LEAST_BULK_BURSTS = 2
# Their engines are measured as contestants of their own; and what large models add nothing to.
WRAPPERS = frozenset({"fastembed-float32", "infinity-float32"})
ON_BASE_ONLY = frozenset({"onnxruntime-plain"})


@dataclass(frozen=True, slots=True)
class Part:
    """One workload on one model size, and what of it is measured.

    Attributes:
        omits: Contestants that do not take part.
    """

    workload: Workload
    size: ModelSize
    modes: tuple[str, ...] = MODES
    scopes: tuple[str, ...] = SCOPES
    omits: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run measures. Texts are the most; operations cut them on large models.

    Attributes:
        rounds: Interleaved rounds of everything but load.
        load_rounds: Rounds that measure latency under load too.
        omits: Contestants left out unless they are named.
        seconds: What one contestant spends on one mode in one round and scope, if the texts
            last that long; where a mode is missing, all its texts are measured.
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
    tune_tokens: int = 3_072
    import_rounds: int = 1


FULL = Effort(
    *(3, 1, 64, 12, 2048, 8e11, 1.6e12, 4e12, 4.0),
    seconds={"single": 0.7, "burst": 1.1, "bulk": 1.5},
    tune_tokens=2_048,
)
QUICK = Effort(
    *(2, 1, 24, 6, 512, 1e11, 3e11, 4e11, 0.5),
    # The first compiles for a minute; the others are engines measured here, in wrappers that
    # are slow to start.
    omits=frozenset({"torch-compiled", *WRAPPERS}),
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
    data = places.data_dir()
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


def default_parts(
    pairs: Sequence[tuple[Workload, ModelSize]], modes: Sequence[str] | None
) -> tuple[Part, ...]:
    """What is measured of each pair: `modes` where they were asked for, else what it adds.

    Short workloads of one burst's worth say nothing more in bulk; arrivals under load are
    measured once, on the workload that mixes lengths most; texts that fill the model leave
    nothing to sort; on a large model tokenising costs nothing beside computing.
    """
    parts = []
    for workload, size in pairs:
        if modes is not None:
            parts.append(Part(workload, size, tuple(mode for mode in MODES if mode in modes)))
        elif workload.equal:
            parts.append(Part(workload, size, MODES[:2], SCOPES[1:], WRAPPERS | ON_BASE_ONLY))
        elif size.name == "large":
            parts.append(Part(workload, size, MODES[:3], SCOPES[1:], WRAPPERS | ON_BASE_ONLY))
        elif workload.name == "korsts":
            parts.append(Part(workload, size))
        elif workload.name in ("matching", "faq"):
            parts.append(Part(workload, size, MODES[:2], SCOPES[1:], WRAPPERS))
        else:
            parts.append(Part(workload, size, MODES[:3], SCOPES, WRAPPERS))
    return tuple(parts)


def gpu_parts(
    pairs: Sequence[tuple[Workload, ModelSize]], modes: Sequence[str] | None
) -> tuple[Part, ...]:
    """The same on a GPU, which is fast enough for every mode of every pair but load."""
    parts = []
    for workload, size in pairs:
        loaded = workload.name == "korsts" and size.name == "base"
        asked = modes or (MODES if loaded else MODES[:3])
        parts.append(Part(workload, size, tuple(mode for mode in MODES if mode in asked)))
    return tuple(parts)


def _within(wanted: float, least: int, most: int) -> int:
    return max(least, min(int(wanted), most))
