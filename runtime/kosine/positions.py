"""Rows of the position table: the only thing besides ids that an encoder is fed."""

from __future__ import annotations

import numpy as np

from kosine.packed import Int32
from kosine.spec import Positions

__all__ = ["position_ids"]


def position_ids(ids: Int32, starts: Int32, positions: Positions) -> Int32:
    """(T,) int32 position rows of packed ids.

    Args:
        ids: (T,) int32.
        starts: (B + 1,) int32 offsets into `ids`.
        positions: The rule; "roberta" is that of transformers' modeling_roberta.py.
    """
    lengths = np.diff(starts)
    if positions.rule == "absolute":
        return np.arange(len(ids), dtype=np.int32) - np.repeat(starts[:-1], lengths)
    real = ids != positions.pad_id
    count = np.concatenate([[0], np.cumsum(real)])
    within = (count[1:] - np.repeat(count[starts[:-1]], lengths)) * real
    return np.asarray(within + positions.pad_id, np.int32)
