"""A spec as the steps of `kosine_kernels`, which know neither layers nor families."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import cache
from typing import Any, get_args

from kosine.errors import BackendError
from kosine.positions import distance_buckets
from kosine.spec import Block, Buckets, EncoderSpec, PoolingMode
from kosine.spec import Norm as SpecNorm
from kosine.spec_fields import unsupported
from kosine_kernels.steps import (
    Attention,
    Dense,
    Distances,
    Embed,
    FeedForward,
    Linear,
    Norm,
    Pool,
    Rotary,
    Step,
)

__all__ = ["RUNS", "lower", "require_supported"]

NORMS = ("layer_norm", "rms_norm")
# What steps can say, by the spec's fields. The last two are the widths of vectors.
RUNS: Mapping[str, Container[Any] | str] = {
    "embeddings.positions.rule": ("absolute", "roberta", "none"),
    "embeddings.norm.kind": NORMS,
    "layers.norm_placement": ("post", "pre", "sandwich"),
    "layers.norm.kind": NORMS,
    "layers.attention.query_key_norm.kind": NORMS,
    "layers.attention.head_size": range(16, 257, 16),
    "layers.attention.positions": ("none", "rope", "buckets"),
    "layers.feed_forward.activation": ("gelu", "gelu_tanh", "silu"),
    "final_norm.kind": NORMS,
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
    if embeddings.norm is not None:
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
    query_norm, key_norm = (
        None if wanted.query_key_norm is None else _norm(name, wanted.query_key_norm)
        for name in (f"{at}.attention.query.norm", f"{at}.attention.key.norm")
    )
    rotary = None
    if wanted.rope_theta is not None:
        rotary = Rotary(wanted.rope_theta, rows, wanted.rope_divisor)
    sandwich = block.norm_placement == "sandwich"
    attention = Attention(
        qkv=f"{at}.attention.qkv",
        output=f"{at}.attention.output",
        num_heads=wanted.num_heads,
        head_size=wanted.head_size,
        bias=wanted.bias,
        rotary=rotary,
        window=wanted.window,
        distances=None if wanted.buckets is None else _distances(wanted.buckets),
        num_key_value_heads=wanted.num_key_value_heads,
        causal=wanted.causal,
        query_norm=query_norm,
        key_norm=key_norm,
        norm=_norm(f"{at}.attention.output.norm", block.norm) if sandwich else None,
    )
    feed_forward = FeedForward(
        up=f"{at}.ffn.up",
        down=f"{at}.ffn.down",
        gate=f"{at}.ffn.gate" if forward.gated else None,
        bias=forward.bias,
        activation=forward.activation,
        norm=_norm(f"{at}.ffn.down.norm", block.norm) if sandwich else None,
    )
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


@cache
def _distances(buckets: Buckets) -> Distances:
    return Distances("attention.buckets", tuple(distance_buckets(buckets).tolist()))


def _norm(name: str, norm: SpecNorm, *, keeps_x: bool = False) -> Norm:
    return Norm(name, norm.eps, norm.bias, keeps_x, norm.kind == "rms_norm")
