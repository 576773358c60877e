"""One spec, and engines that say by a field's name what they cannot do."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from kosine.bundle.tensorfile import TensorEntry
from kosine.errors import UnsupportedCheckpoint
from kosine.spec import Dense, EncoderSpec, Heads, Norm
from kosine.spec_fields import leaves, unsupported
from kosine_export.graph.block import RUNS
from kosine_export.graph.packed import packed_graph
from kosine_export.graph.padded import model_graph
from specs import spec_of_sizes

EQUAL = spec_of_sizes(layers=2, dense=(Dense(32, 8, True, "tanh", False),))
NORMED = dataclasses.replace(
    EQUAL.layers[0],
    attention=dataclasses.replace(
        EQUAL.layers[0].attention, query_key_norm=Norm("rms_norm", 1e-6, bias=False)
    ),
)
SPEC = dataclasses.replace(
    EQUAL,
    layers=(NORMED,) * 2,
    final_norm=Norm("layer_norm", 1e-5, bias=False),
    heads=Heads(sparse=True, multi=8),
)
# Sizes that every engine takes as they come, and what engines do not look at.
FREE = {
    "family", "hidden_size", "normalize", "pooling.include_prompt", "embeddings.vocab_size",
    "embeddings.norm.bias", "layers.norm.bias", "layers.attention_norm", "layers.attention.bias",
    "layers.attention.rope_theta", "layers.attention.rope_divisor", "layers.attention.buckets",
    "layers.attention.causal", "layers.attention.num_key_value_heads",
    "layers.attention.query_key_norm.eps", "layers.attention.query_key_norm.bias",
    "layers.attention.window", "layers.feed_forward.gated",
    "layers.feed_forward.bias", "final_norm.eps", "final_norm.bias", "embeddings.size",
    "embeddings.token_types", "embeddings.positions.rows",
    "embeddings.positions.pad_id", "embeddings.norm.eps", "layers.norm.eps",
    "layers.attention.num_heads", "layers.attention.head_size",
    "layers.feed_forward.intermediate_size", "dense.in_features", "dense.out_features",
    "dense.bias", "dense.use_residual", "heads.sparse", "heads.multi",
}  # fmt: skip
# The last layer differs from what engines run.
UNKNOWN = {
    "norm_placement": "around",
    "norm.kind": "batch_norm",
    "attention.query_key_norm.kind": "batch_norm",
    "attention.positions": "alibi",
    "feed_forward.activation": "relu",
}


def replaced(value: Any, path: str, new: object) -> Any:
    name, _, rest = path.partition(".")
    part = replaced(getattr(value, name), rest, new) if rest else new
    return dataclasses.replace(value, **{name: part})


def with_last_layer(path: str, new: object) -> EncoderSpec:
    last = replaced(SPEC.layers[-1], path, new)
    return dataclasses.replace(SPEC, layers=(*SPEC.layers[:-1], last))


def test_leaves_name_every_value_by_its_place() -> None:
    found = {where: value for where, _, value, _ in leaves(SPEC)}
    assert found["layers[1].attention.num_heads"] == 2
    assert found["layers[0].attention.window"] is None
    assert found["embeddings.positions.rule"] == "absolute"
    assert found["dense[0].activation"] == "tanh"
    assert "dense" not in found


def test_every_field_is_free_or_stated_by_the_graphs() -> None:
    """A new field must be lowered, or refused by its name, before any engine sees it."""
    assert {path for _, path, _, _ in leaves(SPEC)} == FREE | set(RUNS)
    assert not FREE & set(RUNS)


@pytest.mark.parametrize("path", UNKNOWN)
def test_graphs_refuse_by_the_name_of_the_field(path: str) -> None:
    entries: dict[str, TensorEntry] = {}
    spec = with_last_layer(path, UNKNOWN[path])
    for write in (
        lambda: packed_graph(spec, entries, max_tokens=64),
        lambda: model_graph(spec, entries),
    ):
        with pytest.raises(UnsupportedCheckpoint) as caught:
            write()
        assert f"layers[1].{path} is {UNKNOWN[path]!r}" in str(caught.value)


def test_what_may_stand_there_is_said() -> None:
    runs = {
        "layers.attention.head_size": range(16, 129, 16),
        "layers.attention.num_key_value_heads": "num_heads",
        **RUNS,
    }
    assert unsupported(SPEC, runs) is None
    odd = with_last_layer("attention.head_size", 24)
    assert unsupported(odd, runs) == (
        "layers[1].attention.head_size is 24",
        "it runs multiples of 16 from 16 to 128",
    )
    shared = with_last_layer("attention.num_key_value_heads", 1)
    assert unsupported(shared, runs) == (
        "layers[1].attention.num_key_value_heads is 1",
        "num_heads, 2, is needed",
    )
    runs = {**RUNS, "layers.attention.window": (None,)}
    assert unsupported(with_last_layer("attention.window", np.int64(3)), runs) == (
        "layers[1].attention.window is np.int64(3)",
        "it runs None",
    )
