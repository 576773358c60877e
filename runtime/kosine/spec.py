"""What an encoder computes, apart from its numbers: the one description of a model.

The exporter makes it from a checkpoint, the manifest stores it whole, and every engine lowers
it: the numpy reference, the ONNX graphs (TensorRT through them) and the native engine. An engine
that cannot do what a field asks for says so by the field's name (`spec_fields`), and "auto" moves
on.

Tensors go by canonical names, float32, in the layout that all engines read: a linear layer is
`x @ weight + bias` with `weight` of shape (in, out).

    embeddings.word.weight               (vocab_size, embeddings.size)
    embeddings.position.weight           (positions.rows, embeddings.size), absent with rule "none"
    embeddings.token_type.weight         (token_types, embeddings.size), absent when that is 0
    embeddings.norm.{weight,bias}        (embeddings.size,), absent where there is no norm
    embeddings.project.{weight,bias}     (embeddings.size, hidden_size), only where the two differ
    layers.N.attention.qkv.{weight,bias}     (hidden_size, .): q | k | v, head_size columns a head
    layers.N.attention.query.norm.{weight,bias}  (head_size,), of each head of q; where normed
    layers.N.attention.key.norm.{weight,bias}    (head_size,), of each head of k; where normed
    layers.N.attention.output.{weight,bias}  (num_heads * head_size, hidden_size)
    layers.N.attention.norm.{weight,bias}    (hidden_size,)
    layers.N.attention.output.norm.{weight,bias}  (hidden_size,), only with norms "sandwich"
    layers.N.ffn.up.{weight,bias}            (hidden_size, intermediate_size)
    layers.N.ffn.gate.{weight,bias}          the same, only where the feed-forward is gated
    layers.N.ffn.down.{weight,bias}          (intermediate_size, hidden_size)
    layers.N.ffn.norm.{weight,bias}          (hidden_size,)
    layers.N.ffn.down.norm.{weight,bias}     (hidden_size,), only with norms "sandwich"
    final.norm.{weight,bias}                 (hidden_size,), only where there is a final norm
    attention.buckets.weight                 (buckets.count, num_heads), of all layers; with buckets
    dense.N.weight, dense.N.bias             (in, out), (out,); bias absent where there is none
    heads.sparse.{weight,bias}               (hidden_size, 1), (1,); with heads.sparse
    heads.multi.{weight,bias}                (hidden_size, heads.multi), (heads.multi,)

A bias is absent where the spec says that there is none. Token types are always row 0: a single
sentence has no second segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Attention",
    "Block",
    "Buckets",
    "Dense",
    "Embeddings",
    "EncoderSpec",
    "FeedForward",
    "Heads",
    "Norm",
    "Pooling",
    "PoolingMode",
    "PositionRule",
    "Positions",
]

PositionRule = Literal["absolute", "roberta", "none"]
PoolingMode = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@dataclass(frozen=True, slots=True)
class Norm:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over a row, with the biased variance.

    For "rms_norm" the mean counts as zero.
    """

    kind: Literal["layer_norm", "rms_norm"]
    eps: float
    bias: bool


@dataclass(frozen=True, slots=True)
class Positions:
    """A learned table of positions, and which of its `rows` a token takes.

    "absolute" counts 0, 1, 2, ...; "roberta" is `cumsum(id != pad_id) * (id != pad_id) + pad_id`,
    so the first token is at pad_id + 1, and a literal [PAD] in a text sits at row pad_id without
    advancing the count. "none" has no table: `rows` is how many tokens the encoder was made for.
    """

    rule: PositionRule
    rows: int
    pad_id: int

    @property
    def usable(self) -> int:
        """The most tokens that rows exist for."""
        return self.rows - self.pad_id - 1 if self.rule == "roberta" else self.rows


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Word, position and token type vectors of `size`, summed, and normalised if there is a norm.

    Where `size` is not the encoder's hidden_size, a linear layer follows.
    """

    vocab_size: int
    size: int
    positions: Positions
    token_types: int
    norm: Norm | None


@dataclass(frozen=True, slots=True)
class Buckets:
    """Distances between tokens, put into buckets as T5 does it for both directions.

    Half of `count` is for keys at or before the query: half of that for one distance each, the
    rest in steps that grow with the logarithm up to `max_distance`. The other half is for keys
    behind it.
    """

    count: int
    max_distance: int


@dataclass(frozen=True, slots=True)
class Attention:
    """`softmax(q kT / sqrt(head_size)) v` inside each sentence.

    Attributes:
        num_key_value_heads: Heads of k and v, each shared by num_heads / num_key_value_heads of q.
        positions: What turns q and k by their place in the sentence: "none", or "rope": halves a
            and b of each head become `a cos - b sin` and `b cos + a sin` of the angles
            `place * rope_theta ** (-2 i / head_size) / rope_divisor`. With "buckets" each head
            adds a number to a score, by the bucket of the distance.
        rope_theta: The base of those angles; None without them.
        buckets: Of distances; None without them.
        window: The farthest tokens that are seen, to both sides; None sees all.
        bias: Whether the linear layers add one.
        rope_divisor: How many times slower the angles grow: 1 but in models that were stretched.
        causal: Whether a token sees none that follow it.
        query_key_norm: Of each head of q and of k, before they are turned; None without it.
    """

    num_heads: int
    num_key_value_heads: int
    head_size: int
    positions: Literal["none", "rope", "buckets"]
    rope_theta: float | None
    buckets: Buckets | None
    window: int | None
    bias: bool
    rope_divisor: float = 1.0
    causal: bool = False
    query_key_norm: Norm | None = None

    @property
    def width(self) -> int:
        """Columns of q: the heads' end to end."""
        return self.num_heads * self.head_size

    @property
    def shared_width(self) -> int:
        """Columns of k, and of v."""
        return self.num_key_value_heads * self.head_size


