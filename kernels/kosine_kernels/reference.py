"""The encoder in plain numpy: slow, short, and what every faster path is held against.

It walks the steps of `kosine_kernels.steps`. Attention and pooling go sentence by sentence; all
else is row by row, so nothing in it can mix neighbours. `dtype` sets the arithmetic: float64
gives a yardstick well below float32's noise.

Source of the semantics: transformers' `modeling_bert.py`, `modeling_roberta.py`,
`modeling_mpnet.py`, `modeling_modernbert.py`, `modeling_gte.py`, `modeling_qwen3.py` and
`modeling_gemma3.py`, and sentence-transformers' Pooling and Dense modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine_kernels.activations import INNER, activate
from kosine_kernels.quantized import gelu_of_bytes, multiply, quantize_rows
from kosine_kernels.steps import (
    Attention,
    Dense,
    Embed,
    FeedForward,
    Linear,
    Norm,
    Pool,
    Rotary,
    Step,
)

__all__ = ["encode", "layer_norm"]

Array = NDArray[Any]
COUNT_FLOOR = 1e-9  # sentence-transformers' floor under the token count of a mean
NORM_FLOOR = 1e-12  # torch.nn.functional.normalize's eps


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """Over the last axis, with the biased variance that torch uses."""
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    out = centred / np.sqrt(variance + x.dtype.type(eps)) * weight
    return np.asarray(out if bias is None else out + bias)


def rms_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """LayerNorm around a mean of zero, over the last axis."""
    out = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + x.dtype.type(eps)) * weight
    return np.asarray(out if bias is None else out + bias)


def encode(
    steps: Sequence[Step],
    tensors: Mapping[str, Array],
    ids: NDArray[np.int32],
    starts: NDArray[np.int32],
    skip: NDArray[np.int32] | None,
    positions: NDArray[np.int32],
    *,
    dtype: type[np.floating[Any]] = np.float32,
    quantized: bool = False,
    bytes_only: Collection[str] = (),
    bfloat16_heads: bool = False,
    observe: Callable[[str, Array], object] | None = None,
    states: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode packed sentences.

    Args:
        steps: What to compute, in order; see `kosine_kernels.steps`.
        tensors: Names to arrays, linear weights of shape (in, out). A weight may be int8 and have
            `NAME.scale`, and `NAME.smooth` for its input; see `kosine_kernels.engine.Engine`.
        ids: (T,) int32.
        starts: (B + 1,) int32 offsets into `ids`.
        skip: (B,) int32 leading tokens that pooling leaves out, or None. Where nothing is left,
            cls falls back to the first token and the other poolings give zeros.
        positions: (T,) int32 rows of the position table.
        dtype: Arithmetic, float32 or float64.
        quantized: Round the inputs of int8 weights to bytes, but of those in `bytes_only`: the
            engine's "int8". The others, or all, are rounded to words of 15 bits: its "w8a16".
        bfloat16_heads: Round what attention multiplies to bfloat16, as engines with such products
            do: keys without their bias, where nothing is done to them before, and weights, which
            are divided by the sum of what they were rounded to.
        observe: Called with the name of each linear layer and its input, (rows, in). A gate's
            input is that of `up`, and is not shown again.
        states: (T, hidden) float32, filled with the rows of tokens that pooling reads; None
            where nobody needs them.

    Returns:
        vectors (B, dim) float32 of unit length and norms (B,) float32 before normalising.
    """
    t = {
        name: value if value.dtype == np.int8 else np.asarray(value, dtype)
        for name, value in tensors.items()
    }

    def linear(name: str, x: Array, *, bias: bool = True, reads: str | None = None) -> Array:
        """`reads` names the product whose smoothing vector x is multiplied by; default `name`."""
        bits = 8 if quantized and (reads or name) not in bytes_only else 16
        if observe is not None and reads is None:
            observe(name, x)
        return _linear(t, name, x, t.get(f"{reads or name}.smooth"), bias=bias, bits=bits)

    bounds = list(pairwise(starts.tolist()))
    skips = [0] * len(bounds) if skip is None else skip.tolist()
    x: Array = np.empty((0, 0), dtype)
    y = x
    for step in steps:
        match step:
            case Embed():
                x = t[f"{step.word}.weight"][ids]
                if step.position is not None:
                    x = x + t[f"{step.position}.weight"][positions]
                if step.token_type is not None:
                    x = x + t[f"{step.token_type}.weight"][0]
            case Norm():
                y = _norm(step, t, x)
                x = x if step.keeps_x else y
            case Linear():
                x = y = linear(step.name, y)
            case Attention():
                qkv = linear(step.qkv, y, bias=step.bias)
                qkv = qkv.reshape(len(x), -1, step.head_size)
                context = np.concatenate(
                    [_attention(step, t, qkv[a:b], bfloat16_heads) for a, b in bounds]
                )
                x = x + _norm(step.norm, t, linear(step.output, context, bias=step.bias))
            case FeedForward():
                inner = linear(step.up, y, bias=step.bias)
                rough = step.activation == "gelu" and quantized and step.up not in bytes_only
                inner = gelu_of_bytes(inner) if rough else INNER[step.activation](inner)
                if step.gate is not None:
                    inner = inner * linear(step.gate, y, bias=step.bias, reads=step.up)
                x = x + _norm(step.norm, t, linear(step.down, inner, bias=step.bias))
            case Pool():
                if states is not None:
                    states[:] = x
                sentences = zip(bounds, skips, strict=True)
                x = np.stack(
                    [
                        np.concatenate([_pool(x[a:b], mode, left) for mode in step.modes])
                        for (a, b), left in sentences
                    ]
                )
            case Dense():
                out = activate(linear(step.name, x, bias=step.bias), step.activation)
                x = out + x if step.use_residual else out
    norms = np.sqrt(np.square(x).sum(axis=1))
    vectors = x / np.maximum(norms, dtype(NORM_FLOOR))[:, None]
    return vectors.astype(np.float32), norms.astype(np.float32)


