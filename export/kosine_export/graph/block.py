"""The encoder as nodes: embeddings, then block after block."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kosine_export.graph.emit import Graph
from kosine_export.spec import EncoderSpec

__all__ = ["MASKED", "attention_bias", "embed", "layers"]

# Added to scores that must not count. Finite, and inside float16's range, so that no engine
# makes it -inf; exp(-30000) is 0 in float32 beside any score that a model gives.
MASKED = -30000.0


def embed(g: Graph, spec: EncoderSpec, words: str, places: str, types: str | None) -> str:
    x = g.op("Add", g.to_float(words), g.to_float(places))
    if types is not None:
        x = g.op("Add", x, g.to_float(types))
    x = g.layer_norm(x, "embeddings.norm", spec.layer_norm_eps)
    x = g.to_half(x)
    if spec.embedding_size != spec.hidden_size:
        x = g.linear(x, "embeddings.project")
    return str(x)


def attention_bias(g: Graph, allowed: str) -> str:
    """float32, 0 where `allowed`, MASKED elsewhere."""
    return str(g.op("Where", allowed, g.number("allowed", 0.0), g.number("masked", MASKED)))


def layers(
    g: Graph, spec: EncoderSpec, x: str, biases: Sequence[str], edges: Sequence[int] = ()
) -> str:
    """(R, S, hidden) in the working precision to (R, S, hidden) float32.

    `biases` has (R, 1, queries, S) for each block that `edges` cut the queries into.
    """
    heads = g.ints("heads", [0, 0, spec.num_heads, spec.head_size])
    merged = g.ints("merged", [0, 0, spec.hidden_size])
    thirds = g.ints("thirds", [spec.hidden_size] * 3)
    scale = g.number("scale", 1 / math.sqrt(spec.head_size), half=True)
    for layer in range(spec.num_layers):
        at = f"layers.{layer}"
        qkv = g.linear(x, f"{at}.attention.qkv")
        parts = g.op("Split", qkv, thirds, half=True, outputs=3, axis=-1)
        q, k, v = (g.op("Reshape", part, heads, half=True) for part in parts)
        # Scaled before the product: in float16 the scores then stay small as well.
        q = g.op("Mul", q, scale, half=True)
        q = g.op("Transpose", q, half=True, perm=[0, 2, 1, 3])
        k = g.op("Transpose", k, half=True, perm=[0, 2, 3, 1])
        v = g.op("Transpose", v, half=True, perm=[0, 2, 1, 3])
        contexts = []
        for block, bias in zip(g.cut(q, edges), biases, strict=True):
            scores = g.op("Add", g.to_float(g.op("MatMul", block, k, half=True)), bias)
            shares = g.to_half(g.op("Softmax", scores, axis=-1))
            contexts.append(g.op("MatMul", shares, v, half=True))
        context = g.op("Concat", *contexts, axis=2) if edges else contexts[0]
        context = g.op("Transpose", context, half=True, perm=[0, 2, 1, 3])
        context = g.op("Reshape", context, merged, half=True)
        y = g.linear(context, f"{at}.attention.output")
        x = _residual_norm(g, spec, x, y, f"{at}.attention.norm")
        x = g.to_half(x)
        y = g.linear(g.gelu(g.linear(x, f"{at}.ffn.up")), f"{at}.ffn.down")
        x = _residual_norm(g, spec, x, y, f"{at}.ffn.norm")
        if layer < spec.num_layers - 1:
            x = g.to_half(x)
    return x


def _residual_norm(g: Graph, spec: EncoderSpec, x: str, y: str, name: str) -> str:
    return g.layer_norm(g.op("Add", g.to_float(x), g.to_float(y)), name, spec.layer_norm_eps)
