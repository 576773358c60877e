"""Which sentences run together: pure functions of token counts, with no threads and no clock.

Two decisions are made here. `split_batches` cuts a long list into batches under a token
budget. `plan_rows` lays one batch out as packed rows for the backends that compute on
rectangles: several sentences share a row of `width` tokens, so that almost none of the
rectangle is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowPlan", "plan_rows", "split_batches"]

Ints = NDArray[np.intp]

# Widths that a row may have where the backend takes any: attention costs grow with the width,
# filling gets easier with it, and between these the difference is not worth a try.
WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# How much is tried per rectangle: planning stays far below the time of a run.
MAX_TRIES = 6
MAX_ROW_COUNTS = 3
SLACK = (0, 1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class RowPlan:
    """R rows of `width` tokens that hold n sentences.

    Attributes:
        indices: (n,) which sentences of the batch, in the order of the three below.
        row: (n,) the row of each sentence.
        offset: (n,) its first token's place in that row.
        slot: (n,) its rank among the sentences of that row, from 0.
        num_rows: R.
        width: Tokens in a row.
    """

    indices: Ints
    row: Ints
    offset: Ints
    slot: Ints
    num_rows: int
    width: int

    @property
    def num_slots(self) -> int:
        """Most sentences in one row."""
        return int(self.slot.max()) + 1

    @property
    def num_tokens(self) -> int:
        """Tokens computed, filler included."""
        return self.num_rows * self.width


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


def plan_rows(
    lengths: Sequence[int] | NDArray[np.int32],
    *,
    widths: Sequence[int] = WIDTHS,
    fixed_widths: bool = False,
    width_cost: float = 0.002,
    run_cost: int = 96,
) -> list[RowPlan]:
    """Lay sentences out as packed rows, in one rectangle or a few.

    The cost of a rectangle of R rows is `R * width * (1 + width_cost * width) + run_cost`
    tokens: linear layers, attention over the whole width, and the price of one more run. The
    cheapest width is taken; sentences of very different length go to rectangles of their own
    where that pays.

    Args:
        lengths: Tokens of each sentence.
        widths: Ascending widths to choose from.
        fixed_widths: Keep to `widths` exactly (engines with profiles or captured graphs), where
            otherwise a rectangle is just wide enough for its tokens to fill it. Only a sentence
            longer than every width still gets its own.
        width_cost: Attention's share of a token's cost, per token of width.
        run_cost: Tokens' worth of overhead in one more run.
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) == 0:
        return []
    order = np.argsort(-sizes, kind="stable")
    if len(sizes) == 1 and not fixed_widths:
        return [_fill(order, sizes, int(sizes[0]), trim=True)]

    def best(chosen: Ints) -> tuple[float, RowPlan]:
        longest = int(sizes[chosen[0]])
        tried = [width for width in widths if width >= longest][:MAX_TRIES] or [longest]
        if not fixed_widths:
            tried = _even_widths(int(sizes[chosen].sum()), longest, tried)
        plans = [_fill(chosen, sizes, width, trim=not fixed_widths) for width in tried]
        costs = [plan.num_tokens * (1 + width_cost * plan.width) + run_cost for plan in plans]
        cheapest = int(np.argmin(costs))
        return costs[cheapest], plans[cheapest]

    cost, plan = best(order)
    plans = [plan]
    for width in sorted((w for w in widths if w < int(sizes[order[0]])), reverse=True):
        # Cut off the sentences that are longer than `width` if two rectangles cost less than one.
        cut = int(np.searchsorted(-sizes[order], -width, side="left"))
        if not 0 < cut < len(order):
            continue
        long_cost, long_plan = best(order[:cut])
        short_cost, short_plan = best(order[cut:])
        if long_cost + short_cost < cost:
            plans[-1:] = [long_plan, short_plan]
            order, cost = order[cut:], short_cost
    return plans


def _even_widths(total: int, longest: int, near: Sequence[int]) -> list[int]:
    """Widths that `total` tokens fill evenly: a few row counts, each with a little slack."""
    counts = sorted({max(1, round(total / width)) for width in (longest, *near)}, reverse=True)
    widths = (
        max(longest, -(-total // count) + slack)
        for count in counts[:MAX_ROW_COUNTS]
        for slack in SLACK
    )
    return list(dict.fromkeys(widths))


def _fill(chosen: Ints, sizes: NDArray[np.int64], width: int, *, trim: bool) -> RowPlan:
    """Best-fit decreasing: each sentence goes to the fullest row that still takes it."""
    rows_by_space: list[list[int]] = [[] for _ in range(width + 1)]
    used: list[int] = []
    count: list[int] = []
    row = np.empty(len(chosen), np.intp)
    offset = np.empty(len(chosen), np.intp)
    slot = np.empty(len(chosen), np.intp)
    for at, size in enumerate(sizes[chosen].tolist()):
        space = size
        while space <= width and not rows_by_space[space]:
            space += 1
        if space <= width:
            r = rows_by_space[space].pop()
        else:
            r, space = len(used), width
            used.append(0)
            count.append(0)
        row[at], offset[at], slot[at] = r, used[r], count[r]
        used[r] += size
        count[r] += 1
        rows_by_space[space - size].append(r)
    full = max(used) if trim else width
    return RowPlan(chosen, row, offset, slot, len(used), full)