def _linear(
    t: Mapping[str, Array],
    name: str,
    x: Array,
    smooth: Array | None,
    *,
    bias: bool,
    bits: int,
) -> Array:
    """`bits` as in `quantize_rows`, for the input of an int8 weight."""
    weight, offset = t[f"{name}.weight"], t[f"{name}.bias"] if bias else x.dtype.type(0)
    if weight.dtype != np.int8:
        return np.asarray(x @ weight + offset)
    factors = None if smooth is None else smooth.astype(np.float32)
    rows = quantize_rows(x.astype(np.float32), factors, bits=bits)
    scale = t[f"{name}.scale"].astype(np.float32)
    return multiply(rows, weight, scale, np.asarray(offset, np.float32)).astype(x.dtype)


def _norm(step: Norm | None, t: Mapping[str, Array], x: Array) -> Array:
    if step is None:
        return x
    bias = t[f"{step.name}.bias"] if step.bias else None
    return (rms_norm if step.rms else layer_norm)(x, t[f"{step.name}.weight"], bias, step.eps)


def bfloat16(x: Array) -> Array:
    """Rounded to the nearest bfloat16, ties to even; in the dtype of `x`."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(x.dtype)


def _attention(step: Attention, t: Mapping[str, Array], qkv: Array, rounded: bool) -> Array:
    """(L, heads of q, k and v, head_size) of one sentence to (L, heads * head_size)."""
    shared = step.num_key_value_heads or step.num_heads
    parts = [step.num_heads, step.num_heads + shared]
    q, k, v = np.split(qkv, parts, axis=1)
    q, k = _norm(step.query_norm, t, q), _norm(step.key_norm, t, k)
    if step.rotary is not None:
        q, k = _rotated(step.rotary, q), _rotated(step.rotary, k)
    k, v = (np.repeat(part, step.num_heads // shared, axis=1) for part in (k, v))
    q, k, v = (part.transpose(1, 0, 2) for part in (q, k, v))
    if rounded:
        if step.bias and step.rotary is None and step.key_norm is None:
            # All keys have it in common, so it moves no weight.
            bias = np.split(t[f"{step.qkv}.bias"].reshape(-1, 1, qkv.shape[-1]), parts)[1]
            k = k - np.repeat(bias, step.num_heads // shared, axis=0)
        q, k, v = bfloat16(q), bfloat16(k), bfloat16(v)
    scores = q @ k.transpose(0, 2, 1) / qkv.dtype.type(math.sqrt(qkv.shape[-1]))
    places = np.arange(len(qkv))
    distance = places - places[:, None]
    if step.distances is not None:
        buckets = np.array(step.distances.buckets)
        reach = len(buckets) // 2
        bucket = buckets[np.clip(distance, -reach, reach) + reach]
        scores = scores + t[f"{step.distances.name}.weight"][bucket].transpose(2, 0, 1)
    if step.window is not None:
        far = np.abs(distance) > step.window
        scores = np.where(far, qkv.dtype.type(-np.inf), scores)
    if step.causal:
        scores = np.where(distance > 0, qkv.dtype.type(-np.inf), scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    if rounded:
        weights = bfloat16(weights)
    context = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    return np.asarray(context.transpose(1, 0, 2).reshape(len(qkv), -1))


def _rotated(rotary: Rotary, x: Array) -> Array:
    """(L, ..., head_size), each row turned by its place."""
    size = x.shape[-1]
    frequencies = 1 / rotary.theta ** (np.arange(0, size, 2) / size) / rotary.divisor
    frequencies = frequencies.astype(np.float32)
    angles = np.arange(len(x), dtype=np.float32)[:, None] * frequencies
    angles = angles.reshape(len(x), *[1] * (x.ndim - 2), size // 2).astype(np.float64)
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    a, b = x[..., : size // 2], x[..., size // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _pool(x: Array, mode: str, skip: int) -> Array:
    kept = x[skip:]
    if mode == "cls":
        return np.asarray(x[skip if skip < len(x) else 0])  # the first token that is not prompt
    if mode == "max":
        return np.asarray(kept.max(axis=0)) if len(kept) else np.zeros_like(x[0])
    if mode == "mean":
        return np.asarray(kept.sum(axis=0) / max(len(kept), COUNT_FLOOR), x.dtype)
    if mode == "mean_sqrt_len_tokens":
        return np.asarray(kept.sum(axis=0) / math.sqrt(max(len(kept), COUNT_FLOOR)), x.dtype)
    if mode == "weightedmean":
        weights = np.arange(1, len(x) + 1, dtype=x.dtype)[skip:]
        total = (kept * weights[:, None]).sum(axis=0)
        return np.asarray(total / max(weights.sum(), COUNT_FLOOR), x.dtype)
    if mode == "lasttoken":
        return np.asarray(kept[-1]) if len(kept) else np.zeros_like(x[0])
    raise ValueError(
        f"pooling {mode!r}; known: mean, cls, max, mean_sqrt_len_tokens, weightedmean, lasttoken"
    )
