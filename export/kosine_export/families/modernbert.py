"""ModernBERT: norms before the sublayers, rotary positions, windows, a gated feed-forward.

The defaults are those of transformers' ModernBertConfig. Rotary positions are stated as
`rope_parameters` by layer type since transformers 5, and before as `global_rope_theta` and
`local_rope_theta`; which layers see a window as `layer_types`, and before as
`global_attn_every_n_layers`. A token sees those at most `local_attention // 2` away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from kosine.errors import CorruptCheckpoint
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
from kosine_export.families.reader import Reader, named
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

__all__ = ["MODERNBERT"]

DEFAULTS: Mapping[str, int] = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
    "pad_token_id": 50283,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
}
ACTIVATIONS: Mapping[str, Literal["gelu", "gelu_tanh", "silu"]] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}
WHOLE, LOCAL = "full_attention", "sliding_attention"
THETAS: Mapping[str, tuple[str, float]] = {
    WHOLE: ("global_rope_theta", 160_000.0),
    LOCAL: ("local_rope_theta", 10_000.0),
}


def spec(stated: Mapping[str, Any]) -> EncoderSpec:
    config = without_nulls(stated)
    refuse_other_models(config, "hidden_activation", ACTIVATIONS, " are")

    def size(key: str, minimum: int = 1) -> int:
        return integer(key, config.get(key, DEFAULTS[key]), minimum=minimum)

    hidden_size, num_heads = size("hidden_size"), size("num_attention_heads")
    if hidden_size % num_heads:
        raise CorruptCheckpoint(
            f"config.json: hidden_size {hidden_size} is not a multiple of {num_heads} heads"
        )
    norm = Norm(
        "layer_norm",
        ratio("norm_eps", config.get("norm_eps", 1e-5)),
        flag("norm_bias", config.get("norm_bias", False)),
    )
    feed_forward = FeedForward(
        size("intermediate_size"),
        ACTIVATIONS[config.get("hidden_activation", "gelu")],
        gated=True,
        bias=flag("mlp_bias", config.get("mlp_bias", False)),
    )
    bias = flag("attention_bias", config.get("attention_bias", False))
    blocks = []
    count, every = layer_count(size("num_hidden_layers")), size("global_attn_every_n_layers")
    pattern = [LOCAL if number % every else WHOLE for number in range(count)]
    for number, kind in enumerate(layer_types(config, count, tuple(THETAS), pattern)):
        older, default = THETAS[kind]
        theta, _ = rotary(
            config,
            default,
            head_size=hidden_size // num_heads,
            kind=kind,
            older=older,
            known=("default",),
        )
        attention = Attention(
            num_heads=num_heads,
            num_key_value_heads=num_heads,
            head_size=hidden_size // num_heads,
            positions="rope",
            rope_theta=theta,
            buckets=None,
            window=size("local_attention") // 2 if kind == LOCAL else None,
            bias=bias,
        )
        blocks.append(Block("pre", norm, number > 0, attention, feed_forward))
    return EncoderSpec(
        family="modernbert",
        hidden_size=hidden_size,
        embeddings=Embeddings(
            vocab_size=size("vocab_size"),
            size=hidden_size,
            positions=Positions("none", size("max_position_embeddings"), size("pad_token_id", 0)),
            token_types=0,
            norm=norm,
        ),
        layers=tuple(blocks),
        final_norm=norm,
        pooling=Pooling(("mean",), include_prompt=True),
        dense=(),
        normalize=False,
    )


def tensors(spec: EncoderSpec, reader: Reader) -> Iterator[tuple[str, Float32]]:
    sizes, hidden = spec.embeddings, spec.hidden_size
    biased = spec.layers[0].norm.bias
    words = reader.read(MODERNBERT.word_embeddings, (sizes.vocab_size, hidden))
    yield "embeddings.word.weight", words
    yield from named("embeddings.norm", reader.norm("embeddings.norm", hidden, bias=biased))
    for number, block in enumerate(spec.layers):
        at = f"layers.{number}"
        attention, forward = block.attention, block.feed_forward
        width, inner = attention.width, forward.intermediate_size
        if block.attention_norm:
            norm = reader.norm(f"{at}.attn_norm", hidden, bias=biased)
            yield from named(f"{at}.attention.norm", norm)
        qkv = reader.linear(f"{at}.attn.Wqkv", hidden, 3 * width, bias=attention.bias)
        yield from named(f"{at}.attention.qkv", qkv)
        output = reader.linear(f"{at}.attn.Wo", width, hidden, bias=attention.bias)
        yield from named(f"{at}.attention.output", output)
        norm = reader.norm(f"{at}.mlp_norm", hidden, bias=biased)
        yield from named(f"{at}.ffn.norm", norm)
        both = reader.linear(f"{at}.mlp.Wi", hidden, 2 * inner, bias=forward.bias)
        for name, cut in (("up", slice(inner)), ("gate", slice(inner, None))):
            part = [np.ascontiguousarray(array[..., cut]) for array in both]
            yield from named(f"{at}.ffn.{name}", part)
        down = reader.linear(f"{at}.mlp.Wo", inner, hidden, bias=forward.bias)
        yield from named(f"{at}.ffn.down", down)
    yield from named("final.norm", reader.norm("final_norm", hidden, bias=biased))


MODERNBERT = Family(
    name="modernbert",
    model_class="ModernBertModel",
    class_prefixes={"ModernBert": "modernbert"},
    defaults={"modernbert": DEFAULTS},
    block=None,
    tokenizer_class="PreTrainedTokenizerFast",
    has_token_types=False,
    position_rule="none",
    word_embeddings="embeddings.tok_embeddings.weight",
    parts=("embeddings.", "layers.", "final_norm."),
    spec=spec,
    tensors=tensors,
)
