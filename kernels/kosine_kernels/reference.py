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

from kosine_kernels.quantized import multiply, quantize_rows
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

__all__ = ["activate", "encode", "erf", "gelu", "layer_norm"]

Array = NDArray[Any]
COUNT_FLOOR = 1e-9  # sentence-transformers' floor under the token count of a mean
NORM_FLOOR = 1e-12  # torch.nn.functional.normalize's eps


def erf(x: Array) -> Array:
    """Error function, elementwise, to 1e-15: Taylor's series about the nearest of a grid of
    points that `math.erf` gave. The n-th derivative is Hermite's polynomial H(n - 1) times
    (-1) ** (n - 1) * 2 / sqrt(pi) * exp(-x * x).
    """
    wide = np.clip(np.asarray(x, np.float64), -GRID_END, GRID_END)
    # A NaN takes any point of the grid: its offset is NaN, and so is what comes out.
    nearest = np.rint(np.nan_to_num(wide) * GRID_STEPS).astype(np.intp)
    offset = wide - nearest / GRID_STEPS
    total = np.zeros_like(wide)
    for coefficient in reversed(_ERF_SERIES):
        total = total * offset + coefficient[nearest + GRID_END * GRID_STEPS]
    return np.asarray(total, x.dtype)


def _erf_series() -> list[NDArray[np.float64]]:
    points = np.arange(-GRID_END * GRID_STEPS, GRID_END * GRID_STEPS + 1) / GRID_STEPS
    series = [np.array([math.erf(point) for point in points])]
    slope = 2 / math.sqrt(math.pi) * np.exp(-np.square(points))
    before, hermite = np.zeros_like(points), np.ones_like(points)
    for order in range(1, ERF_TERMS + 1):
        series.append((-1) ** (order - 1) * hermite * slope / math.factorial(order))
        before, hermite = hermite, 2 * points * hermite - 2 * (order - 1) * before
    return series


GRID_END = 7  # erf is 1 to float64 precision beyond 6
GRID_STEPS = 32
ERF_TERMS = 8
_ERF_SERIES = _erf_series()


def gelu(x: Array) -> Array:
    """`x * (1 + erf(x / sqrt 2)) / 2`: the exact form, not the tanh approximation."""
    half = x.dtype.type(0.5)
    return np.asarray(half * x * (1 + erf(x / x.dtype.type(math.sqrt(2.0)))))


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


def gelu_tanh(x: Array) -> Array:
    """GELU's approximation by tanh."""
    half, root = x.dtype.type(0.5), x.dtype.type(math.sqrt(2 / math.pi))
    return np.asarray(half * x * (1 + np.tanh(root * (x + x.dtype.type(0.044715) * x**3))))


def silu(x: Array) -> Array:
    """`x / (1 + exp(-x))`, without an exponential that overflows."""
    small = np.exp(-np.abs(x))
    return np.asarray(x * np.where(x < 0, small, 1) / (1 + small))


INNER: Mapping[str, Callable[[Array], Array]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


def activate(x: Array, name: str) -> Array:
    """Activation of a Dense module, by its name in `steps.Dense`."""
    if name == "identity":
        return x
    if name == "tanh":
        return np.asarray(np.tanh(x))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-x)))
    if name == "gelu":
        return gelu(x)
    raise ValueError(f"activation {name!r}; known: identity, tanh, relu, sigmoid, gelu")


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
        quantized: Round the inputs of int8 weights to bytes too, but of those in `bytes_only`:
            the engine's "int8". Else it is its "w8a16".
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
        as_bytes = quantized and (reads or name) not in bytes_only
        if observe is not None and reads is None:
            observe(name, x)
        return _linear(t, name, x, t.get(f"{reads or name}.smooth"), bias=bias, quantized=as_bytes)

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
                context = np.concatenate([_attention(step, t, qkv[a:b]) for a, b in bounds])
                x = x + _norm(step.norm, t, linear(step.output, context, bias=step.bias))
            case FeedForward():
                inner = INNER[step.activation](linear(step.up, y, bias=step.bias))
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
    quantized: bool,
) -> Array:
    weight, offset = t[f"{name}.weight"], t[f"{name}.bias"] if bias else x.dtype.type(0)
    if weight.dtype != np.int8:
        return np.asarray(x @ weight + offset)
    scale = t[f"{name}.scale"]
    if quantized:
        factors = None if smooth is None else smooth.astype(np.float32)
        rows = quantize_rows(x.astype(np.float32), factors)
        out = multiply(rows, weight, scale.astype(np.float32), np.asarray(offset, np.float32))
        return out.astype(x.dtype)
    return np.asarray((x if smooth is None else x * smooth) @ (weight * scale) + offset)


def _norm(step: Norm | None, t: Mapping[str, Array], x: Array) -> Array:
    if step is None:
        return x
    bias = t[f"{step.name}.bias"] if step.bias else None
    return (rms_norm if step.rms else layer_norm)(x, t[f"{step.name}.weight"], bias, step.eps)


def _attention(step: Attention, t: Mapping[str, Array], qkv: Array) -> Array:
    """(L, heads of q, k and v, head_size) of one sentence to (L, heads * head_size)."""
    shared = step.num_key_value_heads or step.num_heads
    q, k, v = np.split(qkv, [step.num_heads, step.num_heads + shared], axis=1)
    q, k = _norm(step.query_norm, t, q), _norm(step.key_norm, t, k)
    if step.rotary is not None:
        q, k = _rotated(step.rotary, q), _rotated(step.rotary, k)
    k, v = (np.repeat(part, step.num_heads // shared, axis=1) for part in (k, v))
    q, k, v = (part.transpose(1, 0, 2) for part in (q, k, v))
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
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    context = (scores / scores.sum(axis=-1, keepdims=True)) @ v
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