@dataclass(frozen=True, slots=True)
class FeedForward:
    """`activation(x @ up + bias) @ down + bias`.

    Attributes:
        activation: "gelu" is the exact erf form, "gelu_tanh" the one with tanh, "silu" is
            `x / (1 + exp(-x))`.
        gated: Whether a second product of x, `x @ gate + bias`, scales what the activation gives.
    """

    intermediate_size: int
    activation: Literal["gelu", "gelu_tanh", "silu"]
    gated: bool
    bias: bool


@dataclass(frozen=True, slots=True)
class Block:
    """One layer.

    With norms "post": `y = norm(x + attention(x))`, then `norm(y + ffn(y))`; with norms "pre":
    `y = x + attention(norm(x))`, then `y + ffn(norm(y))`; with norms "sandwich" what attention
    and ffn give is normed too before it is added.

    Attributes:
        attention_norm: Whether attention's norm is there; without it attention reads x itself.
    """

    norm_placement: Literal["post", "pre", "sandwich"]
    norm: Norm
    attention_norm: bool
    attention: Attention
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token vectors become one, as sentence-transformers' Pooling module defines it.

    Attributes:
        modes: One, or several whose vectors are put end to end. "mean_sqrt_len_tokens" is the
            sum over the square root of the count; "weightedmean" gives the i-th token of the
            text, prompt included, the weight i.
        include_prompt: Over all tokens, or over those after the prompt.
    """

    modes: tuple[PoolingMode, ...]
    include_prompt: bool


@dataclass(frozen=True, slots=True)
class Dense:
    """A sentence-transformers Dense module after pooling: `activation(x @ weight + bias)`."""

    in_features: int
    out_features: int
    bias: bool
    activation: Literal["identity", "tanh", "relu", "gelu", "sigmoid"]
    use_residual: bool


@dataclass(frozen=True, slots=True)
class Heads:
    """What reads the vector x of each token, beside pooling: BGE-M3's linear layers.

    Attributes:
        sparse: Whether there is one that gives a token's weight, `max(x @ weight + bias, 0)`.
        multi: Columns of the one that gives a token's own vector, `x @ weight + bias`; None
            without it.
    """

    sparse: bool
    multi: int | None


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Shape and semantics of a sentence encoder, from token ids to the vector before unit length.

    Attributes:
        family: How its checkpoints are spelled; engines do not look at it.
        final_norm: Of what the last layer gives, or None.
        normalize: Whether the checkpoint itself ends in a Normalize module.
        heads: Of tokens, or None.
    """

    family: str
    hidden_size: int
    embeddings: Embeddings
    layers: tuple[Block, ...]
    final_norm: Norm | None
    pooling: Pooling
    dense: tuple[Dense, ...]
    normalize: bool
    heads: Heads | None = None

    @property
    def pooled_size(self) -> int:
        """Length of what pooling gives."""
        return self.hidden_size * len(self.pooling.modes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a text can become: "dense", a sentence vector, and what heads give."""
        heads = self.heads or Heads(sparse=False, multi=None)
        there = {"dense": True, "sparse": heads.sparse, "multi": heads.multi is not None}
        return tuple(name for name, given in there.items() if given)

    @property
    def dim(self) -> int:
        """Length of the sentence vectors."""
        return self.dense[-1].out_features if self.dense else self.pooled_size
