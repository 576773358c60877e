"""A transformers `config.json` as the sizes of one block, or a refusal by name.

All families are the same block under other keys; what would change the block's arithmetic is
refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.families.family import Family
from kosine_export.families.registry import FAMILIES, MODEL_TYPES
from kosine_export.files.folder import without_nulls
from kosine_export.spec import FamilyName, PositionRule

__all__ = ["Architecture", "read_architecture"]

*_MOST, _LAST = MODEL_TYPES
SUPPORTED = f"{', '.join(_MOST)} and {_LAST} are supported"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The transformer's sizes, as `config.json` states them."""

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
    pad_id: int

    @property
    def position_rule(self) -> PositionRule:
        return FAMILIES[self.family].position_rule

    @property
    def usable_positions(self) -> int:
        """Tokens that position rows exist for: RoBERTa starts counting at pad + 1."""
        if self.position_rule == "roberta":
            return self.max_position_embeddings - self.pad_id - 1
        return self.max_position_embeddings


def model_type_of(config: Mapping[str, Any]) -> str:
    """`model_type`, or what the class name says where old configs lack it."""
    stated = config.get("model_type")
    if isinstance(stated, str):
        return stated
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if isinstance(name, str):
        for family in FAMILIES.values():
            for prefix, model_type in family.class_prefixes.items():
                if name.startswith(prefix):
                    return model_type
        raise UnsupportedCheckpoint(
            f"architecture {name}", limit=SUPPORTED, remedy="export one of those"
        )
    raise CorruptCheckpoint(
        "config.json states neither model_type nor architectures",
        limit=SUPPORTED,
        remedy="add the model_type that the weights belong to",
    )


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a transformers `config.json`.

    Raises:
        UnsupportedCheckpoint: Another model, or a variant of the block that differs from it.
        CorruptCheckpoint: A value of the wrong type, or sizes that cannot be.
    """
    if config.get("auto_map"):
        raise UnsupportedCheckpoint(
            "config.json has auto_map: the model is Python code inside the checkpoint",
            limit="code from checkpoints is never run",
            remedy=f"use a checkpoint of a standard class ({SUPPORTED})",
        )
    model_type = model_type_of(config)
    if model_type not in MODEL_TYPES:
        raise UnsupportedCheckpoint(
            f"model_type {model_type!r}", limit=SUPPORTED, remedy="export one of those"
        )
    family = MODEL_TYPES[model_type]
    require_standard_block(config, family)

    def size(key: str) -> int:
        minimum = 0 if key == "pad_token_id" else 1
        return integer(config, key, family, family.defaults[model_type], minimum=minimum)

    hidden_size = size("hidden_size")
    num_heads = size("num_attention_heads")
    if hidden_size % num_heads:
        raise CorruptCheckpoint(
            f"config.json: hidden_size {hidden_size} is not a multiple of {num_heads} heads"
        )
    embedding_size = hidden_size
    if family.embedding_size is not None:
        stated = config.get("embedding_size")
        embedding_size = (
            family.embedding_size if stated is None else positive("embedding_size", stated)
        )
    architecture = Architecture(
        family=family.name,
        vocab_size=size("vocab_size"),
        hidden_size=hidden_size,
        embedding_size=embedding_size,
        num_layers=size("num_hidden_layers"),
        num_heads=num_heads,
        intermediate_size=size("intermediate_size"),
        max_position_embeddings=size("max_position_embeddings"),
        type_vocab_size=size("type_vocab_size") if family.has_token_types else 0,
        layer_norm_eps=epsilon(config, family),
        pad_id=size("pad_token_id"),
    )
    if architecture.pad_id >= architecture.vocab_size:
        raise CorruptCheckpoint(
            f"config.json: pad_token_id {architecture.pad_id} is outside the vocabulary of "
            f"{architecture.vocab_size}"
        )
    if architecture.usable_positions < 3:
        raise CorruptCheckpoint(
            f"config.json: {architecture.max_position_embeddings} position rows leave room for "
            f"{architecture.usable_positions} tokens",
            limit="a sentence needs at least 3",
        )
    return architecture


def require_standard_block(config: Mapping[str, Any], family: Family) -> None:
    """Refuse, by name, what changes the computation of the block."""
    positions = config.get("position_embedding_type")
    if positions not in (None, "absolute"):
        raise UnsupportedCheckpoint(
            f"position_embedding_type {positions!r}",
            limit="absolute position embeddings are supported",
            remedy="use a checkpoint trained with absolute positions",
        )
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if config.get(key):
            raise UnsupportedCheckpoint(
                f"config.json has {key}: true",
                limit="encoders are supported",
                remedy="use an encoder checkpoint",
            )
    for key in ("quantization_config", "pruned_heads"):
        if config.get(key):
            raise UnsupportedCheckpoint(
                f"config.json has {key}",
                limit="plain float weights of the full size are supported",
                remedy="export from the original checkpoint",
            )
    spelling = family.keys.get("hidden_act", "hidden_act")
    activation = config.get(spelling, "gelu")
    if activation != "gelu":
        raise UnsupportedCheckpoint(
            f"{spelling} {activation!r}",
            limit="gelu, the exact erf form, is supported",
            remedy="use a checkpoint trained with it",
        )


def integer(
    config: Mapping[str, Any],
    key: str,
    family: Family,
    defaults: Mapping[str, int],
    *,
    minimum: int,
) -> int:
    """The family's own spelling of the key goes before BERT's."""
    stated = without_nulls(config)
    for spelling in (family.keys.get(key, key), key):
        if spelling in stated:
            return positive(spelling, stated[spelling], minimum=minimum)
    return defaults[key]


def positive(key: str, value: object, *, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
        raise CorruptCheckpoint(
            f"config.json: {key} is {value!r}", limit=f"an integer from {minimum} is needed"
        )
    return value


def epsilon(config: Mapping[str, Any], family: Family) -> float:
    if family.layer_norm_eps is not None:
        return family.layer_norm_eps
    value = config.get("layer_norm_eps", 1e-12)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CorruptCheckpoint(
            f"config.json: layer_norm_eps is {value!r}", limit="a number between 0 and 1 is needed"
        )
    return float(value)
