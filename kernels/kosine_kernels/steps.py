"""What an encoder computes, step by step, in the order in which engines walk it.

Steps name arrays and hold numbers, nothing else. `x` is what one step hands to the next: rows
(T, width) of all tokens until `Pool`, then one row for each sentence. The name of a linear layer
or a norm stands for its arrays `NAME.weight` and `NAME.bias`; a linear layer is
`x @ weight + bias` with weight of shape (in, out).

An order that engines accept: `Embed`, any number of `Norm`, `Linear`, `Attention` and
`FeedForward`, then `Pool`, then any number of `Dense`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Attention", "Dense", "Embed", "FeedForward", "Linear", "Norm", "Pool", "Step"]


@dataclass(frozen=True, slots=True)
class Embed:
    """`x = word[ids] + position[positions]`, and row 0 of `token_type` where there is one."""

    word: str
    position: str
    token_type: str | None


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm: `x = (x - mean) / sqrt(variance + eps) * weight + bias`, row by row."""

    name: str
    eps: float


@dataclass(frozen=True, slots=True)
class Linear:
    """`x = linear(x)`"""

    name: str


@dataclass(frozen=True, slots=True)
class Attention:
    """`x += output(softmax(q kT / sqrt(head_size)) v)` inside each sentence, `q | k | v = qkv(x)`.

    The weight of `qkv` has 3 * num_heads * head_size columns: the heads of q end to end, then
    those of k, then those of v.
    """

    qkv: str
    output: str
    num_heads: int
    head_size: int


@dataclass(frozen=True, slots=True)
class FeedForward:
    """`x += down(gelu(up(x)))`, the erf form of GELU."""

    up: str
    down: str


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
