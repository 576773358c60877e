"""What an encoder computes, step by step, in the order in which engines walk it.

Steps name arrays and hold numbers, nothing else. `x` is what one step hands to the next: rows
(T, width) of all tokens until `Pool`, then one row for each sentence. `y`, which products read, is
what the last `Norm` or `Linear` gave. The name of a linear layer or a norm stands for its arrays
`NAME.weight` and, with `bias`, `NAME.bias`; a linear layer is `y @ weight + bias` with weight of
shape (in, out).

An order that engines accept: `Embed`, any number of `Norm`, `Linear`, `Attention` and
`FeedForward`, then `Pool`, then any number of `Dense`. `Attention` and `FeedForward` follow a
`Norm` or a `Linear`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Attention",
    "Dense",
    "Distances",
    "Embed",
    "FeedForward",
    "Linear",
    "Norm",
    "Pool",
    "Rotary",
    "Step",
]


@dataclass(frozen=True, slots=True)
class Embed:
    """`x = word[ids] + position[positions]`, and row 0 of `token_type`, where there are those."""

    word: str
    position: str | None
    token_type: str | None


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm: `y = (x - mean) / sqrt(variance + eps) * weight + bias`, row by row.

    Attributes:
        keeps_x: Whether x stays; else it becomes y.
        rms: RMSNorm: the mean counts as zero.
    """

    name: str
    eps: float
    bias: bool = True
    keeps_x: bool = False
    rms: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """`x = y = linear(y)`"""

    name: str


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary positions of sentences of up to `rows` tokens.

    In place p the halves a and b of a head become `a cos - b sin` and `b cos + a sin` of the
    angles `p * theta ** (-2 i / head_size) / divisor`; frequencies and angles are rounded to
    float32.
    """

    theta: float
    rows: int
    divisor: float = 1.0


@dataclass(frozen=True, slots=True)
class Distances:
    """What each head adds to the score of a row i with a row j, by j - i.

    Row b of the array `NAME.weight`, (., num_heads), is that of bucket b. `buckets` has the
    bucket of each distance from -n to n, 2 n + 1 of them; beyond them those at the ends count.
    """

    name: str
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """`x += output(softmax(q kT / sqrt(head_size)) v)` inside each sentence, `q | k | v = qkv(y)`.

    The weight of `qkv` has the heads of q end to end, then those of k, then those of v, head_size
    columns each.

    Attributes:
        rotary: What turns q and k, or None.
        window: The farthest rows that a row sees, to both sides; None sees all.
        distances: What is added to scores that are divided already, or None.
        num_key_value_heads: Heads of k and v, each shared by as many neighbouring heads of q;
            None where there are num_heads.
        causal: Whether a row sees none behind itself.
        query_norm, key_norm: Of each head of q and of k, before it is turned, or None.
        norm: Of what is added to x, or None.
    """

    qkv: str
    output: str
    num_heads: int
    head_size: int
    bias: bool = True
    rotary: Rotary | None = None
    window: int | None = None
    distances: Distances | None = None
    num_key_value_heads: int | None = None
    causal: bool = False
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class FeedForward:
    """`x += down(activation(up(y)))`; with a gate `down(activation(up(y)) * gate(y))`.

    Attributes:
        activation: "gelu" (the erf form), "gelu_tanh" or "silu".
        norm: Of what is added to x, or None.
    """

    up: str
    down: str
    gate: str | None = None
    bias: bool = True
    activation: str = "gelu"
    norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows of each sentence to one, over those that are not skipped.

    Attributes:
        modes: Of "mean", "cls" (the first row), "max", "mean_sqrt_len_tokens" (the sum over the
            square root of the count), "weightedmean" (row i of the sentence weighs i + 1) and
            "lasttoken": what they give stands end to end.
    """

    modes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dense:
    """`activation(linear(x))`, plus x with a residual.

    Attributes:
        bias: Whether there is an array `NAME.bias`.
        activation: "identity", "tanh", "relu", "gelu" or "sigmoid".
    """

    name: str
    bias: bool
    activation: str
    use_residual: bool


Step = Embed | Norm | Linear | Attention | FeedForward | Pool | Dense
