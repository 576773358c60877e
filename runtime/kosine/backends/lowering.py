"""A spec as the steps of `kosine_kernels`, which know neither layers nor families."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, get_args

from kosine.errors import BackendError
from kosine.spec import Block, EncoderSpec, PoolingMode, unsupported
from kosine.spec import Norm as SpecNorm
from kosine_kernels.steps import (
    Attention,
    Dense,
    Embed,
    FeedForward,
    Linear,
    Norm,
    Pool,
    Rotary,
    Step,
)

__all__ = ["RUNS", "lower", "require_supported"]

# What steps can say, by the spec's fields. The last two are the widths of vectors.
RUNS: Mapping[str, Container[Any] | str] = {
    "embeddings.positions.rule": ("absolute", "roberta", "none"),
    "embeddings.norm.kind": ("layer_norm",),
    "layers.norm_placement": ("post", "pre"),
    "layers.norm.kind": ("layer_norm",),
    "layers.attention.num_key_value_heads": "num_heads",
    "layers.attention.head_size": range(16, 129, 16),
    "layers.attention.positions": ("none", "rope"),
    "layers.feed_forward.activation": ("gelu",),
    "final_norm.kind": ("layer_norm",),
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
    position = None if embeddings.positions.rule == "none" else "embeddings.position"
    yield Embed("embeddings.word", position, token_type)
    yield _norm("embeddings.norm", embeddings.norm)
    if embeddings.size != spec.hidden_size:
        yield Linear("embeddings.project")
    for number, block in enumerate(spec.layers):
        yield from _block(block, f"layers.{number}", embeddings.positions.rows)
    if spec.final_norm is not None:
        yield _norm("final.norm", spec.final_norm)
    yield Pool(spec.pooling.modes)
    for number, dense in enumerate(spec.dense):
        yield Dense(f"dense.{number}", dense.bias, dense.activation, dense.use_residual)


def _block(block: Block, at: str, rows: int) -> Iterator[Step]:
    wanted, forward = block.attention, block.feed_forward
    attention = Attention(
        qkv=f"{at}.attention.qkv",
        output=f"{at}.attention.output",
        num_heads=wanted.num_heads,
        head_size=wanted.head_size,
        bias=wanted.bias,
        rotary=None if wanted.rope_theta is None else Rotary(wanted.rope_theta, rows),
        window=wanted.window,
    )
    gate = f"{at}.ffn.gate" if forward.gated else None
    feed_forward = FeedForward(f"{at}.ffn.up", f"{at}.ffn.down", gate, forward.bias)
    if block.norm_placement == "post":
        yield attention
        yield _norm(f"{at}.attention.norm", block.norm)
        yield feed_forward
        yield _norm(f"{at}.ffn.norm", block.norm)
        return
    if block.attention_norm:
        yield _norm(f"{at}.attention.norm", block.norm, keeps_x=True)
    yield attention
    yield _norm(f"{at}.ffn.norm", block.norm, keeps_x=True)
    yield feed_forward


def _norm(name: str, norm: SpecNorm, *, keeps_x: bool = False) -> Norm:
    return Norm(name, norm.eps, norm.bias, keeps_x)
