"""Where tokens are: rows of the position table, and the frequencies of rotary positions."""

from __future__ import annotations

import numpy as np

from kosine.packed import Float32, Int32
from kosine.spec import Positions

__all__ = ["position_ids", "rotary_frequencies"]


def position_ids(ids: Int32, starts: Int32, positions: Positions) -> Int32:
    """(T,) int32 position rows of packed ids.

    Args:
        ids: (T,) int32.
        starts: (B + 1,) int32 offsets into `ids`.
        positions: The rule; "none" gives places in the sentence, and "roberta" is that of
            transformers' modeling_roberta.py.
    """
    lengths = np.diff(starts)
    if positions.rule != "roberta":
        return np.arange(len(ids), dtype=np.int32) - np.repeat(starts[:-1], lengths)
    real = ids != positions.pad_id
    count = np.concatenate([[0], np.cumsum(real)])
    within = (count[1:] - np.repeat(count[starts[:-1]], lengths)) * real
    return np.asarray(within + positions.pad_id, np.int32)


def rotary_frequencies(theta: float, head_size: int) -> Float32:
    """(head_size / 2,) float32 angles, in radians, that one place more adds."""
    exponents = np.arange(0, head_size, 2) / head_size
    return np.asarray(1 / theta**exponents, np.float32)
