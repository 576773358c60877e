"""ModernBERT's tensors and config, of seeded random weights: see `models`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["WINDOW", "config", "random_weights", "sees_all"]

WINDOW = 128  # `local_attention`: tokens that a local layer sees, half to each side
EVERY = 3  # of these layers one sees all

Tensor = NDArray[np.float32]


class Shape(Protocol):
    """What a `models.ModelSize` says."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def position_rows(self) -> int: ...


def sees_all(layer: int) -> bool:
    return layer % EVERY == 0


def random_weights(size: Shape, normal: Callable[..., Tensor]) -> Iterator[tuple[str, Tensor]]:
    """`normal(*shape, std=0.02)` draws; rows of linear layers keep unit variance."""
    hidden, inner = size.hidden, size.intermediate
    yield "embeddings.tok_embeddings.weight", normal(size.vocab_size, hidden)
    yield "embeddings.norm.weight", 1 + normal(hidden)
    for i in range(size.layers):
        if i:
            yield f"layers.{i}.attn_norm.weight", 1 + normal(hidden)
        for name, depth, columns in (
            ("attn.Wqkv", hidden, 3 * hidden),
            ("attn.Wo", hidden, hidden),
            ("mlp.Wi", hidden, 2 * inner),
            ("mlp.Wo", inner, hidden),
        ):
            yield f"layers.{i}.{name}.weight", normal(columns, depth, std=depth**-0.5)
        yield f"layers.{i}.mlp_norm.weight", 1 + normal(hidden)
    yield "final_norm.weight", 1 + normal(hidden)


def config(size: Shape) -> dict[str, Any]:
    """As the published checkpoints state it."""
    return {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "attention_bias": False,
        "global_attn_every_n_layers": EVERY,
        "global_rope_theta": 160000.0,
        "hidden_activation": "gelu",
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "local_attention": WINDOW,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": size.position_rows,
        "mlp_bias": False,
        "norm_bias": False,
        "norm_eps": 1e-5,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "pad_token_id": 1,
        "tokenizer_class": "BertTokenizer",
        "torch_dtype": "float32",
        "vocab_size": size.vocab_size,
    }
