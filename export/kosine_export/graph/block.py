"""The encoder as nodes: embeddings, then block after block."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, get_args

from onnx import TensorProto

from kosine.errors import UnsupportedCheckpoint
from kosine.positions import distance_buckets, rotary_frequencies
from kosine.spec import (
    Attention,
    Block,
    Buckets,
    EncoderSpec,
    FeedForward,
    Norm,
    PoolingMode,
)
from kosine.spec_fields import unsupported
from kosine_export.graph.emit import Graph

__all__ = ["MASKED", "RUNS", "Sight", "embed", "layers", "reads_places", "require_supported"]

# Added to scores that must not count. Finite, and inside float16's range, so that no engine
# makes it -inf; exp(-30000) is 0 in float32 beside any score that a model gives.
MASKED = -30000.0
NORMS = ("layer_norm", "rms_norm")
# What the graphs can say, by the spec's fields.
RUNS: Mapping[str, Container[Any] | str] = {
    "embeddings.positions.rule": ("absolute", "roberta", "none"),
    "embeddings.norm.kind": NORMS,
    "layers.norm_placement": ("post", "pre", "sandwich"),
    "layers.norm.kind": NORMS,
    "layers.attention.query_key_norm.kind": NORMS,
    "layers.attention.positions": ("none", "rope", "buckets"),
    "layers.feed_forward.activation": ("gelu", "gelu_tanh", "silu"),
    "final_norm.kind": NORMS,
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
    if spec.embeddings.norm is not None:
        x = _norm(g, x, "embeddings.norm", spec.embeddings.norm)
    x = g.to_half(x)
    if spec.embeddings.size != spec.hidden_size:
        x = g.linear(x, "embeddings.project")
    return str(x)


def reads_places(spec: EncoderSpec) -> bool:
    """Whether a layer asks where in its sentence a token is."""
    wanted = [block.attention for block in spec.layers]
    return any(a.window is not None or a.positions != "none" or a.causal for a in wanted)


class Sight:
    """What the layers know of places: who sees whom, and the turns of rotary positions.

    Args:
        allowed: bool, (R, 1, queries, S) for each part that queries are cut into: pairs of tokens
            of one sentence.
        places: int64 (R, S), a token's place in its sentence; None where no layer asks.
        edges: Where the queries are cut.
        columns: int64 (1, S), where each row is one sentence: distances are the same, and fewer.
    """

    def __init__(
        self,
        g: Graph,
        allowed: Sequence[str],
        places: str | None,
        edges: Sequence[int] = (),
        columns: str | None = None,
    ) -> None:
        self._g = g
        self._allowed = allowed
        self._places = places or ""  # an empty name is no input
        self._columns = columns or self._places
        self.edges = edges
        self._biases: dict[tuple[int | None, bool, Buckets | None], list[str]] = {}
        self._turns: dict[tuple[float, float, int], tuple[str, str]] = {}

    def biases(self, attention: Attention) -> list[str]:
        """float32 (R, 1 or heads, queries, S) for each part: 0, or what a head adds for the
        distance, where a token is seen, and MASKED elsewhere.
        """
        window, causal, buckets = asked = attention.window, attention.causal, attention.buckets
        if asked not in self._biases:
            allowed = list(self._allowed)
            limits = [] if window is None else [self._near(window)]
            limits += [self._before()] if causal else []
            for limit in limits:
                allowed = [self._g.op("And", *pair) for pair in zip(allowed, limit, strict=True)]
            found = [_attention_bias(self._g, part) for part in allowed]
            if buckets is not None:
                added = self._by_distance(buckets)
                found = [self._g.op("Add", *pair) for pair in zip(found, added, strict=True)]
            self._biases[asked] = found
        return self._biases[asked]

    def _distances(self) -> list[str]:
        """int64 (R, 1, queries, S), how far behind a query a key is, for each part."""
        g = self._g
        own = g.op("Unsqueeze", self._columns, g.ints("axes_1_3", [1, 3]))
        other = g.op("Unsqueeze", self._columns, g.ints("axes_1_2", [1, 2]))
        return [g.op("Sub", other, part) for part in g.cut(own, self.edges)]

    def _near(self, window: int) -> list[str]:
        """Whether two places are at most `window` apart."""
        g, limit = self._g, self._g.ints("window", window)
        return [g.op("LessOrEqual", g.op("Abs", each), limit) for each in self._distances()]

    def _before(self) -> list[str]:
        """Whether a key is at the query's place or before it."""
        g = self._g
        return [g.op("LessOrEqual", each, g.ints("zero", 0)) for each in self._distances()]

    def _by_distance(self, buckets: Buckets) -> list[str]:
        """float32 (R, heads, queries, S): what each head adds."""
        g, reach = self._g, buckets.max_distance
        ends = g.ints("farthest_before", -reach), g.ints("farthest_behind", reach)
        known = g.ints("buckets", distance_buckets(buckets).tolist())
        table = g.op("Gather", g.weight("attention.buckets.weight"), known, half=True)
        table = g.op("Transpose", g.to_float(table), perm=[1, 0])  # (heads, 2 reach + 1)
        added = []
        for distances in self._distances():
            places = g.op("Add", g.op("Clip", distances, *ends), g.ints("reach", reach))
            # (heads, R, 1, queries, S) to (R, heads, queries, S)
            each = g.op("Squeeze", g.op("Gather", table, places, axis=1), g.ints("axes_2", [2]))
            added.append(g.op("Transpose", each, perm=[1, 0, 2, 3]))
        return added

    def turn(self, theta: float, divisor: float, size: int) -> tuple[str, str]:
        """float32 cosines and sines, (R, S, 1, size / 2)."""
        asked = theta, divisor, size
        if asked not in self._turns:
            g = self._g
            places = g.op("Cast", self._places, to=TensorProto.FLOAT)
            places = g.op("Unsqueeze", places, g.ints("axes_2_3", [2, 3]))
            frequencies = g.floats("frequencies", rotary_frequencies(theta, size, divisor))
            angles = g.op("Mul", places, frequencies)
            self._turns[asked] = g.op("Cos", angles), g.op("Sin", angles)
        return self._turns[asked]


