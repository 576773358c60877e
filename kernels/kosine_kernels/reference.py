"""The encoder in plain numpy: slow, short, and what every faster path is held against.

It follows the definition of the model. Attention and pooling go sentence by sentence; all else
is row by row, so nothing in it can mix neighbours. `dtype` sets the arithmetic: float64 gives a
yardstick well below float32's noise.

Source of the semantics: transformers' `modeling_bert.py` / `modeling_roberta.py` (post-LayerNorm
block, exact-erf GELU) and sentence-transformers' Pooling and Dense modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["activate", "encode", "erf", "gelu", "layer_norm"]

Array = NDArray[Any]
POOLINGS = ("mean", "cls", "max")
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


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Over the last axis, with the biased variance that torch uses."""
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + x.dtype.type(eps)) * weight + bias)


def activate(x: Array, name: str) -> Array:
    """Activation of a Dense module, by its name in `DenseSpec`."""
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
    tensors: Mapping[str, Array],
    ids: NDArray[np.int32],
    starts: NDArray[np.int32],
    skip: NDArray[np.int32] | None,
    positions: NDArray[np.int32],
    *,
    num_layers: int,
    num_heads: int,
    layer_norm_eps: float,
    pooling: str = "mean",
    dense: Sequence[tuple[str, bool]] = (),
    dtype: type[np.floating[Any]] = np.float32,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode packed sentences.

    Args:
        tensors: Canonical names to arrays, linear weights of shape (in, out); token types are
            row 0 of `embeddings.token_type.weight` where that is present.
        ids: (T,) int32.
        starts: (B + 1,) int32 offsets into `ids`.
        skip: (B,) int32 leading tokens that pooling leaves out, or None. Where nothing is left,
            mean and max give zeros and cls falls back to the first token.
        positions: (T,) int32 rows of the position table.
        dense: (activation, use_residual) of each Dense module after pooling.
        dtype: Arithmetic, float32 or float64.

    Returns:
        vectors (B, dim) float32 of unit length and norms (B,) float32 before normalising.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r}; known: {', '.join(POOLINGS)}")
    t = {name: np.asarray(value, dtype) for name, value in tensors.items()}
    bounds = list(pairwise(starts.tolist()))
    x = _embed(t, ids, positions, layer_norm_eps)
    for layer in range(num_layers):
        x = _block(t, f"layers.{layer}", x, bounds, num_heads, layer_norm_eps)
    skips = [0] * len(bounds) if skip is None else skip.tolist()
    pooled = np.stack(
        [_pool(x[a:b], pooling, left) for (a, b), left in zip(bounds, skips, strict=True)]
    )
    for n, (activation, use_residual) in enumerate(dense):
        out = pooled @ t[f"dense.{n}.weight"]
        if f"dense.{n}.bias" in t:
            out = out + t[f"dense.{n}.bias"]
        out = activate(out, activation)
        pooled = out + pooled if use_residual else out
    norms = np.sqrt(np.square(pooled).sum(axis=1))
    vectors = pooled / np.maximum(norms, dtype(NORM_FLOOR))[:, None]
    return vectors.astype(np.float32), norms.astype(np.float32)


def _embed(t: Mapping[str, Array], ids: Array, positions: Array, eps: float) -> Array:
    x = t["embeddings.word.weight"][ids] + t["embeddings.position.weight"][positions]
    if "embeddings.token_type.weight" in t:
        x = x + t["embeddings.token_type.weight"][0]
    x = layer_norm(x, t["embeddings.norm.weight"], t["embeddings.norm.bias"], eps)
    if "embeddings.project.weight" in t:
        x = x @ t["embeddings.project.weight"] + t["embeddings.project.bias"]
    return x


def _block(
    t: Mapping[str, Array],
    at: str,
    x: Array,
    bounds: Sequence[tuple[int, int]],
    num_heads: int,
    eps: float,
) -> Array:
    def linear(name: str, value: Array) -> Array:
        return value @ t[f"{at}.{name}.weight"] + t[f"{at}.{name}.bias"]

    def norm(name: str, value: Array) -> Array:
        return layer_norm(value, t[f"{at}.{name}.weight"], t[f"{at}.{name}.bias"], eps)

    qkv = linear("attention.qkv", x).reshape(len(x), 3, num_heads, -1)
    context = np.concatenate([_attention(qkv[a:b]) for a, b in bounds])
    x = norm("attention.norm", x + linear("attention.output", context))
    return norm("ffn.norm", x + linear("ffn.down", gelu(linear("ffn.up", x))))


def _attention(qkv: Array) -> Array:
    """(L, 3, heads, head_size) of one sentence to (L, hidden)."""
    q, k, v = (qkv[:, j].transpose(1, 0, 2) for j in range(3))
    scores = q @ k.transpose(0, 2, 1) / qkv.dtype.type(math.sqrt(qkv.shape[-1]))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    context = (scores / scores.sum(axis=-1, keepdims=True)) @ v
    return np.asarray(context.transpose(1, 0, 2).reshape(len(qkv), -1))


def _pool(x: Array, pooling: str, skip: int) -> Array:
    if pooling == "cls":
        return np.asarray(x[skip if skip < len(x) else 0])  # the first token that is not prompt
    kept = x[skip:]
    if pooling == "max":
        return np.asarray(kept.max(axis=0)) if len(kept) else np.zeros_like(x[0])
    return np.asarray(kept.sum(axis=0) / max(len(kept), COUNT_FLOOR), x.dtype)
