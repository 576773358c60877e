"""The encoder as nodes: embeddings, then block after block."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, get_args

from kosine.errors import UnsupportedCheckpoint
from kosine.spec import Attention, Block, EncoderSpec, Norm, PoolingMode, unsupported
from kosine_export.graph.emit import Graph

__all__ = ["MASKED", "RUNS", "attention_bias", "embed", "layers", "require_supported"]

# Added to scores that must not count. Finite, and inside float16's range, so that no engine
# makes it -inf; exp(-30000) is 0 in float32 beside any score that a model gives.
MASKED = -30000.0
# What the graphs can say, by the spec's fields.
RUNS: Mapping[str, Container[Any] | str] = {
    "embeddings.positions.rule": ("absolute", "roberta"),
    "embeddings.norm.kind": ("layer_norm",),
    "layers.norm_placement": ("post",),
    "layers.norm.kind": ("layer_norm",),
    "layers.attention.num_key_value_heads": "num_heads",
    "layers.attention.positions": ("none",),
    "layers.attention.window": (None,),
    "layers.attention.bias": (True,),
    "layers.feed_forward.activation": ("gelu",),
    "layers.feed_forward.gated": (False,),
    "layers.feed_forward.bias": (True,),
    "pooling.modes": get_args(PoolingMode),
    "dense.activation": ("identity", "tanh", "relu", "gelu", "sigmoid"),
}


def require_supported(spec: EncoderSpec) -> None:
    """Refuse, by the field's name, what no node here says."""
    found = unsupported(spec, RUNS)
    if found is not None:
        raise UnsupportedCheckpoint(
            f"the ONNX graph cannot be written: {found[0]}",
            limit=found[1],
            remedy="use a checkpoint without it",
        )


def embed(g: Graph, spec: EncoderSpec, words: str, places: str, types: str | None) -> str:
    x = g.op("Add", g.to_float(words), g.to_float(places))
    if types is not None:
        x = g.op("Add", x, g.to_float(types))
    x = g.layer_norm(x, "embeddings.norm", spec.embeddings.norm.eps)
    x = g.to_half(x)
    if spec.embeddings.size != spec.hidden_size:
        x = g.linear(x, "embeddings.project")
    return str(x)


def attention_bias(g: Graph, allowed: str) -> str:
    """float32, 0 where `allowed`, MASKED elsewhere."""
    return str(g.op("Where", allowed, g.number("allowed", 0.0), g.number("masked", MASKED)))


def layers(
    g: Graph, spec: EncoderSpec, x: str, biases: Sequence[str], edges: Sequence[int] = ()
) -> str:
    """(R, S, hidden) in the working precision to (R, S, hidden) float32.

    `biases` has (R, 1, queries, S) for each part that `edges` cut the queries into.
    """
    for number, block in enumerate(spec.layers):
        if number:
            x = g.to_half(x)
        x = _layer(g, block, f"layers.{number}", x, biases, edges)
    return x


def _layer(
    g: Graph, block: Block, at: str, x: str, biases: Sequence[str], edges: Sequence[int]
) -> str:
    context = _attend(g, block.attention, at, x, biases, edges)
    y = g.linear(context, f"{at}.attention.output")
    x = g.to_half(_residual_norm(g, block.norm, x, y, f"{at}.attention.norm"))
    y = g.linear(g.gelu(g.linear(x, f"{at}.ffn.up")), f"{at}.ffn.down")
    return _residual_norm(g, block.norm, x, y, f"{at}.ffn.norm")


def _attend(
    g: Graph, attention: Attention, at: str, x: str, biases: Sequence[str], edges: Sequence[int]
) -> str:
    """(R, S, hidden) to (R, S, heads * head_size)."""
    width, size = attention.width, attention.head_size
    heads = g.ints("heads", [0, 0, attention.num_heads, size])
    merged = g.ints("merged", [0, 0, width])
    thirds = g.ints("thirds", [width] * 3)
    scale = g.number("scale", 1 / math.sqrt(size), half=True)
    qkv = g.linear(x, f"{at}.attention.qkv")
    parts = g.op("Split", qkv, thirds, half=True, outputs=3, axis=-1)
    q, k, v = (g.op("Reshape", part, heads, half=True) for part in parts)
    # Scaled before the product: in float16 the scores then stay small as well.
    q = g.op("Mul", q, scale, half=True)
    q = g.op("Transpose", q, half=True, perm=[0, 2, 1, 3])
    k = g.op("Transpose", k, half=True, perm=[0, 2, 3, 1])
    v = g.op("Transpose", v, half=True, perm=[0, 2, 1, 3])
    contexts = []
    for part, bias in zip(g.cut(q, edges), biases, strict=True):
        scores = g.op("Add", g.to_float(g.op("MatMul", part, k, half=True)), bias)
        shares = g.to_half(g.op("Softmax", scores, axis=-1))
        contexts.append(g.op("MatMul", shares, v, half=True))
    context = g.op("Concat", *contexts, axis=2) if edges else contexts[0]
    context = g.op("Transpose", context, half=True, perm=[0, 2, 1, 3])
    return str(g.op("Reshape", context, merged, half=True))


def _residual_norm(g: Graph, norm: Norm, x: str, y: str, name: str) -> str:
    return g.layer_norm(g.op("Add", g.to_float(x), g.to_float(y)), name, norm.eps)
