"""The encoder as nodes: embeddings, then block after block."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, get_args

from onnx import TensorProto

from kosine.errors import UnsupportedCheckpoint
from kosine.positions import rotary_frequencies
from kosine.spec import (
    Attention,
    Block,
    EncoderSpec,
    FeedForward,
    Norm,
    PoolingMode,
    unsupported,
)
from kosine_export.graph.emit import Graph

__all__ = ["MASKED", "RUNS", "Sight", "embed", "layers", "reads_places", "require_supported"]

# Added to scores that must not count. Finite, and inside float16's range, so that no engine
# makes it -inf; exp(-30000) is 0 in float32 beside any score that a model gives.
MASKED = -30000.0
# What the graphs can say, by the spec's fields.
RUNS: Mapping[str, Container[Any] | str] = {
    "embeddings.positions.rule": ("absolute", "roberta", "none"),
    "embeddings.norm.kind": ("layer_norm",),
    "layers.norm_placement": ("post", "pre"),
    "layers.norm.kind": ("layer_norm",),
    "layers.attention.num_key_value_heads": "num_heads",
    "layers.attention.positions": ("none", "rope"),
    "layers.feed_forward.activation": ("gelu",),
    "final_norm.kind": ("layer_norm",),
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


def embed(g: Graph, spec: EncoderSpec, words: str, rows: str | None, types: str | None) -> str:
    x = g.to_float(words)
    for row in (rows, types):
        if row is not None:
            x = g.op("Add", x, g.to_float(row))
    x = _norm(g, x, "embeddings.norm", spec.embeddings.norm)
    x = g.to_half(x)
    if spec.embeddings.size != spec.hidden_size:
        x = g.linear(x, "embeddings.project")
    return str(x)


def reads_places(spec: EncoderSpec) -> bool:
    """Whether a layer asks where in its sentence a token is."""
    wanted = [block.attention for block in spec.layers]
    return any(a.window is not None or a.positions == "rope" for a in wanted)


class Sight:
    """What the layers know of places: who sees whom, and the turns of rotary positions.

    Args:
        allowed: bool, (R, 1, queries, S) for each part that queries are cut into: pairs of tokens
            of one sentence.
        places: int64 (R, S) or (S,), a token's place in its sentence; None where no layer asks.
        edges: Where the queries are cut.
    """

    def __init__(
        self, g: Graph, allowed: Sequence[str], places: str | None, edges: Sequence[int] = ()
    ) -> None:
        self._g = g
        self._allowed = allowed
        self._places = places or ""  # an empty name is no input
        self.edges = edges
        self._biases: dict[int | None, list[str]] = {}
        self._turns: dict[tuple[float, int], tuple[str, str]] = {}

    def biases(self, window: int | None) -> list[str]:
        """float32 for each part: 0 where a token is seen, MASKED elsewhere."""
        if window not in self._biases:
            allowed = list(self._allowed)
            if window is not None:
                near = self._near(window)
                allowed = [self._g.op("And", *pair) for pair in zip(allowed, near, strict=True)]
            self._biases[window] = [_attention_bias(self._g, part) for part in allowed]
        return self._biases[window]

    def _near(self, window: int) -> list[str]:
        """Whether two places are at most `window` apart, for each part of the queries."""
        g = self._g
        own = g.op("Unsqueeze", self._places, g.ints("axes_1_3", [1, 3]))
        other = g.op("Unsqueeze", self._places, g.ints("axes_1_2", [1, 2]))
        limit = g.ints("window", window)
        return [
            g.op("LessOrEqual", g.op("Abs", g.op("Sub", part, other)), limit)
            for part in g.cut(own, self.edges)
        ]

    def turn(self, theta: float, size: int) -> tuple[str, str]:
        """float32 cosines and sines, (R, S, 1, size / 2)."""
        if (theta, size) not in self._turns:
            g = self._g
            places = g.op("Cast", self._places, to=TensorProto.FLOAT)
            places = g.op("Unsqueeze", places, g.ints("axes_2_3", [2, 3]))
            frequencies = g.floats("frequencies", rotary_frequencies(theta, size))
            angles = g.op("Mul", places, frequencies)
            self._turns[theta, size] = g.op("Cos", angles), g.op("Sin", angles)
        return self._turns[theta, size]


def _attention_bias(g: Graph, allowed: str) -> str:
    return str(g.op("Where", allowed, g.number("allowed", 0.0), g.number("masked", MASKED)))


def layers(g: Graph, spec: EncoderSpec, x: str, sight: Sight) -> str:
    """(R, S, hidden) in the working precision to (R, S, hidden) float32."""
    sight.biases(spec.layers[0].attention.window)  # before the layers, as engines know it
    for number, block in enumerate(spec.layers):
        at = f"layers.{number}"
        if block.norm_placement == "post":
            x = _post_norm_layer(g, block, at, g.to_half(x) if number else x, sight)
        else:
            x = _pre_norm_layer(g, block, at, x if number else g.to_float(x), sight)
    if spec.final_norm is not None:
        x = _norm(g, x, "final.norm", spec.final_norm)
    return x


def _post_norm_layer(g: Graph, block: Block, at: str, x: str, sight: Sight) -> str:
    y = _attend(g, block.attention, at, x, sight)
    x = g.to_half(_residual_norm(g, block.norm, x, y, f"{at}.attention.norm"))
    y = _feed_forward(g, block.feed_forward, at, x)
    return _residual_norm(g, block.norm, x, y, f"{at}.ffn.norm")


def _pre_norm_layer(g: Graph, block: Block, at: str, x: str, sight: Sight) -> str:
    """The residual stays float32 from end to end."""
    y = _norm(g, x, f"{at}.attention.norm", block.norm) if block.attention_norm else x
    x = g.op("Add", x, g.to_float(_attend(g, block.attention, at, g.to_half(y), sight)))
    y = g.to_half(_norm(g, x, f"{at}.ffn.norm", block.norm))
    return str(g.op("Add", x, g.to_float(_feed_forward(g, block.feed_forward, at, y))))


def _feed_forward(g: Graph, forward: FeedForward, at: str, x: str) -> str:
    inner = g.gelu(g.linear(x, f"{at}.ffn.up", bias=forward.bias))
    if forward.gated:
        gate = g.linear(x, f"{at}.ffn.gate", bias=forward.bias)
        inner = g.op("Mul", inner, gate, half=True)
    return g.linear(inner, f"{at}.ffn.down", bias=forward.bias)


def _attend(g: Graph, attention: Attention, at: str, x: str, sight: Sight) -> str:
    """(R, S, hidden) to (R, S, hidden)."""
    width, size = attention.width, attention.head_size
    heads = g.ints("heads", [0, 0, attention.num_heads, size])
    merged = g.ints("merged", [0, 0, width])
    thirds = g.ints("thirds", [width] * 3)
    scale = g.number("scale", 1 / math.sqrt(size), half=True)
    qkv = g.linear(x, f"{at}.attention.qkv", bias=attention.bias)
    parts = g.op("Split", qkv, thirds, half=True, outputs=3, axis=-1)
    q, k, v = (g.op("Reshape", part, heads, half=True) for part in parts)
    if attention.rope_theta is not None:
        q, k = (_turned(g, part, size, sight.turn(attention.rope_theta, size)) for part in (q, k))
    # Scaled before the product: in float16 the scores then stay small as well.
    q = g.op("Mul", q, scale, half=True)
    q = g.op("Transpose", q, half=True, perm=[0, 2, 1, 3])
    k = g.op("Transpose", k, half=True, perm=[0, 2, 3, 1])
    v = g.op("Transpose", v, half=True, perm=[0, 2, 1, 3])
    contexts = []
    biases = sight.biases(attention.window)
    for part, bias in zip(g.cut(q, sight.edges), biases, strict=True):
        scores = g.op("Add", g.to_float(g.op("MatMul", part, k, half=True)), bias)
        shares = g.to_half(g.op("Softmax", scores, axis=-1))
        contexts.append(g.op("MatMul", shares, v, half=True))
    context = g.op("Concat", *contexts, axis=2) if sight.edges else contexts[0]
    context = g.op("Transpose", context, half=True, perm=[0, 2, 1, 3])
    context = g.op("Reshape", context, merged, half=True)
    return g.linear(context, f"{at}.attention.output", bias=attention.bias)


def _turned(g: Graph, x: str, size: int, turn: tuple[str, str]) -> str:
    """(R, S, heads, size) turned by its place, in float32."""
    cos, sin = turn
    halves = g.ints("halves", [size // 2] * 2)
    a, b = g.op("Split", g.to_float(x), halves, outputs=2, axis=-1)
    left = g.op("Sub", g.op("Mul", a, cos), g.op("Mul", b, sin))
    right = g.op("Add", g.op("Mul", b, cos), g.op("Mul", a, sin))
    return g.to_half(g.op("Concat", left, right, axis=-1))


def _norm(g: Graph, x: str, name: str, norm: Norm) -> str:
    return g.layer_norm(x, name, norm.eps, bias=norm.bias)


def _residual_norm(g: Graph, norm: Norm, x: str, y: str, name: str) -> str:
    return _norm(g, g.op("Add", g.to_float(x), g.to_float(y)), name, norm)
