"""The supported families as a page: what is read, what is computed, and what a config may not ask.

    python -m kosine_export.families.listing > docs/models.md

Nothing here is known twice: a row says what `read_config` makes of a family's defaults, and a
refusal is one that `read_config` raises.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from kosine.errors import KosineError
from kosine.spec import Attention, Block, EncoderSpec
from kosine_export.families.config import read_config
from kosine_export.families.family import Family
from kosine_export.families.registry import MODEL_TYPES

__all__ = ["page"]

HEAD = """\
# Models

Written by `python -m kosine_export.families.listing` from the registry of families; a test holds
the page to it.

A checkpoint is read from its config.json and its tensors. Code that a checkpoint brings is never
run, and what is not understood is refused by the name of its setting.
"""
FAMILIES = """\
## What is read

`model_type` is that of config.json. Heads may be up to 256 wide in the native engine, and k and v
may have fewer of them than q.

"""
COLUMNS = (
    "`model_type`",
    "transformers' class",
    "tokenizer, where none is stated",
    "positions",
    "norms",
    "feed-forward",
    "a token sees",
)
REFUSALS = """\
## What is refused

By its name, wherever config.json says so:

| setting | refused for |
|---|---|
"""
TAIL = """\
Any other `model_type` is refused, as is an `auto_map` of any class but {classes},
whose arithmetic config.json states.
"""
NORMS = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}
PLACES = {"post": "after", "pre": "before", "sandwich": "before and after"}
LEARNED = {"absolute": "a table", "roberta": "a table, counted from the pad id"}
# What "new" checkpoints must state, since nobody but their own code has a default.
STATED: Mapping[str, Any] = {"rope_theta": 10_000.0}
# Settings that change what is computed: one value of each that some family refuses.
SETTINGS: Mapping[str, Any] = {
    "is_decoder": True,
    "is_encoder_decoder": True,
    "add_cross_attention": True,
    "quantization_config": {"bits": 4},
    "pruned_heads": {"0": [1]},
    "position_embedding_type": "relative_key",
    "relative_attention_num_buckets": 64,
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "activation": "relu",
    "layer_norm_type": "rms_norm",
    "logn_attention_scale": True,
    "attn_logit_softcapping": 50.0,
    "query_pre_attn_scalar": 168,
    "layer_types": ["chunked_attention"],
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    "partial_rotary_factor": 0.5,
    "auto_map": {"AutoModel": "modeling.CustomModel"},
}


def page() -> str:
    """The whole page, in Markdown."""
    table = [COLUMNS, ["---"] * len(COLUMNS), *(_row(*item) for item in MODEL_TYPES.items())]
    rows = "".join(f"| {' | '.join(row)} |\n" for row in table)
    refused = "".join(f"| `{name}` {_shown(name)}| {who} |\n" for name, who in _refusals())
    classes = sorted(set().union(*(family.code_classes for family in MODEL_TYPES.values())))
    tail = TAIL.format(classes=" and ".join(classes))
    return "\n".join([HEAD, FAMILIES + rows, REFUSALS + refused, tail]).rstrip("\n") + "\n"


def _config(model_type: str, family: Family) -> dict[str, Any]:
    stated = {} if family.as_transformers is None else STATED
    return {"model_type": model_type, **family.defaults[model_type], **stated}


def _row(model_type: str, family: Family) -> list[str]:
    spec = read_config(_config(model_type, family))
    block = spec.layers[-1]
    tokenizer = family.tokenizer_classes.get(model_type, family.tokenizer_class)
    return [
        f"`{model_type}`",
        family.model_class,
        tokenizer,
        _positions(spec, block.attention),
        _norms(block),
        _feed_forward(block),
        _sight(spec),
    ]


def _positions(spec: EncoderSpec, attention: Attention) -> str:
    learned = LEARNED.get(spec.embeddings.positions.rule)
    turned = {"rope": "rotary", "buckets": "buckets of distances"}.get(attention.positions)
    return " and ".join(part for part in (learned, turned) if part)


def _norms(block: Block) -> str:
    heads = ", and of heads of q and k" if block.attention.query_key_norm else ""
    return f"{NORMS[block.norm.kind]} {PLACES[block.norm_placement]} each sublayer{heads}"


def _feed_forward(block: Block) -> str:
    forward = block.feed_forward
    name = {"gelu": "GELU", "gelu_tanh": "GELU (tanh)", "silu": "SiLU"}[forward.activation]
    return f"{name}, gated" if forward.gated else name


def _sight(spec: EncoderSpec) -> str:
    seen = {(layer.attention.window is not None, layer.attention.causal) for layer in spec.layers}
    parts = []
    if any(not local for local, _ in seen):
        parts.append("all")
    if any(local for local, _ in seen):
        parts.append("a window in some layers")
    causal = "; by default none that follow" if any(c for _, c in seen) else ""
    return f"{'; '.join(parts)}{causal}"


def _refusals() -> Iterator[tuple[str, str]]:
    """Each setting, and the model types whose configs may not have it."""
    for name, value in SETTINGS.items():
        found = [
            model_type
            for model_type, family in MODEL_TYPES.items()
            if _refused({**_config(model_type, family), name: value})
        ]
        everyone = len(found) == len(MODEL_TYPES)
        yield name, "all" if everyone else ", ".join(f"`{each}`" for each in found)


def _refused(config: Mapping[str, Any]) -> bool:
    try:
        read_config(config)
    except KosineError:
        return True
    return False


def _shown(name: str) -> str:
    """The setting's value, where one alone is meant."""
    value = SETTINGS[name]
    if isinstance(value, dict):
        value = value.get("rope_type")
    return "" if value is None or name in ("layer_types",) else f"such as `{value}` "


if __name__ == "__main__":
    sys.stdout.write(page())
