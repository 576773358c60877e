"""A transformers `config.json` as a spec, or a refusal by name.

Most families are BERT's block under other keys, and are read here; what would change that block's
arithmetic is refused. The others bring a reader of their own.
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
from kosine_export.families.values import integer, layer_count, ratio, refuse_other_models
from kosine_export.files.folder import without_nulls

__all__ = ["read_config"]

*_MOST, _LAST = MODEL_TYPES
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
    mapped = config.get("auto_map")
    model_type = str(config.get("model_type")) if mapped else model_type_of(config)
    if mapped and not is_known_code(mapped, model_type):
        raise UnsupportedCheckpoint(
            "config.json has auto_map: the model is Python code inside the checkpoint",
            limit="code from checkpoints is never run",
            remedy=f"use a checkpoint of a standard class ({SUPPORTED})",
        )
    if model_type not in MODEL_TYPES:
        raise UnsupportedCheckpoint(
            f"model_type {model_type!r}", limit=SUPPORTED, remedy="export one of those"
        )
    family = MODEL_TYPES[model_type]
    spec = bert_like(config, family, model_type) if family.spec is None else family.spec(config)
    require_room(spec.embeddings)
    return spec


def is_known_code(mapped: object, model_type: str) -> bool:
    """Whether the class of an `auto_map` is one whose arithmetic its config states."""
    name = str(mapped.get("AutoModel", "")) if isinstance(mapped, dict) else ""
    family = MODEL_TYPES.get(model_type)
    return bool(family and name.rpartition(".")[2] in family.code_classes)


def bert_like(config: Mapping[str, Any], family: Family, model_type: str) -> EncoderSpec:
    """A spec of equal blocks, under whichever keys."""
    require_standard_block(config, family)
    require_known_buckets(config, family)

    def size(key: str) -> int:
        minimum = 0 if key == "pad_token_id" else 1
        return stated_integer(config, key, family, family.defaults[model_type], minimum=minimum)

    hidden_size, num_heads = size("hidden_size"), size("num_attention_heads")
    if hidden_size % num_heads:
        raise CorruptCheckpoint(
            f"config.json: hidden_size {hidden_size} is not a multiple of {num_heads} heads"
        )
    num_layers = layer_count(size("num_hidden_layers"))
    norm = Norm("layer_norm", epsilon(config, family), bias=True)
    block = Block(
        norm_placement="post",
        norm=norm,
        attention_norm=True,
        attention=Attention(
            num_heads=num_heads,
            num_key_value_heads=num_heads,
            head_size=hidden_size // num_heads,
            positions="none" if family.buckets is None else "buckets",
            rope_theta=None,
            buckets=family.buckets,
            window=None,
            bias=True,
        ),
        feed_forward=FeedForward(size("intermediate_size"), "gelu", gated=False, bias=True),
    )
    return EncoderSpec(
        family=family.name,
        hidden_size=hidden_size,
        embeddings=Embeddings(
            vocab_size=size("vocab_size"),
            size=embedding_size(config, family, hidden_size),
            positions=Positions(
                family.position_rule,
                size("max_position_embeddings"),
                size("pad_token_id") if family.pad_id is None else family.pad_id,
            ),
            token_types=size("type_vocab_size") if family.has_token_types else 0,
            norm=norm,
        ),
        layers=(block,) * num_layers,
        final_norm=None,
        pooling=Pooling(("mean",), include_prompt=True),
        dense=(),
        normalize=False,
    )


def embedding_size(config: Mapping[str, Any], family: Family, hidden_size: int) -> int:
    if family.embedding_size is None:
        return hidden_size
    stated = config.get("embedding_size")
    return family.embedding_size if stated is None else integer("embedding_size", stated)


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
    refuse_other_models(config, family.keys.get("hidden_act", "hidden_act"))


def require_known_buckets(config: Mapping[str, Any], family: Family) -> None:
    """transformers has a table of as many rows as the config states, and counts on 32."""
    key = "relative_attention_num_buckets"
    if family.buckets is None or config.get(key) in (None, family.buckets.count):
        return
    raise UnsupportedCheckpoint(
        f"config.json: {key} is {config[key]!r}",
        limit=f"{family.buckets.count} is supported",
        remedy="use a checkpoint with that many",
    )


def stated_integer(
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
            return integer(spelling, stated[spelling], minimum=minimum)
    return defaults[key]


def epsilon(config: Mapping[str, Any], family: Family) -> float:
    if family.layer_norm_eps is not None:
        return family.layer_norm_eps
    return ratio("layer_norm_eps", config.get("layer_norm_eps", 1e-12))
