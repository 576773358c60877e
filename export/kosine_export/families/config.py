"""A transformers `config.json` as a spec of equal blocks, or a refusal by name.

All families are the same block under other keys; what would change the block's arithmetic is
refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine.spec import (
    Attention,
    Block,
    Embeddings,
    EncoderSpec,
    FeedForward,
    Norm,
    Pooling,
    Positions,
)
from kosine_export.families.family import Family
from kosine_export.families.registry import FAMILIES, MODEL_TYPES
from kosine_export.files.folder import without_nulls

__all__ = ["read_config"]

*_MOST, _LAST = MODEL_TYPES
MAX_LAYERS = 1024
SUPPORTED = f"{', '.join(_MOST)} and {_LAST} are supported"


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


def read_config(config: Mapping[str, Any]) -> EncoderSpec:
    """The encoder of a transformers `config.json`.

    What follows it is what sentence-transformers assumes of a plain transformers checkpoint: the
    mean of all tokens, and nothing else.

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

    hidden_size, num_heads = size("hidden_size"), size("num_attention_heads")
    if hidden_size % num_heads:
        raise CorruptCheckpoint(
            f"config.json: hidden_size {hidden_size} is not a multiple of {num_heads} heads"
        )
    num_layers = size("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        raise CorruptCheckpoint(
            f"config.json: num_hidden_layers is {num_layers}", limit=f"at most {MAX_LAYERS}"
        )
    norm = Norm("layer_norm", epsilon(config, family))
    block = Block(
        norm_placement="post",
        norm=norm,
        attention=Attention(
            num_heads=num_heads,
            num_key_value_heads=num_heads,
            head_size=hidden_size // num_heads,
            positions="none",
            window=None,
            bias=True,
        ),
        feed_forward=FeedForward(size("intermediate_size"), "gelu", gated=False, bias=True),
    )
    spec = EncoderSpec(
        family=family.name,
        hidden_size=hidden_size,
        embeddings=Embeddings(
            vocab_size=size("vocab_size"),
            size=embedding_size(config, family, hidden_size),
            positions=Positions(
                family.position_rule, size("max_position_embeddings"), size("pad_token_id")
            ),
            token_types=size("type_vocab_size") if family.has_token_types else 0,
            norm=norm,
        ),
        layers=(block,) * num_layers,
        pooling=Pooling(("mean",), include_prompt=True),
        dense=(),
        normalize=False,
    )
    require_room(spec.embeddings)
    return spec


def embedding_size(config: Mapping[str, Any], family: Family, hidden_size: int) -> int:
    if family.embedding_size is None:
        return hidden_size
    stated = config.get("embedding_size")
    return family.embedding_size if stated is None else positive("embedding_size", stated)


def require_room(embeddings: Embeddings) -> None:
    positions = embeddings.positions
    if positions.pad_id >= embeddings.vocab_size:
        raise CorruptCheckpoint(
            f"config.json: pad_token_id {positions.pad_id} is outside the vocabulary of "
            f"{embeddings.vocab_size}"
        )
    if positions.usable < 3:
        raise CorruptCheckpoint(
            f"config.json: {positions.rows} position rows leave room for {positions.usable} tokens",
            limit="a sentence needs at least 3",
        )


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
