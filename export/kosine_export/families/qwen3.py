"""Qwen3: a decoder whose last token stands for the text.

RMSNorm before the sublayers and on each head of q and k, rotary positions, heads of k and v that
several of q share, SwiGLU, and no token that sees a later one. The defaults are those of
transformers' Qwen3Config. A layer of the type "sliding_attention" sees itself and the
`sliding_window - 1` tokens before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
from kosine_export.families.decoder import PARTS, WORDS, decoder_tensors, shared_heads
from kosine_export.families.family import Family
from kosine_export.families.reader import Reader
from kosine_export.families.rope import rotary
from kosine_export.families.values import (
    flag,
    integer,
    layer_count,
    layer_types,
    ratio,
    refuse_other_models,
)
from kosine_export.files.folder import without_nulls
from kosine_export.files.weights import Float32

__all__ = ["QWEN3"]

DEFAULTS: Mapping[str, int] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "pad_token_id": 0,
}
THETA = 10_000.0
WHOLE, LOCAL = "full_attention", "sliding_attention"
NORMS = {"attention.norm": "input_layernorm", "ffn.norm": "post_attention_layernorm"}


def spec(stated: Mapping[str, Any]) -> EncoderSpec:
    config = without_nulls(stated)
    refuse_other_models(config, "hidden_act", ("silu",), ", that of SwiGLU, is")

    def size(key: str, minimum: int = 1) -> int:
        return integer(key, config.get(key, DEFAULTS[key]), minimum=minimum)

    num_heads, head_size = size("num_attention_heads"), size("head_dim")
    count = layer_count(size("num_hidden_layers"))
    windows: dict[str, int | None] = {WHOLE: None}
    first = count  # of the layers with a window
    if flag("use_sliding_window", config.get("use_sliding_window", False)):
        windows[LOCAL] = size("sliding_window") - 1
        first = size("max_window_layers", 0)
    pattern = [WHOLE if number < first else LOCAL for number in range(count)]
    theta, divisor = rotary(config, THETA, head_size=head_size)
    norm = Norm("rms_norm", ratio("rms_norm_eps", config.get("rms_norm_eps", 1e-6)), bias=False)
    forward = FeedForward(size("intermediate_size"), "silu", gated=True, bias=False)
    blocks = tuple(
        Block(
            norm_placement="pre",
            norm=norm,
            attention_norm=True,
            attention=Attention(
                num_heads=num_heads,
                num_key_value_heads=shared_heads(stated, num_heads, DEFAULTS),
                head_size=head_size,
                positions="rope",
                rope_theta=theta,
                buckets=None,
                window=windows[kind],
                bias=flag("attention_bias", config.get("attention_bias", False)),
                rope_divisor=divisor,
                causal=flag("is_causal", config.get("is_causal", True)),
                query_key_norm=norm,
            ),
            feed_forward=forward,
        )
        for kind in layer_types(config, count, tuple(windows), pattern)
    )
    return EncoderSpec(
        family="qwen3",
        hidden_size=size("hidden_size"),
        embeddings=Embeddings(
            vocab_size=size("vocab_size"),
            size=size("hidden_size"),
            positions=Positions("none", size("max_position_embeddings"), size("pad_token_id", 0)),
            token_types=0,
            norm=None,
        ),
        layers=blocks,
        final_norm=norm,
        pooling=Pooling(("mean",), include_prompt=True),
        dense=(),
        normalize=False,
    )


def tensors(spec: EncoderSpec, reader: Reader) -> Iterator[tuple[str, Float32]]:
    return decoder_tensors(spec, reader, NORMS)


QWEN3 = Family(
    name="qwen3",
    model_class="Qwen3Model",
    class_prefixes={"Qwen3Model": "qwen3", "Qwen3ForCausalLM": "qwen3"},
    defaults={"qwen3": DEFAULTS},
    block=None,
    tokenizer_class="Qwen2Tokenizer",
    has_token_types=False,
    position_rule="none",
    word_embeddings=WORDS,
    parts=PARTS,
    spec=spec,
    tensors=tensors,
)
