"""Rows of each sentence to one, and to length 1, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from kosine_kernels.cuda.rows import _await_previous

__all__ = ["normalize", "pool"]


@triton.jit
def pool(
    x,
    starts,
    skip,
    pooled,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    OFFSET: tl.constexpr,
    MODE: tl.constexpr,
    ROWS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """pooled[sentence, OFFSET:OFFSET + WIDTH] = the rows of x that are not skipped, as one.

    Float32; one program a sentence and block of columns. Where nothing is left, "cls" falls back
    to the first row and all else gives zeros.
    """
    if CHAINED:
        _await_previous()
    sentence = tl.program_id(0)
    begin = tl.load(starts + sentence)
    end = tl.load(starts + sentence + 1)
    kept = begin + tl.load(skip + sentence)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    if MODE == "cls" or MODE == "lasttoken":
        row = end - 1
        least = kept
        if MODE == "cls":
            row = tl.where(kept < end, kept, begin)
            least = begin
        # A sentence of no tokens, at the end of a shape, or nothing left: no column is read.
        there = columns < tl.where(least < end, WIDTH, 0)
        one = tl.load(x + row.to(tl.int64) * WIDTH + columns, there, other=0.0).to(tl.float32)
    else:
        held = tl.full([ROWS, BLOCK], float("-inf") if MODE == "max" else 0.0, tl.float32)
        for at in range(kept, end, ROWS):
            rows = at + tl.arange(0, ROWS)
            there = (rows < end)[:, None] & inside[None, :]
            part = tl.load(
                x + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :],
                there,
                other=float("-inf") if MODE == "max" else 0.0,
            ).to(tl.float32)
            if MODE == "max":
                held = tl.maximum(held, part)
            elif MODE == "weightedmean":
                held += part * (rows - begin + 1).to(tl.float32)[:, None]
            else:
                held += part
        if MODE == "max":
            one = tl.where(kept < end, tl.max(held, 0), 0.0)
        else:
            one = tl.sum(held, 0)
            count = (end - kept).to(tl.float32)
            if MODE == "weightedmean":
                length = (end - begin).to(tl.float32)
                before = length - count
                count = (length * (length + 1) - before * (before + 1)) / 2
            if MODE == "mean_sqrt_len_tokens":
                count = tl.sqrt(tl.maximum(count, 1e-9))
            one = one / tl.maximum(count, 1e-9)
    tl.store(pooled + sentence.to(tl.int64) * STRIDE + OFFSET + columns, one, inside)


@triton.jit
def normalize(pooled, vectors, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    """vectors[sentence] = the row of pooled at length 1, and behind it its length; all float32."""
    if CHAINED:
        _await_previous()
    sentence = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    row = tl.load(pooled + sentence * WIDTH + columns, inside, other=0.0)
    norm = tl.sqrt(tl.sum(row * row, 0))
    begin = vectors + sentence * (WIDTH + 1)
    tl.store(begin + columns, row / tl.maximum(norm, 1e-12), inside)
    tl.store(begin + WIDTH, norm)
