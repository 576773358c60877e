"""The loop that engines on rectangles share: run each part of a batch, gather the vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import numpy as np

from kosine.backends.rows.plan import Ints
from kosine.bundle.manifest import Manifest
from kosine.packed import Float32, Int32, Packed, Pooled
from kosine.positions import position_ids

__all__ = ["RowLoop"]


class Part(Protocol):
    """Sentences that run together: a `RowPlan` or a `Piece`."""

    @property
    def indices(self) -> Ints: ...


AnyPart = TypeVar("AnyPart", bound=Part)


class RowLoop:
    """What rectangles need of a model, and the loop over the parts of a batch.

    Attributes:
        pad_id: What filler places hold.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.pad_id = manifest.special_ids["pad"]
        self._positions = manifest.spec.embeddings.positions
        self._dim = manifest.dim

    def run(
        self,
        batch: Packed,
        parts: Iterable[AnyPart],
        compute: Callable[[Packed, Int32, AnyPart], tuple[Float32, Float32]],
    ) -> Pooled:
        """Vectors and norms of the whole batch.

        Args:
            batch: At least one sentence.
            parts: Each sentence is in exactly one.
            compute: Of (batch, (T,) positions, part) the (n, dim) vectors and (n,) norms, in the
                order of `part.indices`.
        """
        positions = position_ids(batch.ids, batch.starts, self._positions)
        vectors: Float32 = np.empty((len(batch), self._dim), np.float32)
        norms: Float32 = np.empty(len(batch), np.float32)
        for part in parts:
            vectors[part.indices], norms[part.indices] = compute(batch, positions, part)
        return Pooled(vectors, norms)
