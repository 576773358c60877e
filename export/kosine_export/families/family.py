"""What is a family's own: how it spells a config and a block, and what transformers assumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kosine.spec import Buckets, EncoderSpec, PositionRule
from kosine_export.families.reader import Reader
from kosine_export.files.weights import Float32

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
        block: Names of the tensors of a layer that is BERT's; None where `spec` and `tensors` read
            the config and the weights.
        tokenizer_class: What transformers assumes where no class is stated, and
            `tokenizer_classes` by `model_type` where it assumes another.
        keys: Its own spelling of BERT's config keys.
        embedding_size: Default width of the embeddings; None where they are as wide as the block.
        layer_norm_eps: Where no config states it.
        has_token_types: Whether there is a table of token types.
        position_rule: See `Positions`.
        pad_id: What positions are counted from, where the config has no say in it.
        buckets: Of distances, in families whose layers share a table of them.
        word_embeddings: The tensor's name; by it an encoder is found in a file.
        parts: How the names of the encoder's tensors begin.
        code_classes: Classes that its checkpoints bring as Python of their own, in `auto_map`. It
            is never run: config.json says what they compute.
        spec: config.json to a spec, where the layers are not BERT's.
        tensors: Tensors under canonical names, where they are not BERT's.
        as_transformers: A config.json of such a class as that of transformers' own, for the
            referee.
    """

    name: str
    model_class: str
    class_prefixes: Mapping[str, str]
    defaults: Mapping[str, Mapping[str, int]]
    block: BlockNames | None
    tokenizer_class: str = "BertTokenizer"
    tokenizer_classes: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    embedding_size: int | None = None
    layer_norm_eps: float | None = None
    has_token_types: bool = True
    position_rule: PositionRule = "absolute"
    pad_id: int | None = None
    buckets: Buckets | None = None
    word_embeddings: str = "embeddings.word_embeddings.weight"
    parts: tuple[str, ...] = ("embeddings.", "embeddings_project.", "encoder.", "transformer.")
    code_classes: frozenset[str] = frozenset()
    spec: Callable[[Mapping[str, Any]], EncoderSpec] | None = None
    tensors: Callable[[EncoderSpec, Reader], Iterator[tuple[str, Float32]]] | None = None
    as_transformers: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
