"""Tensors of decoders whose layers are spelled as Llama's: projections apart, norms of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kosine.errors import CorruptCheckpoint
from kosine.spec import EncoderSpec
from kosine_export.families.reader import Reader, named
from kosine_export.families.values import integer
from kosine_export.files.weights import Float32

__all__ = ["PARTS", "WORDS", "decoder_tensors", "shared_heads"]

WORDS = "embed_tokens.weight"
PARTS = ("embed_tokens.", "layers.", "norm.")


def shared_heads(config: Mapping[str, Any], num_heads: int, defaults: Mapping[str, int]) -> int:
    """Heads of k and v: as many as of q where the config says null."""
    key = "num_key_value_heads"
    stated = config.get(key, defaults[key])
    count = num_heads if stated is None else integer(key, stated)
    if num_heads % count:
        raise CorruptCheckpoint(
            f"config.json: {key} is {count}", limit=f"a divisor of {num_heads} heads is needed"
        )
    return count


def decoder_tensors(
    spec: EncoderSpec,
    reader: Reader,
    norms: Mapping[str, str],
    *,
    gain: Callable[[Float32], Float32] = np.asarray,
    word_scale: float = 1.0,
) -> Iterator[tuple[str, Float32]]:
    """The encoder's tensors.

    Args:
        norms: The checkpoint's names of a layer's norms, by ours.
        gain: What a norm's weight stands for.
        word_scale: What word embeddings are multiplied by, rounded to float32.
    """
    hidden = spec.hidden_size
    words = reader.read(WORDS, (spec.embeddings.vocab_size, hidden))
    yield "embeddings.word.weight", words * np.float32(word_scale)

    def norm(name: str, size: int) -> Float32:
        (weight,) = reader.norm(name, size, bias=False)
        return gain(weight)

    for number, block in enumerate(spec.layers):
        at, attention = f"layers.{number}", block.attention
        inner = block.feed_forward.intermediate_size
        own, size = f"{at}.self_attn", attention.head_size
        widths = {"q": attention.width, "k": attention.shared_width, "v": attention.shared_width}
        parts = [
            reader.linear(f"{own}.{name}_proj", hidden, width, bias=attention.bias)
            for name, width in widths.items()
        ]
        qkv = [np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)]
        yield from named(f"{at}.attention.qkv", qkv)
        yield f"{at}.attention.query.norm.weight", norm(f"{own}.q_norm", size)
        yield f"{at}.attention.key.norm.weight", norm(f"{own}.k_norm", size)
        output = reader.linear(f"{own}.o_proj", attention.width, hidden, bias=attention.bias)
        yield from named(f"{at}.attention.output", output)
        for ours, theirs in norms.items():
            yield f"{at}.{ours}.weight", norm(f"{at}.{theirs}", hidden)
        for ours, theirs in (("up", "gate_proj"), ("gate", "up_proj")):
            part = reader.linear(f"{at}.mlp.{theirs}", hidden, inner, bias=False)
            yield from named(f"{at}.ffn.{ours}", part)
        down = reader.linear(f"{at}.mlp.down_proj", inner, hidden, bias=False)
        yield from named(f"{at}.ffn.down", down)
    yield "final.norm.weight", norm("norm", hidden)
