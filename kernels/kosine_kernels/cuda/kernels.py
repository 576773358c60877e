"""What is computed between products, in Triton.

Rows of activations are float16 or bfloat16 in memory and float32 in registers; means, variances,
softmax and pooling are float32. A kernel that walks rows takes one program a row, which costs
less than it looks: a row is 0.5 to 4 KB, and rows are read and written once.

Lower-case parameters are addresses and numbers that may change from call to call; upper-case ones
are compiled in. `x` is what one layer hands to the next, `y` what products read. CHAINED kernels
may be started before the kernel in front of them has ended (programmatic dependent launch, from
compute capability 9.0 on), so that small ones follow each other without a gap.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = [
    "activate",
    "add_norm",
    "attention",
    "embed",
    "narrow_product",
    "normalize",
    "pool",
    "rotate",
]


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


@triton.jit
def rotate(
    qkv,
    positions,
    cosines,
    sines,
    query_weight,
    query_bias,
    key_weight,
    key_bias,
    query_eps,
    key_eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    QUERY_NORM: tl.constexpr,
    QUERY_BIAS: tl.constexpr,
    KEY_NORM: tl.constexpr,
    KEY_BIAS: tl.constexpr,
    RMS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Norm each head of q and of k, then turn it by its place in the sentence; in place.

    `positions` are places in the sentence; `cosines` and `sines` have HEAD / 2 columns a place.
    """
    if CHAINED:
        _await_previous()
    HALF: tl.constexpr = HEAD // 2
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    begin = qkv + row * ((HEADS + 2 * KV_HEADS) * HEAD) + head * HEAD
    columns = tl.arange(0, HALF)
    a = tl.load(begin + columns).to(tl.float32)
    b = tl.load(begin + HALF + columns).to(tl.float32)
    if QUERY_NORM:
        if head < HEADS:
            a, b = _normed_halves(a, b, query_weight, query_bias, query_eps, HEAD, QUERY_BIAS, RMS)
    if KEY_NORM:
        if head >= HEADS:
            a, b = _normed_halves(a, b, key_weight, key_bias, key_eps, HEAD, KEY_BIAS, RMS)
    if ROTARY:
        place = tl.load(positions + row) * HALF
        cos = tl.load(cosines + place + columns)
        sin = tl.load(sines + place + columns)
        a, b = a * cos - b * sin, b * cos + a * sin
    tl.store(begin + columns, a.to(qkv.dtype.element_ty))
    tl.store(begin + HALF + columns, b.to(qkv.dtype.element_ty))


@triton.jit
def _normed_halves(
    a, b, weight, bias, eps, HEAD: tl.constexpr, BIAS: tl.constexpr, RMS: tl.constexpr
):
    HALF: tl.constexpr = HEAD // 2
    columns = tl.arange(0, HALF)
    if not RMS:
        mean = (tl.sum(a, 0) + tl.sum(b, 0)) / HEAD
        a, b = a - mean, b - mean
    scale = 1 / tl.sqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / HEAD + eps)
    a = a * scale * tl.load(weight + columns)
    b = b * scale * tl.load(weight + HALF + columns)
    if BIAS:
        a += tl.load(bias + columns)
        b += tl.load(bias + HALF + columns)
    return a, b


@triton.jit
def attention(
    qkv,
    starts,
    tile_sentence,
    tile_begin,
    distances,
    buckets,
    out,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    REACH: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """out = softmax(scale * q kT) v inside each sentence; one program a head and tile of ROWS.

    Args:
        starts: (B + 1,) int32 offsets of sentences.
        tile_sentence: (tiles,) int32 sentence of each tile, -1 where there is none.
        tile_begin: (tiles,) int32 first row of each tile.
        scale: Of scores, times log2(e).
        distances, buckets: With REACH: float32 (., HEADS) that is added to scores, times log2(e),
            and int32 (2 * REACH + 1,) its row by distance.
        WINDOW: The farthest keys, to both sides; 0 sees all.
    """
    if CHAINED:
        _await_previous()
    tile = tl.program_id(0)
    head = tl.program_id(1)
    sentence = tl.load(tile_sentence + tile)
    if sentence < 0:
        return
    begin = tl.load(starts + sentence)
    end = tl.load(starts + sentence + 1)
    first = tl.load(tile_begin + tile)
    STRIDE: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD
    columns = tl.arange(0, HEAD)
    rows = first + tl.arange(0, ROWS)
    inside = (rows < end)[:, None]
    places = rows.to(tl.int64)
    q = tl.load(qkv + places[:, None] * STRIDE + head * HEAD + columns[None, :], inside, other=0.0)
    shared = HEADS + head // (HEADS // KV_HEADS)
    k_begin = qkv + shared * HEAD + columns[:, None]
    v_begin = qkv + (shared + KV_HEADS) * HEAD + columns[None, :]

    low, high = begin, end
    if WINDOW > 0:
        low = tl.maximum(begin, first - WINDOW)
        high = tl.minimum(end, first + ROWS + WINDOW)
    if CAUSAL:
        high = tl.minimum(high, first + ROWS)
    whole = low
    if WINDOW == 0 and not CAUSAL:
        whole = low + (high - low) // KEYS * KEYS
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, HEAD], tl.float32)
    # Blocks of keys that every row sees need no mask.
    for at in range(low, whole, KEYS):
        keys = at + tl.arange(0, KEYS)
        offsets = keys.to(tl.int64) * STRIDE
        scores = tl.dot(q, tl.load(k_begin + offsets[None, :]))
        if REACH > 0:
            far = keys[None, :] - rows[:, None]
            near = tl.minimum(tl.maximum(far, -REACH), REACH) + REACH
            scores = scores * scale + tl.load(distances + tl.load(buckets + near) * HEADS + head)
            reached = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - reached[:, None])
        else:
            reached = tl.maximum(largest, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - reached[:, None])
        fading = tl.exp2(largest - reached)
        total = total * fading + tl.sum(weights, 1)
        v = tl.load(v_begin + offsets[:, None])
        mixed = tl.dot(weights.to(v.dtype), v, mixed * fading[:, None])
        largest = reached
    for at in range(whole, high, KEYS):
        keys = at + tl.arange(0, KEYS)
        there = keys < high
        offsets = keys.to(tl.int64) * STRIDE
        k = tl.load(k_begin + offsets[None, :], there[None, :], other=0.0)
        scores = tl.dot(q, k) * scale
        seen = there[None, :]
        far = keys[None, :] - rows[:, None]
        if REACH > 0:
            near = tl.minimum(tl.maximum(far, -REACH), REACH) + REACH
            scores += tl.load(distances + tl.load(buckets + near) * HEADS + head)
        if WINDOW > 0:
            seen = seen & (far <= WINDOW) & (far >= -WINDOW)
        if CAUSAL:
            seen = seen & (far <= 0)
        scores = tl.where(seen, scores, float("-inf"))
        reached = tl.maximum(largest, tl.max(scores, 1))
        # A row that has seen no key yet has no largest score: 0 keeps NaN out.
        safe = tl.where(reached == float("-inf"), 0.0, reached)
        weights = tl.exp2(scores - safe[:, None])
        fading = tl.exp2(largest - safe)
        total = total * fading + tl.sum(weights, 1)
        v = tl.load(v_begin + offsets[:, None], there[:, None], other=0.0)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * fading[:, None])
        largest = reached
    # Rows behind the sentence may see no key at all.
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out + places[:, None] * (HEADS * HEAD) + head * HEAD + columns[None, :],
        mixed.to(out.dtype.element_ty),
        inside,
    )


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
