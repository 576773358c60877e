"""GTE, published as NewModel and as GteModel: BERT's norms, rotary positions, a gated feed-forward.

Its checkpoints bring Python of their own, which is never run: what is computed is read from
config.json. transformers has the class since 5, under the model type "gte", and takes the older
spellings of the tensors.

    NewModel                             transformers 5
    encoder.layer.N.attention.qkv_proj   layers.N.self_attn.{q,k,v}_proj, or the three apart
    encoder.layer.N.attention.o_proj     layers.N.self_attn.o_proj
    encoder.layer.N.attn_ln              layers.N.post_attention_layernorm
    encoder.layer.N.mlp.up_gate_proj     layers.N.mlp.up_proj, layers.N.mlp.gate_proj
    encoder.layer.N.mlp.down_proj        layers.N.mlp.down_proj
    encoder.layer.N.mlp_ln               layers.N.post_mlp_layernorm

What GTE calls the gate goes through GELU, which is `up` here. Only the way down has a bias, so the
others are zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

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
from kosine_export.families.reader import Reader, named
from kosine_export.families.rope import rotary
from kosine_export.families.values import integer, layer_count, ratio, refuse_other_models
from kosine_export.files.folder import without_nulls
from kosine_export.files.weights import Float32

__all__ = ["GTE"]

# transformers' GteConfig. Nobody but the code in the checkpoint knows those of "new".
DEFAULTS: Mapping[str, int] = {
    "vocab_size": 250048,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 8192,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
THETA = 160_000.0
EPS = 1e-12
# What NewModel may do otherwise, by config key, and what is computed.
PLAIN: Mapping[str, object] = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
}


def spec(stated: Mapping[str, Any]) -> EncoderSpec:
    config = without_nulls(stated)
    refuse_other_models(config, "hidden_act")
    for key, plain in PLAIN.items():
        if config.get(key, plain) != plain:
            raise UnsupportedCheckpoint(
                f"config.json: {key} is {config[key]!r}",
                limit=f"{plain} is supported",
                remedy="use a checkpoint trained with it",
            )
    new = config.get("model_type") == "new"

    def size(key: str, minimum: int = 1) -> int:
        value = config.get(key, None if new and key != "pad_token_id" else DEFAULTS[key])
        return integer(key, value, minimum=minimum)

    hidden_size, num_heads = size("hidden_size"), size("num_attention_heads")
    if hidden_size % num_heads:
        raise CorruptCheckpoint(
            f"config.json: hidden_size {hidden_size} is not a multiple of {num_heads} heads"
        )
    head_size = hidden_size // num_heads
    known = ("default", "ntk") if new else ("default", "linear")
    theta, divisor = rotary(config, None if new else THETA, head_size=head_size, known=known)
    norm = Norm("layer_norm", ratio("layer_norm_eps", config.get("layer_norm_eps", EPS)), bias=True)
    block = Block(
        norm_placement="post",
        norm=norm,
        attention_norm=True,
        attention=Attention(
            num_heads=num_heads,
            num_key_value_heads=num_heads,
            head_size=head_size,
            positions="rope",
            rope_theta=theta,
            buckets=None,
            window=None,
            bias=True,
            rope_divisor=divisor,
        ),
        feed_forward=FeedForward(size("intermediate_size"), "gelu", gated=True, bias=True),
    )
    return EncoderSpec(
        family="gte",
        hidden_size=hidden_size,
        embeddings=Embeddings(
            vocab_size=size("vocab_size"),
            size=hidden_size,
            positions=Positions("none", size("max_position_embeddings"), size("pad_token_id", 0)),
            token_types=size("type_vocab_size", 0),
            norm=norm,
        ),
        layers=(block,) * layer_count(size("num_hidden_layers")),
        final_norm=None,
        pooling=Pooling(("mean",), include_prompt=True),
        dense=(),
        normalize=False,
    )


def tensors(spec: EncoderSpec, reader: Reader) -> Iterator[tuple[str, Float32]]:
    sizes, hidden = spec.embeddings, spec.hidden_size
    words = reader.read("embeddings.word_embeddings.weight", (sizes.vocab_size, hidden))
    yield "embeddings.word.weight", words
    if sizes.token_types:
        types = reader.read("embeddings.token_type_embeddings.weight", (sizes.token_types, hidden))
        yield "embeddings.token_type.weight", types
    yield from named("embeddings.norm", reader.norm("embeddings.LayerNorm", hidden))
    for number, block in enumerate(spec.layers):
        yield from _layer(reader, number, hidden, block.feed_forward.intermediate_size)


def _layer(reader: Reader, number: int, hidden: int, inner: int) -> Iterator[tuple[str, Float32]]:
    to = f"layers.{number}"
    at, attention, norms = f"encoder.layer.{number}", "attention", ("attn_ln", "mlp_ln")
    if reader.has(f"{to}.self_attn.q_proj.weight"):
        at, attention = to, "self_attn"
        norms = "post_attention_layernorm", "post_mlp_layernorm"
    if reader.has(f"{at}.{attention}.qkv_proj.weight"):
        qkv = reader.linear(f"{at}.{attention}.qkv_proj", hidden, 3 * hidden)
    else:
        parts = [reader.linear(f"{at}.{attention}.{x}_proj", hidden, hidden) for x in "qkv"]
        qkv = [np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)]
    yield from named(f"{to}.attention.qkv", qkv)
    output = reader.linear(f"{at}.{attention}.o_proj", hidden, hidden)
    yield from named(f"{to}.attention.output", output)
    yield from named(f"{to}.attention.norm", reader.norm(f"{at}.{norms[0]}", hidden))
    if reader.has(f"{at}.mlp.up_gate_proj.weight"):
        (both,) = reader.linear(f"{at}.mlp.up_gate_proj", hidden, 2 * inner, bias=False)
        plain, activated = (np.ascontiguousarray(half) for half in np.split(both, 2, axis=1))
    else:
        plain, activated = (
            reader.linear(f"{at}.mlp.{name}_proj", hidden, inner, bias=False)[0]
            for name in ("up", "gate")
        )
    nothing = np.zeros(inner, np.float32)
    yield from named(f"{to}.ffn.up", [activated, nothing])
    yield from named(f"{to}.ffn.gate", [plain, nothing])
    yield from named(f"{to}.ffn.down", reader.linear(f"{at}.mlp.down_proj", inner, hidden))
    yield from named(f"{to}.ffn.norm", reader.norm(f"{at}.{norms[1]}", hidden))


def as_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's config as that of transformers' GteModel."""
    encoder = spec(config).layers[0].attention
    stated = ("auto_map", "rope_theta", "rope_scaling")
    return {
        **{key: value for key, value in config.items() if key not in stated},
        "model_type": "gte",
        "architectures": ["GteModel"],
        "rope_parameters": {
            "rope_type": "linear",
            "rope_theta": encoder.rope_theta,
            "factor": encoder.rope_divisor,
        },
    }


GTE = Family(
    name="gte",
    model_class="GteModel",
    class_prefixes={"NewModel": "new", "GteModel": "gte"},
    code_classes=frozenset({"NewModel", "GteModel"}),
    defaults={"new": DEFAULTS, "gte": DEFAULTS},
    block=None,
    tokenizer_class="XLMRobertaTokenizer",
    position_rule="none",
    parts=("embeddings.", "encoder.", "layers."),
    spec=spec,
    tensors=tensors,
    as_transformers=as_transformers,
)
