"""What is a family's own: how it spells a config and a block, and what transformers assumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kosine.spec import PositionRule

__all__ = ["BlockNames", "Family"]


@dataclass(frozen=True, slots=True)
class BlockNames:
    """A family's names inside one layer, without prefix and parameter suffix."""

    layer: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    up: str
    down: str
    ffn_norm: str


@dataclass(frozen=True, slots=True)
class Family:
    """Encoders whose checkpoints are spelled alike.

    Attributes:
        name: Of the family, in manifests too.
        model_class: transformers' class of the encoder without a head.
        class_prefixes: `model_type` by how the names of its classes begin.
        defaults: What transformers' configuration classes assume where config.json is silent, by
            `model_type`: those that the family has.
        block: Names of a layer's tensors.
        tokenizer_class: What transformers assumes where no class is stated, and
            `tokenizer_classes` by `model_type` where it assumes another.
        keys: Its own spelling of BERT's config keys.
        embedding_size: Default width of the embeddings; None where they are as wide as the block.
        layer_norm_eps: Where no config states it.
        has_token_types: Whether there is a table of token types.
        position_rule: See `Positions`.
    """

    name: str
    model_class: str
    class_prefixes: Mapping[str, str]
    defaults: Mapping[str, Mapping[str, int]]
    block: BlockNames
    tokenizer_class: str = "BertTokenizer"
    tokenizer_classes: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    embedding_size: int | None = None
    layer_norm_eps: float | None = None
    has_token_types: bool = True
    position_rule: PositionRule = "absolute"
