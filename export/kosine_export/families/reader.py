"""Tensors by their checkpoint names, with their shapes checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kosine.errors import CorruptCheckpoint
from kosine_export.files.weights import Float32, Weights

__all__ = ["Reader", "named"]


class Reader:
    """Reads tensors by their checkpoint names, checks shapes, and remembers what was used."""

    def __init__(
        self, weights: Weights, prefix: str, patch: Callable[[str, Float32], Float32] | None
    ):
        self._weights = weights
        self.shapes = weights.shapes()
        self.prefix = prefix
        self._patch = patch
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        return self.prefix + name in self.shapes

    def read(self, name: str, shape: tuple[int, ...]) -> Float32:
        full = self.prefix + name
        if full not in self.shapes:
            # TensorFlow's names for LayerNorm parameters, in the oldest conversions.
            old = full.removesuffix("LayerNorm.weight") + "LayerNorm.gamma"
            if full.endswith("LayerNorm.bias"):
                old = full.removesuffix("LayerNorm.bias") + "LayerNorm.beta"
            if "LayerNorm." not in full or old not in self.shapes:
                raise CorruptCheckpoint(
                    f"tensor {full} is missing",
                    limit="config.json asks for it",
                    remedy="check that config.json and the weights belong together",
                )
            full = old
        if self.shapes[full] != shape:
            raise CorruptCheckpoint(
                f"tensor {full} has shape {self.shapes[full]}",
                limit=f"config.json asks for {shape}",
                remedy="check that config.json and the weights belong together",
            )
        self.used.add(full)
        tensor = self._weights.read(full)
        return tensor if self._patch is None else self._patch(name, tensor)

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> list[Float32]:
        """(in, out) weight and (out,) bias."""
        weight = np.ascontiguousarray(self.read(f"{name}.weight", (outputs, inputs)).T)
        return [weight, self.read(f"{name}.bias", (outputs,))] if bias else [weight]

    def norm(self, name: str, size: int, *, bias: bool = True) -> list[Float32]:
        parts = ("weight", "bias") if bias else ("weight",)
        return [self.read(f"{name}.{part}", (size,)) for part in parts]


def named(name: str, arrays: Sequence[Float32]) -> Iterator[tuple[str, Float32]]:
    """A weight, and its bias where it has one, under canonical names."""
    for part, array in zip(("weight", "bias"), arrays, strict=False):
        yield f"{name}.{part}", array
