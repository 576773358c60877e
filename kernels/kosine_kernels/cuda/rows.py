"""What is computed row by row of activations, in Triton.

Rows are float16 or bfloat16 in memory and float32 in registers, means and variances too. A kernel
takes one program a row, which costs less than it looks: a row is 0.5 to 4 KB, and rows are read
and written once.

Here and in the modules beside this one: lower-case parameters are addresses and numbers that may
change from call to call; upper-case ones are compiled in. `x` is what one layer hands to the next,
`y` what products read. CHAINED kernels may be started before the kernel in front of them has ended
(programmatic dependent launch, from compute capability 9.0 on), so that small ones follow each
other without a gap.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["activate", "add_norm", "embed"]


@triton.jit
def _await_previous():
    """Wait for the kernel before, whose end this one did not wait for to be started."""
    gdc_wait()
    gdc_launch_dependents()


@triton.jit
def _normed(
    x,
    columns,
    inside,
    weight,
    bias,
    eps,
    WIDTH: tl.constexpr,
    BIAS: tl.constexpr,
    RMS: tl.constexpr,
):
    """LayerNorm or RMSNorm of one row of WIDTH numbers, float32."""
    if not RMS:
        x = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    scale = 1 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
    x = x * scale * tl.load(weight + columns, inside, other=0.0)
    if BIAS:
        x += tl.load(bias + columns, inside, other=0.0)
    return x


@triton.jit
def embed(
    ids,
    positions,
    word,
    position,
    token_type,
    weight,
    bias,
    x,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    POSITION: tl.constexpr,
    TYPE: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RMS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """x[row] = norm(word[ids[row]] + position[positions[row]] + token_type[0])"""
    if CHAINED:
        _await_previous()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    token = tl.load(ids + row).to(tl.int64)
    total = tl.load(word + token * WIDTH + columns, inside, other=0.0).to(tl.float32)
    if POSITION:
        place = tl.load(positions + row).to(tl.int64)
        total += tl.load(position + place * WIDTH + columns, inside, other=0.0).to(tl.float32)
    if TYPE:
        total += tl.load(token_type + columns, inside, other=0.0).to(tl.float32)
    if NORM:
        total = _normed(total, columns, inside, weight, bias, eps, WIDTH, BIAS, RMS)
    tl.store(x + row * WIDTH + columns, total.to(x.dtype.element_ty), inside)


@triton.jit
def add_norm(
    x,
    added,
    weight,
    bias,
    inner_weight,
    inner_bias,
    added_bias,
    y,
    eps,
    inner_eps,
    tokens,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_BIAS: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RMS: tl.constexpr,
    INNER: tl.constexpr,
    INNER_BIAS: tl.constexpr,
    INNER_RMS: tl.constexpr,
    KEEPS_X: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """x += added (normed itself with INNER); y = norm(x). Without KEEPS_X only y is written.

    With PARTS, `added` is float32, (PARTS, tokens, WIDTH), to be summed, and has no bias yet.
    """
    if CHAINED:
        _await_previous()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    total = tl.load(x + row * WIDTH + columns, inside, other=0.0).to(tl.float32)
    if ADD:
        more = tl.load(added + row * WIDTH + columns, inside, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            more += tl.load(added + (part * tokens + row) * WIDTH + columns, inside, other=0.0)
        if PARTS_BIAS:
            more += tl.load(added_bias + columns, inside, other=0.0).to(tl.float32)
        if INNER:
            more = _normed(
                more,
                columns,
                inside,
                inner_weight,
                inner_bias,
                inner_eps,
                WIDTH,
                INNER_BIAS,
                INNER_RMS,
            )
        total += more
        if KEEPS_X:
            total = total.to(x.dtype.element_ty).to(tl.float32)
            tl.store(x + row * WIDTH + columns, total.to(x.dtype.element_ty), inside)
    if NORM:
        total = _normed(total, columns, inside, weight, bias, eps, WIDTH, BIAS, RMS)
    if NORM or not KEEPS_X:
        tl.store(y + row * WIDTH + columns, total.to(y.dtype.element_ty), inside)


@triton.jit
def _gelu(x):
    """x * (1 + erf(x / sqrt 2)) / 2 to 1e-6, by Abramowitz and Stegun 7.1.28.

    1 - erf is a polynomial to the power of -16: half of the instructions of libdevice's erf, on
    which a GPU spends more time than on memory.
    """
    a = tl.abs(x)
    power = 1 + a * (
        0.04986734695
        + a
        * (
            0.02114100615
            + a
            * (0.003277626333 + a * (3.800357508e-05 + a * (4.889063564e-05 + a * 5.382975000e-06)))
        )
    )
    rest = 1 / power
    rest *= rest
    rest *= rest
    rest *= rest
    rest *= rest
    return tl.maximum(x, 0.0) - 0.5 * a * rest


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        return _gelu(x)
    if ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x * tl.sigmoid(2 * inner)  # (1 + tanh(a)) / 2
    if ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    if ACTIVATION == "sigmoid":
        return tl.sigmoid(x)
    if ACTIVATION == "tanh":
        return 2 * tl.sigmoid(2 * x) - 1
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0)
    return x


@triton.jit
def activate(
    inner,
    out,
    residual,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """out = activation(inner), times the second half of inner's columns with a gate.

    `inner` has rows of WIDTH columns, or of 2 * WIDTH with a gate. Without one, `out` may be
    `inner`. With RESIDUAL the row of `residual` is added.
    """
    if CHAINED:
        _await_previous()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    begin = inner + row * (2 * WIDTH if GATED else WIDTH)
    x = _activated(tl.load(begin + columns, inside, other=0.0).to(tl.float32), ACTIVATION)
    if GATED:
        x *= tl.load(begin + WIDTH + columns, inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual + row * WIDTH + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, x.to(out.dtype.element_ty), inside)
