"""The model of base size that `kosine bench` measures, made on first use."""

from __future__ import annotations

from pathlib import Path

from kosine_bench.contestants.contestant import Checkpoint
from kosine_bench.contestants.conversion import convert
from kosine_bench.measuring import models

__all__ = ["base_bundle", "base_checkpoint"]


def base_checkpoint() -> Path:
    """Its checkpoint: random weights, a Korean vocabulary."""
    return models.build(models.SIZES["base"])


def base_bundle() -> Path:
    """Its bundle."""
    folder = base_checkpoint()
    checkpoint = Checkpoint(folder, folder.parent.parent / folder.name)
    return convert("kosine", checkpoint, ()) / "encoder.kosine"
