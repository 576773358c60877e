"""Encoder specs for tests: equal post-norm blocks in any size."""

from __future__ import annotations

from kosine.spec import (
    Attention,
    Block,
    Dense,
    Embeddings,
    EncoderSpec,
    FeedForward,
    Norm,
    Pooling,
    PoolingMode,
    PositionRule,
    Positions,
)


def spec_of_sizes(
    *,
    hidden: int = 32,
    heads: int = 2,
    inner: int = 64,
    layers: int = 1,
    vocab: int = 50,
    embedding: int | None = None,
    positions: int = 64,
    rule: PositionRule = "absolute",
    pad_id: int = 0,
    token_types: int = 2,
    eps: float = 1e-12,
    pooling: PoolingMode | tuple[PoolingMode, ...] = "mean",
    include_prompt: bool = True,
    dense: tuple[Dense, ...] = (),
    normalize: bool = False,
    family: str = "bert",
) -> EncoderSpec:
    norm = Norm("layer_norm", eps, bias=True)
    block = Block(
        norm_placement="post",
        norm=norm,
        attention_norm=True,
        attention=Attention(heads, heads, hidden // heads, "none", None, None, bias=True),
        feed_forward=FeedForward(inner, "gelu", gated=False, bias=True),
    )
    return EncoderSpec(
        family=family,
        hidden_size=hidden,
        embeddings=Embeddings(
            vocab, embedding or hidden, Positions(rule, positions, pad_id), token_types, norm
        ),
        layers=(block,) * layers,
        final_norm=None,
        pooling=Pooling((pooling,) if isinstance(pooling, str) else pooling, include_prompt),
        dense=dense,
        normalize=normalize,
    )