def _attention_bias(g: Graph, allowed: str) -> str:
    return str(g.op("Where", allowed, g.number("allowed", 0.0), g.number("masked", MASKED)))


def layers(g: Graph, spec: EncoderSpec, x: str, sight: Sight) -> str:
    """(R, S, hidden) in the working precision to (R, S, hidden) float32."""
    sight.biases(spec.layers[0].attention)  # before the layers, as engines know it
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
    sandwich = block.norm_placement == "sandwich"
    y = _norm(g, x, f"{at}.attention.norm", block.norm) if block.attention_norm else x
    y = g.to_float(_attend(g, block.attention, at, g.to_half(y), sight))
    if sandwich:
        y = _norm(g, y, f"{at}.attention.output.norm", block.norm)
    x = g.op("Add", x, y)
    y = g.to_half(_norm(g, x, f"{at}.ffn.norm", block.norm))
    y = g.to_float(_feed_forward(g, block.feed_forward, at, y))
    if sandwich:
        y = _norm(g, y, f"{at}.ffn.down.norm", block.norm)
    return str(g.op("Add", x, y))


def _feed_forward(g: Graph, forward: FeedForward, at: str, x: str) -> str:
    inner = g.activation(g.linear(x, f"{at}.ffn.up", bias=forward.bias), forward.activation)
    if forward.gated:
        gate = g.linear(x, f"{at}.ffn.gate", bias=forward.bias)
        inner = g.op("Mul", inner, gate, half=True)
    return g.linear(inner, f"{at}.ffn.down", bias=forward.bias)


def _attend(g: Graph, attention: Attention, at: str, x: str, sight: Sight) -> str:
    """(R, S, hidden) to (R, S, hidden)."""
    width, size, shared = attention.width, attention.head_size, attention.shared_width
    counts = attention.num_heads, *[attention.num_key_value_heads] * 2
    heads = [g.ints("heads", [0, 0, count, size]) for count in counts]
    merged = g.ints("merged", [0, 0, width])
    thirds = g.ints("thirds", [width, shared, shared])
    scale = g.number("scale", 1 / math.sqrt(size), half=True)
    qkv = g.linear(x, f"{at}.attention.qkv", bias=attention.bias)
    parts = g.op("Split", qkv, thirds, half=True, outputs=3, axis=-1)
    q, k, v = (g.op("Reshape", *pair, half=True) for pair in zip(parts, heads, strict=True))
    if attention.query_key_norm is not None:
        q, k = (
            g.to_half(_norm(g, g.to_float(part), f"{at}.{name}.norm", attention.query_key_norm))
            for part, name in ((q, "attention.query"), (k, "attention.key"))
        )
    if attention.rope_theta is not None:
        turn = sight.turn(attention.rope_theta, attention.rope_divisor, size)
        q, k = (_turned(g, part, size, turn) for part in (q, k))
    sharers = attention.num_heads // attention.num_key_value_heads
    if sharers > 1:
        owners = g.ints("owners", [head // sharers for head in range(attention.num_heads)])
        k, v = (g.op("Gather", part, owners, half=True, axis=2) for part in (k, v))
    # Scaled before the product: in float16 the scores then stay small as well.
    q = g.op("Mul", q, scale, half=True)
    q = g.op("Transpose", q, half=True, perm=[0, 2, 1, 3])
    k = g.op("Transpose", k, half=True, perm=[0, 2, 3, 1])
    v = g.op("Transpose", v, half=True, perm=[0, 2, 1, 3])
    contexts = []
    biases = sight.biases(attention)
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
    write = g.rms_norm if norm.kind == "rms_norm" else g.layer_norm
    return write(x, name, norm.eps, bias=norm.bias)


def _residual_norm(g: Graph, norm: Norm, x: str, y: str, name: str) -> str:
    return _norm(g, g.op("Add", g.to_float(x), g.to_float(y)), name, norm)
