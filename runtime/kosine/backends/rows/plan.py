"""One batch as rectangles, for the engines that compute on those: pure functions of token counts.

Several sentences share a row of `width` tokens, or sentences of like length have a row each, so
that almost none of a rectangle is padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowPlan", "plan_rows"]

Ints = NDArray[np.intp]

# Widths that a row may have where the backend takes any: attention costs grow with the width,
# filling gets easier with it, and between these the difference is not worth a try.
WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# How much is tried per rectangle: planning stays far below the time of a run.
MAX_TRIES = 6
MAX_ROW_COUNTS = 3
SLACK = (0, 1, 2)
# Chosen in trials of ONNX Runtime, float32, on one CPU, which no committed benchmark holds: one
# more run reads all the weights again, and in very large rectangles what one layer hands to the
# next no longer stays in the cache.
RUN_COST = 24
RECTANGLE_TOKENS = 1_024
WIDTH_COST = 0.0005


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

    def take_rows(self, begin: int, end: int) -> RowPlan:
        """The rows `begin` to `end` (exclusive) as a plan of their own."""
        own = np.flatnonzero((self.row >= begin) & (self.row < end))
        row = self.row[own] - begin
        return RowPlan(
            self.indices[own], row, self.offset[own], self.slot[own], end - begin, self.width
        )


def plan_rows(
    lengths: Sequence[int] | NDArray[np.int32],
    *,
    widths: Sequence[int] = WIDTHS,
    fixed_widths: bool = False,
    width_cost: float = WIDTH_COST,
    run_cost: int = RUN_COST,
    max_tokens: int | None = RECTANGLE_TOKENS,
) -> list[RowPlan]:
    """Lay sentences out in one rectangle or a few, as cheaply as is found.

    The cost of a rectangle of R rows is `R * width * (1 + width_cost * width) + run_cost`
    tokens: linear layers, attention over the whole width, and the price of one more run. Two
    layouts are compared: packed rows, of the cheapest width, where sentences of very different
    length go to rectangles of their own where that pays; and one sentence per row, cut into
    rectangles of like length where that costs least.

    Args:
        lengths: Tokens of each sentence.
        widths: Ascending widths to choose from.
        fixed_widths: Keep to `widths` exactly (engines with profiles or captured graphs), where
            otherwise a rectangle is just wide enough for its tokens to fill it. Only a sentence
            longer than every width still gets its own.
        width_cost: Attention's share of a token's cost, per token of width.
        run_cost: Tokens' worth of overhead in one more run.
        max_tokens: Rectangles of more tokens are cut between rows; None never cuts. A single row
            is never cut.
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) == 0:
        return []
    order = np.argsort(-sizes, kind="stable")
    if len(sizes) == 1 and not fixed_widths:
        return [_fill(order, sizes, int(sizes[0]), trim=True)]
    price = _Price(width_cost, run_cost, max_tokens)
    cost, plans = _packed(order, sizes, widths, fixed_widths, price)
    if not fixed_widths:
        cuts, cut_cost = _cut_by_length(sizes[order], price)
        if cut_cost < cost:
            edges = [0, *cuts, len(order)]
            plans = [
                _one_per_row(order[begin:end], sizes) for begin, end in itertools.pairwise(edges)
            ]
    return [
        part for plan in plans for part in _cut_rows(plan, sizes, max_tokens, trim=not fixed_widths)
    ]


@dataclass(frozen=True, slots=True)
class _Price:
    """What a rectangle costs, in tokens."""

    width_cost: float
    run_cost: int
    max_tokens: int | None

    def of(self, tokens: Any, width: Any) -> Any:
        """The cost of `tokens` places in rows of `width`; both may be arrays."""
        runs = 1 if self.max_tokens is None else -(-tokens // self.max_tokens)
        return tokens * (1 + self.width_cost * width) + runs * self.run_cost


def _packed(
    order: Ints, sizes: NDArray[np.int64], widths: Sequence[int], fixed: bool, price: _Price
) -> tuple[float, list[RowPlan]]:
    """Packed rows of the sentences `order`, longest first, and what they cost."""

    def best(chosen: Ints) -> tuple[float, RowPlan]:
        longest = int(sizes[chosen[0]])
        tried = [width for width in widths if width >= longest][:MAX_TRIES] or [longest]
        if not fixed:
            tried = _even_widths(int(sizes[chosen].sum()), longest, tried)
        plans = [_fill(chosen, sizes, width, trim=not fixed) for width in tried]
        costs = [float(price.of(plan.num_tokens, plan.width)) for plan in plans]
        cheapest = int(np.argmin(costs))
        return costs[cheapest], plans[cheapest]

    cost, plan = best(order)
    plans, spent = [plan], 0.0
    for width in sorted((w for w in widths if w < int(sizes[order[0]])), reverse=True):
        # Cut off the sentences that are longer than `width` if two rectangles cost less than one.
        cut = int(np.searchsorted(-sizes[order], -width, side="left"))
        if not 0 < cut < len(order):
            continue
        long_cost, long_plan = best(order[:cut])
        short_cost, short_plan = best(order[cut:])
        if long_cost + short_cost < cost:
            plans[-1:] = [long_plan, short_plan]
            order, cost, spent = order[cut:], short_cost, spent + long_cost
    return spent + cost, plans


def _cut_by_length(descending: NDArray[np.int64], price: _Price) -> tuple[list[int], float]:
    """Where to cut `descending` lengths for least cost, with one sentence per row; and the cost.

    Cheapest cuts of ever longer beginnings; only between unequal lengths is a cut worth a thought.
    """
    firsts = np.flatnonzero(np.diff(descending, prepend=-1))
    width = descending[firsts]
    ends = [*firsts[1:].tolist(), len(descending)]
    cheapest = np.zeros(len(firsts) + 1)
    came_from = np.zeros(len(firsts) + 1, np.intp)
    for at, end in enumerate(ends, start=1):
        costs = cheapest[:at] + price.of((end - firsts[:at]) * width[:at], width[:at])
        came_from[at] = np.argmin(costs)
        cheapest[at] = costs[came_from[at]]
    cuts: list[int] = []
    at = int(came_from[len(firsts)])
    while at > 0:
        cuts.append(int(firsts[at]))
        at = int(came_from[at])
    return cuts[::-1], float(cheapest[-1])


def _one_per_row(chosen: Ints, sizes: NDArray[np.int64]) -> RowPlan:
    count = len(chosen)
    zeros = np.zeros(count, np.intp)
    return RowPlan(
        chosen, np.arange(count, dtype=np.intp), zeros, zeros, count, int(sizes[chosen].max())
    )


def _cut_rows(
    plan: RowPlan, sizes: NDArray[np.int64], max_tokens: int | None, *, trim: bool
) -> list[RowPlan]:
    """Cut a rectangle between rows into the fewest of at most `max_tokens`, evenly."""
    if max_tokens is None or plan.num_tokens <= max_tokens:
        return [plan]
    count = -(-plan.num_rows // max(1, max_tokens // plan.width))
    edges = np.linspace(0, plan.num_rows, count + 1).round().astype(int).tolist()
    parts = [plan.take_rows(begin, end) for begin, end in itertools.pairwise(edges)]
    if not trim:
        return parts
    return [replace(part, width=int((part.offset + sizes[part.indices]).max())) for part in parts]


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
