"""Which sentences run together: a pure function of token counts, with no threads and no clock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["split_batches"]

Ints = NDArray[np.intp]


def split_batches(lengths: Sequence[int] | NDArray[np.int32], max_tokens: int) -> list[Ints]:
    """Cut sentences into batches of at most `max_tokens` tokens each, longest first.

    Every index appears exactly once. A sentence longer than the budget gets a batch of its own.
    Longest first, so that the first batch is the largest that will be seen (memory is taken
    once) and sentences of similar length meet.
    """
    sizes = np.asarray(lengths, np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches: list[Ints] = []
    begin, total = 0, 0
    for at, size in enumerate(sizes[order].tolist()):
        if at > begin and total + size > max_tokens:
            batches.append(order[begin:at])
            begin, total = at, 0
        total += size
    if len(order):
        batches.append(order[begin:])
    return batches
