"""Where tokens are: rows of the position table, rotary frequencies, buckets of distances."""

from __future__ import annotations

import numpy as np

from kosine.packed import Float32, Int32
from kosine.spec import Buckets, Positions

__all__ = ["distance_buckets", "position_ids", "rotary_frequencies"]


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


def rotary_frequencies(theta: float, head_size: int, divisor: float = 1.0) -> Float32:
    """(head_size / 2,) float32 angles, in radians, that one place more adds."""
    exponents = np.arange(0, head_size, 2) / head_size
    return np.asarray(1 / theta**exponents / divisor, np.float32)


def distance_buckets(buckets: Buckets) -> Int32:
    """(2 * max_distance + 1,) int32: the bucket of a key at -max_distance .. max_distance.

    Those that are farther away are in the bucket of the end. As in transformers'
    modeling_mpnet.py, with logarithms in float32.
    """
    half, reach = buckets.count // 2, buckets.max_distance
    exact = half // 2
    distances = np.arange(reach + 1)
    logarithms = np.log(np.maximum(distances, exact).astype(np.float32) / np.float32(exact))
    steps = logarithms / np.float32(np.log(reach / exact)) * np.float32(half - exact)
    near = np.where(distances < exact, distances, exact + steps.astype(np.int64))
    near = np.minimum(near, half - 1)
    return np.concatenate([near[:0:-1], near[:1], near[1:] + half]).astype(np.int32)
