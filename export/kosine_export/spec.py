"""What an encoder computes, apart from its numbers: the exporter's side of the checkpoint.

Tensors go by canonical names, float32, in the layout that the graphs use: a linear layer is
`x @ weight + bias` with `weight` of shape (in, out).

    embeddings.word.weight               (vocab_size, embedding_size)
    embeddings.position.weight           (max_position_embeddings, embedding_size)
    embeddings.token_type.weight         (type_vocab_size, embedding_size), absent when that is 0
    embeddings.norm.{weight,bias}        (embedding_size,)
    embeddings.project.{weight,bias}     (embedding_size, hidden_size), only where the two differ
    layers.N.attention.qkv.{weight,bias}     (hidden, 3 * hidden): query | key | value
    layers.N.attention.output.{weight,bias}  (hidden, hidden)
    layers.N.attention.norm.{weight,bias}    (hidden,)
    layers.N.ffn.up.{weight,bias}            (hidden, intermediate)
    layers.N.ffn.down.{weight,bias}          (intermediate, hidden)
    layers.N.ffn.norm.{weight,bias}          (hidden,)
    dense.N.weight, dense.N.bias             (in, out), (out,); bias absent where there is none

The block is post-LayerNorm BERT: norm(x + attention(x)), then norm(x + ffn(x)), exact-erf GELU.
Token types are always row 0: a single sentence has no second segment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["DenseSpec", "EncoderSpec", "FamilyName", "Pooling", "PositionRule"]

FamilyName = Literal["bert", "roberta", "distilbert", "electra"]
Pooling = Literal["mean", "cls", "max"]
PositionRule = Literal["absolute", "roberta"]


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A sentence-transformers Dense module after pooling: `activation(x @ weight + bias)`."""

    in_features: int
    out_features: int
    bias: bool
    activation: Literal["identity", "tanh", "relu", "gelu", "sigmoid"]
    use_residual: bool = False


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Shape and semantics of a sentence encoder.

    `position_rule` says how position ids come about: "absolute" counts 0, 1, 2, ...;
    "roberta" is `cumsum(id != pad) * (id != pad) + pad`, so the first token is at pad + 1 and a
    literal [PAD] in a text sits at row `pad` without advancing the count.
    `max_tokens` includes the special tokens and never exceeds the usable position rows.
    `normalize` is True where the checkpoint itself ends in a Normalize module.
    """

    family: FamilyName
    vocab_size: int
    hidden_size: int
    embedding_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    position_rule: PositionRule
    pad_id: int
    max_tokens: int
    pooling: Pooling
    include_prompt: bool
    normalize: bool
    dense: tuple[DenseSpec, ...] = field(default=())

    @property
    def dim(self) -> int:
        """Length of the sentence vectors."""
        return self.dense[-1].out_features if self.dense else self.hidden_size

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads
