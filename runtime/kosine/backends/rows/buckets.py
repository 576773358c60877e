"""Few fixed shapes for many batches: what CUDA graphs and TensorRT profiles want.

A batch becomes pieces. Each is packed rows of a profile's width, filled up with filler rows to a
row count out of a short list, with as many slots in a row as the profile has. So a shape
repeats, and what was prepared for it is used again. Pure functions; no GPU is needed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kosine.backends.rows.fill import Rows, fill_rows
from kosine.backends.rows.plan import RowPlan, plan_rows
from kosine.bundle.plans import PlanProfile
from kosine.errors import BackendError
from kosine.packed import Int32, Packed

__all__ = ["Piece", "Shape", "fill_piece", "input_shape", "pieces", "row_counts", "split_rows"]

# A GPU wants large rectangles: to launch one more costs it more than a CPU, in tokens.
COSTS: Final[dict[str, Any]] = {"width_cost": 0.002, "run_cost": 96, "max_tokens": None}


@dataclass(frozen=True, slots=True)
class Shape:
    """What an engine is prepared for, once and then for every piece of this shape.

    Attributes:
        profile: Index of the profile.
        rows: R, filler rows included.
        width: S, tokens in a row.
        slots: K, most sentences in a row.
        sentences: Vectors computed; those after the piece's own are of no use.
    """

    profile: int
    rows: int
    width: int
    slots: int
    sentences: int


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Sentences that run together, `plan.indices` of the batch, and the shape that takes them."""

    plan: RowPlan
    shape: Shape

    @property
    def indices(self) -> NDArray[np.intp]:
        return self.plan.indices


def row_counts(least: int, most: int) -> list[int]:
    """The row counts that are used: 1, 2, 3, 4, 6, 8, 12, 16, ... between `least` and `most`.

    Both ends are among them. At most a third of the rows is filler.
    """
    counts = {least, most}
    power = 1
    while power <= most:
        counts |= {count for count in (power, 3 * power // 2) if least <= count <= most}
        power *= 2
    return sorted(counts)


def pieces(lengths: Int32, profiles: Sequence[PlanProfile], *, tight: bool = False) -> list[Piece]:
    """Lay a batch out in the shapes that `profiles` allow; each sentence is in one piece.

    Args:
        lengths: (B,) tokens of each sentence.
        profiles: Several may have the same width; the one that fits a piece closest takes it.
        tight: Halve `Shape.sentences` while the piece's sentences still fit: more shapes, and
            fewer useless vectors. Without it there are always `rows * slots`.

    Raises:
        BackendError: A sentence is longer than the widest profile.
    """
    widths = sorted({profile.width for profile in profiles})
    longest = int(lengths.max())
    if longest > widths[-1]:
        raise BackendError(
            f"a text has {longest} tokens",
            limit=f"the widest profile holds {widths[-1]}",
            remedy="truncate texts to the manifest's max_tokens",
        )
    found = []
    for plan in plan_rows(lengths, widths=widths, fixed_widths=True, **COSTS):
        same = [i for i, profile in enumerate(profiles) if profile.width == plan.width]
        roomy = max((profiles[i] for i in same), key=lambda p: p.max_rows * p.max_slots)
        for part in split_rows(plan, roomy.max_rows, roomy.max_slots):
            rows, slots, profile = min(
                (count, profiles[i].max_slots, i)
                for i in same
                if profiles[i].max_slots >= part.num_slots
                for count in row_counts(profiles[i].min_rows, profiles[i].max_rows)
                if count >= part.num_rows
            )
            sentences = rows * slots
            while tight and sentences % 2 == 0 and sentences // 2 >= len(part.indices):
                sentences //= 2
            found.append(Piece(part, Shape(profile, rows, plan.width, slots, sentences)))
    return found


def split_rows(plan: RowPlan, max_rows: int, max_slots: int) -> list[RowPlan]:
    """Cut a plan where it has too many rows, or too many sentences in a row."""
    row, offset, slot = plan.row, plan.offset, plan.slot
    if plan.num_slots > max_slots:
        # A row's sentences in groups of `max_slots`, each group a row of its own.
        group = slot // max_slots
        _, row = np.unique(row * (int(group.max()) + 1) + group, return_inverse=True)
        first = np.full(int(row.max()) + 1, plan.width)
        np.minimum.at(first, row, offset)
        offset, slot = offset - first[row], slot % max_slots
    num_rows = int(row.max()) + 1
    whole = RowPlan(plan.indices, row, offset, slot, num_rows, plan.width)
    return [
        whole.take_rows(begin, min(begin + max_rows, num_rows))
        for begin in range(0, num_rows, max_rows)
    ]


def input_shape(name: str, shape: Shape) -> tuple[int, ...]:
    """The shape of one input of the packed graph, by its name in `Rows`."""
    if name == "slots":
        return (shape.slots,)
    if name in ("sentence_index", "token_index", "last_index"):
        return (shape.sentences,)
    return (shape.rows, shape.width)


def fill_piece(batch: Packed, positions: Int32, piece: Piece, pad_id: int) -> Rows:
    """The inputs of the packed graph in exactly `piece.shape`.

    Filler rows look like the filler at a row's end. The piece's sentences come first among the
    `shape.sentences` vectors, in the order of `piece.plan.indices`.
    """
    plan, shape = piece.plan, piece.shape
    rows = fill_rows(batch, positions, plan, pad_id)
    extra = shape.rows - plan.num_rows

    def grown(values: NDArray[np.int64], filler: int = 0) -> NDArray[np.int64]:
        if not extra:
            return values
        return np.pad(values, ((0, extra), (0, 0)), constant_values=filler)

    spare = (0, shape.sentences - len(plan.indices))
    segment_ids = grown(rows.segment_ids)
    return Rows(
        grown(rows.input_ids, pad_id),
        grown(rows.position_ids),
        segment_ids,
        grown(rows.places),
        segment_ids if rows.pool_ids is rows.segment_ids else grown(rows.pool_ids),
        np.arange(1, shape.slots + 1, dtype=np.int64),
        np.pad(plan.row.astype(np.int64) * shape.slots + plan.slot, spare),
        np.pad(rows.token_index, spare),
        np.pad(rows.last_index, spare),
    )
