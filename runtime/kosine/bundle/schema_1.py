"""Schema 1 of the manifest, as kosine 0.1 wrote it: the one block there was then, in flat sizes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kosine.bundle.typed_json import bad, build, shown
from kosine.spec import (
    Attention,
    Block,
    Dense,
    Embeddings,
    EncoderSpec,
    FeedForward,
    Norm,
    Pooling,
    PositionRule,
    Positions,
)

__all__ = ["from_schema_1"]

MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True)
class _Architecture:
    family: str
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


@dataclass(frozen=True, slots=True)
class _Pooling:
    mode: Literal["mean", "cls", "max"]
    include_prompt: bool


@dataclass(frozen=True, slots=True)
class _Model:
    """What schema 1 says of the model."""

    architecture: _Architecture
    dim: int
    pooling: _Pooling
    dense: tuple[Dense, ...]
    normalized: bool
    special_ids: dict[str, int]


_MODEL = frozenset(_Model.__dataclass_fields__)


def from_schema_1(value: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a schema 1 manifest as that of schema 2.

    Raises:
        ManifestError: What it says of the model is missing, of the wrong type, or cannot be.
    """
    for key in ("spec", "int8"):
        if key in value:
            raise bad("$", f"an object with key {key!r}", "schema 1, which has none")
    model = build(_Model, {key: part for key, part in value.items() if key in _MODEL}, "$")
    spec = _spec(model)
    if model.dim != spec.dim:
        raise bad("$.dim", shown(model.dim), f"{spec.dim}, as the last layer says")
    rest = {key: part for key, part in value.items() if key not in _MODEL - {"special_ids"}}
    return {**rest, "spec": json.loads(json.dumps(asdict(spec)))}


def _spec(model: _Model) -> EncoderSpec:
    a = model.architecture
    if not 1 <= a.num_layers <= MAX_LAYERS:
        raise bad("$.architecture.num_layers", shown(a.num_layers), f"1 to {MAX_LAYERS}")
    if a.num_heads < 1 or a.hidden_size % a.num_heads:
        at = "$.architecture.num_heads"
        raise bad(at, shown(a.num_heads), f"a divisor of {shown(a.hidden_size)}")
    if "pad" not in model.special_ids:
        raise bad("$.special_ids.pad", "no value", "a vocabulary id")
    norm = Norm("layer_norm", a.layer_norm_eps, bias=True)
    head_size = a.hidden_size // a.num_heads
    block = Block(
        norm_placement="post",
        norm=norm,
        attention_norm=True,
        attention=Attention(
            a.num_heads, a.num_heads, head_size, "none", None, None, None, bias=True
        ),
        feed_forward=FeedForward(a.intermediate_size, "gelu", gated=False, bias=True),
    )
    return EncoderSpec(
        family=a.family,
        hidden_size=a.hidden_size,
        embeddings=Embeddings(
            vocab_size=a.vocab_size,
            size=a.embedding_size,
            positions=Positions(
                a.position_rule, a.max_position_embeddings, model.special_ids["pad"]
            ),
            token_types=a.type_vocab_size,
            norm=norm,
        ),
        layers=(block,) * a.num_layers,
        final_norm=None,
        pooling=Pooling((model.pooling.mode,), model.pooling.include_prompt),
        dense=model.dense,
        normalize=model.normalized,
    )
