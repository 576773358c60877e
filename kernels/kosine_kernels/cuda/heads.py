"""Rotary positions, norms of heads, and attention inside each sentence, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from kosine_kernels.cuda.rows import _await_previous

__all__ = ["attention", "rotate"]


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
