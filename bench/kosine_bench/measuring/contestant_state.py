"""A contestant during a run, and what the result file says of it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kosine_bench.contestants.contestant import Contestant

__all__ = ["LEVELS", "ContestantState", "leave_out_repeated"]

# How instruction-set levels are written in tables.
LEVELS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX",
    "amx_int8": "AMX",
}


@dataclass(slots=True)
class ContestantState:
    """One contestant; `reason` says why it is not, or no longer, in the run.

    Attributes:
        isa: The instruction-set level that it computes at, where it tells.
        w8a16_share: By model size what `Contestant.w8a16_share` tells.
        absent_from: Model sizes that it cannot be made for, and why.
    """

    kind: type[Contestant]
    python: Path = Path()
    versions: dict[str, str] = field(default_factory=dict)
    import_seconds: list[float] = field(default_factory=list)
    isa: str | None = None
    w8a16_share: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    absent_from: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The kind's label, with the level that it runs at where that was left to it."""
        if self.isa is None or self.kind.forced:
            return self.kind.label
        return f"{self.kind.label} ({LEVELS.get(self.isa, self.isa)})"

    def describe(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "name": self.kind.name,
            "label": self.label,
            "ours": self.kind.ours,
            "precision": self.kind.precision,
            "device": self.kind.device,
            "isa": self.isa,
            "forced": self.kind.forced,
            "w8a16_share": self.w8a16_share,
            "python": platform.python_version(),
            "versions": self.versions,
            "import_seconds": [round(second, 4) for second in self.import_seconds],
            "absent": self.reason,
            "absent_from": self.absent_from,
        }


def leave_out_repeated(states: Sequence[ContestantState]) -> None:
    """Leave out each forced level that the same engine takes by itself: it is measured there."""
    for state in states:
        if state.reason or state.kind.forced is None or state.isa is None:  # not in this run
            continue
        for other in states:
            same = (other.kind.precision, other.isa) == (state.kind.precision, state.isa)
            if same and other.kind.forced is None and other.reason is None:
                level = LEVELS.get(str(state.isa), str(state.isa))
                state.reason = f"{other.kind.label} runs at {level} here by itself"
                break
