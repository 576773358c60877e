"""Rows of the position table: the only thing besides ids that an encoder is fed."""

from __future__ import annotations

import numpy as np

from kosine.packed import Int32

__all__ = ["position_ids"]


def position_ids(ids: Int32, starts: Int32, rule: str, pad_id: int) -> Int32:
    """(T,) int32 position rows of packed ids.

    Args:
        ids: (T,) int32.
        starts: (B + 1,) int32 offsets into `ids`.
        rule: "absolute" counts 0, 1, 2, ... in each sentence; "roberta" is
            `cumsum(id != pad) * (id != pad) + pad` as in transformers' modeling_roberta.py, so
            the first token is at pad + 1 and a literal [PAD] in a text sits at row `pad`.
        pad_id: The id of [PAD].
    """
    lengths = np.diff(starts)
    if rule == "absolute":
        return np.arange(len(ids), dtype=np.int32) - np.repeat(starts[:-1], lengths)
    real = ids != pad_id
    count = np.concatenate([[0], np.cumsum(real)])
    within = (count[1:] - np.repeat(count[starts[:-1]], lengths)) * real
    return np.asarray(within + pad_id, np.int32)
