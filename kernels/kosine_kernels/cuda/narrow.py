"""Products of few rows, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from kosine_kernels.cuda.rows import _activated, _await_previous

__all__ = ["narrow_product"]


@triton.jit
def narrow_product(
    x,
    weight,
    bias,
    out,
    tokens,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """out = activation(x @ weight.T + bias) for few rows: what counts is to read weights at once.

    With PARTS above 1 each program takes a part of INNER, and `out` is float32, (PARTS, tokens,
    COLUMNS), without bias and activation: `add_norm` sums it.
    """
    if CHAINED:
        _await_previous()
    block = tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    depth = part * (INNER // PARTS) + tl.arange(0, DEPTH)
    inside = (rows < tokens)[:, None]
    known = (columns < COLUMNS)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    x_at = x + rows[:, None] * INNER + depth[None, :]
    weight_at = weight + columns[None, :] * INNER + depth[:, None]
    for _ in range(0, INNER // PARTS, DEPTH):
        total = tl.dot(
            tl.load(x_at, inside, other=0.0), tl.load(weight_at, known, other=0.0), total
        )
        x_at += DEPTH
        weight_at += DEPTH
    if PARTS == 1:
        if BIAS:
            total += tl.load(bias + columns, columns < COLUMNS, other=0.0).to(tl.float32)[None, :]
        total = _activated(total, ACTIVATION)
    tl.store(
        out + (part * tokens + rows)[:, None] * COLUMNS + columns[None, :],
        total.to(out.dtype.element_ty),
        inside & known,
    )
