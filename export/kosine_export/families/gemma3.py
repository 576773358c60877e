"""Gemma 3's text model, as EmbeddingGemma is: it sees to both sides.

RMSNorm before and after each sublayer and on each head of q and k, with gains that are stated as
what they exceed 1 by; rotary positions with a theta for whole and one for local layers; word
embeddings times the root of their width. The defaults are those of transformers'
Gemma3TextConfig. With `use_bidirectional_attention` a local layer sees those at most
`sliding_window // 2` away; without it, itself and the `sliding_window - 1` tokens before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from kosine.errors import UnsupportedCheckpoint
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

__all__ = ["GEMMA3"]

DEFAULTS: Mapping[str, int] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "pad_token_id": 0,
}
WHOLE, LOCAL = "full_attention", "sliding_attention"
THETAS: Mapping[str, tuple[str, float]] = {
    WHOLE: ("rope_theta", 1_000_000.0),
    LOCAL: ("rope_local_base_freq", 10_000.0),
}
NORMS = {
    "attention.norm": "input_layernorm",
    "attention.output.norm": "post_attention_layernorm",
    "ffn.norm": "pre_feedforward_layernorm",
    "ffn.down.norm": "post_feedforward_layernorm",
}


def spec(stated: Mapping[str, Any]) -> EncoderSpec:
    config = without_nulls(stated)
    wanted = ("gelu_pytorch_tanh",)
    refuse_other_models(config, "hidden_activation", wanted, ", the form with tanh, is")
    if "attn_logit_softcapping" in config:
        raise UnsupportedCheckpoint(
            f"config.json: attn_logit_softcapping is {config['attn_logit_softcapping']!r}",
            limit="scores that are not capped are supported",
            remedy="use a checkpoint without it",
        )

    def size(key: str, minimum: int = 1) -> int:
        return integer(key, config.get(key, DEFAULTS[key]), minimum=minimum)

    num_heads, head_size = size("num_attention_heads"), size("head_dim")
    if size("query_pre_attn_scalar") != head_size:
        raise UnsupportedCheckpoint(
            f"config.json: query_pre_attn_scalar is {size('query_pre_attn_scalar')}",
            limit=f"scores are divided by the root of head_dim, {head_size}",
            remedy="use a checkpoint where the two are equal",
        )
    count, every = layer_count(size("num_hidden_layers")), size("sliding_window_pattern")
    pattern = [LOCAL if (number + 1) % every else WHOLE for number in range(count)]
    key = "use_bidirectional_attention"
    causal = not flag(key, config.get(key, False))
    window = size("sliding_window")
    norm = Norm("rms_norm", ratio("rms_norm_eps", config.get("rms_norm_eps", 1e-6)), bias=False)
    forward = FeedForward(size("intermediate_size"), "gelu_tanh", gated=True, bias=False)
    blocks = []
    for kind in layer_types(config, count, tuple(THETAS), pattern):
        older, default = THETAS[kind]
        theta, divisor = rotary(
            config, default, head_size=head_size, kind=kind, older=older, scaled=kind == WHOLE
        )
        attention = Attention(
            num_heads=num_heads,
            num_key_value_heads=shared_heads(stated, num_heads, DEFAULTS),
            head_size=head_size,
            positions="rope",
            rope_theta=theta,
            buckets=None,
            window=None if kind == WHOLE else window - 1 if causal else window // 2,
            bias=flag("attention_bias", config.get("attention_bias", False)),
            rope_divisor=divisor,
            causal=causal,
            query_key_norm=norm,
        )
        blocks.append(Block("sandwich", norm, True, attention, forward))
    return EncoderSpec(
        family="gemma3",
        hidden_size=size("hidden_size"),
        embeddings=Embeddings(
            vocab_size=size("vocab_size"),
            size=size("hidden_size"),
            positions=Positions("none", size("max_position_embeddings"), size("pad_token_id", 0)),
            token_types=0,
            norm=None,
        ),
        layers=tuple(blocks),
        final_norm=norm,
        pooling=Pooling(("mean",), include_prompt=True),
        dense=(),
        normalize=False,
    )


def tensors(spec: EncoderSpec, reader: Reader) -> Iterator[tuple[str, Float32]]:
    scale = math.sqrt(spec.hidden_size)
    return decoder_tensors(spec, reader, NORMS, gain=lambda weight: 1 + weight, word_scale=scale)


GEMMA3 = Family(
    name="gemma3",
    model_class="Gemma3TextModel",
    class_prefixes={"Gemma3TextModel": "gemma3_text"},
    defaults={"gemma3_text": DEFAULTS},
    block=None,
    tokenizer_class="GemmaTokenizer",
    has_token_types=False,
    position_rule="none",
    word_embeddings=WORDS,
    parts=PARTS,
    spec=spec,
    tensors=tensors,
)
