"""A spec as the steps of `kosine_kernels`, which know neither layers nor families."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, get_args

from kosine.errors import BackendError
from kosine.spec import Block, EncoderSpec, PoolingMode, unsupported
from kosine_kernels.steps import (
    Attention,
    Dense,
    Embed,
    FeedForward,
    Linear,
    Norm,
    Pool,
    Step,
)

__all__ = ["RUNS", "lower", "require_supported"]

# What steps can say, by the spec's fields. The last two are the widths of vectors.
RUNS: Mapping[str, Container[Any] | str] = {
    "embeddings.positions.rule": ("absolute", "roberta"),
    "embeddings.norm.kind": ("layer_norm",),
    "layers.norm_placement": ("post",),
    "layers.norm.kind": ("layer_norm",),
    "layers.attention.num_key_value_heads": "num_heads",
    "layers.attention.head_size": range(16, 129, 16),
    "layers.attention.positions": ("none",),
    "layers.attention.window": (None,),
    "layers.attention.bias": (True,),
    "layers.feed_forward.activation": ("gelu",),
    "layers.feed_forward.gated": (False,),
    "layers.feed_forward.bias": (True,),
    "pooling.modes": get_args(PoolingMode),
    "dense.activation": ("identity", "tanh", "relu", "gelu", "sigmoid"),
    "hidden_size": range(16, 1 << 24, 16),
    "embeddings.size": range(16, 1 << 24, 16),
}


def require_supported(spec: EncoderSpec, name: str) -> None:
    """Refuse, by the field's name, what the native engine does not run.

    Args:
        name: Of the bundle, for the message.

    Raises:
        BackendError: A field has a value that is not in `RUNS`.
    """
    found = unsupported(spec, RUNS)
    if found is not None:
        raise BackendError(
            f"the native engine cannot run {name}: {found[0]}",
            limit=found[1],
            remedy="use backend='onnx'",
        )


def lower(spec: EncoderSpec) -> tuple[Step, ...]:
    """The steps of a spec that `require_supported` lets pass; arrays by `kosine.spec`'s names."""
    return tuple(_steps(spec))


def _steps(spec: EncoderSpec) -> Iterator[Step]:
    embeddings = spec.embeddings
    token_type = "embeddings.token_type" if embeddings.token_types else None
    yield Embed("embeddings.word", "embeddings.position", token_type)
    yield Norm("embeddings.norm", embeddings.norm.eps)
    if embeddings.size != spec.hidden_size:
        yield Linear("embeddings.project")
    for number, block in enumerate(spec.layers):
        yield from _block(block, f"layers.{number}")
    yield Pool(spec.pooling.modes)
    for number, dense in enumerate(spec.dense):
        yield Dense(f"dense.{number}", dense.bias, dense.activation, dense.use_residual)


def _block(block: Block, at: str) -> Iterator[Step]:
    heads, size = block.attention.num_heads, block.attention.head_size
    yield Attention(f"{at}.attention.qkv", f"{at}.attention.output", heads, size)
    yield Norm(f"{at}.attention.norm", block.norm.eps)
    yield FeedForward(f"{at}.ffn.up", f"{at}.ffn.down")
    yield Norm(f"{at}.ffn.norm", block.norm.eps)
