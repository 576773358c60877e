"""Packed rows: the rectangle that a `Packed` batch becomes for graphs that want one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kosine.backends.rows.plan import RowPlan
from kosine.packed import Int32, Packed

__all__ = ["Rows", "fill_rows"]

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The inputs of `packed.onnx` for n sentences in R rows of S tokens, K sentences at most a row.

    Attributes:
        input_ids: (R, S) int64; filler places hold the pad id.
        position_ids: (R, S) int64 rows of the position table, counted anew in each sentence.
        segment_ids: (R, S) int64; sentence k of a row is k + 1, filler is 0. Attention stays
            inside equal ids, so filler attends to filler and no softmax row is empty.
        places: (R, S) int64; 0, 1, 2, ... in each sentence.
        pool_ids: (R, S) int64; as `segment_ids`, but 0 on tokens that pooling leaves out.
        slots: (K,) int64, 1 to K: what `pool_ids` is compared with.
        sentence_index: (n,) int64, where sentence i is among the R * K slots.
        token_index: (n,) int64, where sentence i's cls token is among the R * S tokens.
        last_index: (n,) int64, where sentence i's last token is among them.
    """

    input_ids: Int64
    position_ids: Int64
    segment_ids: Int64
    places: Int64
    pool_ids: Int64
    slots: Int64
    sentence_index: Int64
    token_index: Int64
    last_index: Int64


def fill_rows(batch: Packed, positions: Int32, plan: RowPlan, pad_id: int) -> Rows:
    """Write the sentences of `plan` into rows.

    Args:
        batch: The batch that `plan.indices` refers to.
        positions: (T,) int32 position rows of the whole batch.
        plan: Where each sentence goes.
        pad_id: What filler places hold.
    """
    lengths = batch.lengths[plan.indices].astype(np.int64)
    begins = batch.starts[plan.indices].astype(np.int64)
    ends = np.cumsum(lengths)
    within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    source = within + np.repeat(begins, lengths)
    first = plan.row.astype(np.int64) * plan.width + plan.offset
    target = within + np.repeat(first, lengths)

    shape = (plan.num_rows, plan.width)
    input_ids = np.full(plan.num_tokens, pad_id, np.int64)
    position_ids = np.zeros(plan.num_tokens, np.int64)
    segment_ids = np.zeros(plan.num_tokens, np.int64)
    input_ids[target] = batch.ids[source]
    position_ids[target] = positions[source]
    places = np.zeros(plan.num_tokens, np.int64)
    places[target] = within
    segments = np.repeat(plan.slot.astype(np.int64) + 1, lengths)
    segment_ids[target] = segments
    pool_ids, token_index = segment_ids, first
    if batch.skip is not None:
        skip = batch.skip[plan.indices].astype(np.int64)
        pool_ids = np.zeros(plan.num_tokens, np.int64)
        pool_ids[target] = np.where(within < np.repeat(skip, lengths), 0, segments)
        token_index = first + np.where(skip < lengths, skip, 0)
    num_slots = plan.num_slots
    return Rows(
        input_ids.reshape(shape),
        position_ids.reshape(shape),
        segment_ids.reshape(shape),
        places.reshape(shape),
        pool_ids.reshape(shape),
        np.arange(1, num_slots + 1, dtype=np.int64),
        plan.row.astype(np.int64) * num_slots + plan.slot,
        token_index,
        first + lengths - 1,
    )
