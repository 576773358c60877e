"""What a bundle says of its TensorRT plans: whom each was built for, and for which shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["FLAVOURS", "PlanProfile", "TensorRTPlan"]

# Module name by flavour: the data-centre TensorRT, and TensorRT-RTX for workstation GPUs.
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True, slots=True)
class PlanProfile:
    """One optimisation profile: packed rows of one width, in the order of the plan's profiles.

    Attributes:
        width: Tokens in a row; exactly this many.
        min_rows: Fewest rows, `opt_rows` the number it was tuned for, `max_rows` the most.
        max_slots: Most sentences in one row. The number of slots ranges from 1 to this, and the
            number of sentences from 1 to `max_rows * max_slots`.
    """

    width: int
    min_rows: int
    opt_rows: int
    max_rows: int
    max_slots: int


@dataclass(frozen=True, slots=True)
class TensorRTPlan:
    """One plan file.

    Attributes:
        path: The file, relative to the bundle; its size and sha256 stand among the artifacts.
        flavour: A key of `FLAVOURS`.
        version: Of the library that built it; a plan loads in that version only.
        architectures: GPU compute capabilities that it runs on, for example "8.6".
        profiles: In the plan's own order.
        evidence: What the build log shows of fusion and precision, for readers.
    """

    path: str
    flavour: str
    version: str
    architectures: tuple[str, ...]
    profiles: tuple[PlanProfile, ...]
    evidence: dict[str, Any] = field(default_factory=dict)
