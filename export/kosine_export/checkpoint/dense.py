"""Dense modules, which come after the pooling: config and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine.spec import Dense
from kosine_export.files.folder import read_object, without_nulls
from kosine_export.files.weights import Float32, Weights

__all__ = ["dense_tensors", "read_dense", "require_sentence_embedding"]

Activation = Literal["identity", "tanh", "relu", "gelu", "sigmoid"]
ACTIVATIONS: Mapping[str, Activation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
}
TORCH_MODULES = ("torch.nn.", "torch.nn.modules.activation.", "torch.nn.modules.linear.")


def read_dense(folder: Path) -> Dense:
    """A Dense module's config; its weights are read elsewhere."""
    path = folder / "config.json"
    config = without_nulls(read_object(path))
    require_sentence_embedding(config, "Dense")
    sizes = {}
    for key in ("in_features", "out_features"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CorruptCheckpoint(f"{folder.name}/config.json: {key} is {value!r}")
        sizes[key] = value
    bias, residual = config.get("bias", True), config.get("use_residual", False)
    if not isinstance(bias, bool) or not isinstance(residual, bool):
        raise CorruptCheckpoint(
            f"{folder.name}/config.json: bias is {bias!r} and use_residual is {residual!r}"
        )
    if residual and sizes["in_features"] != sizes["out_features"]:
        raise UnsupportedCheckpoint(
            f"a Dense from {sizes['in_features']} to {sizes['out_features']} with use_residual",
            limit="a residual is supported where both sizes are equal",
            remedy="use a checkpoint without it",
        )
    dotted = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    prefix, _, name = dotted.rpartition(".")
    if f"{prefix}." not in TORCH_MODULES or name not in ACTIVATIONS:
        raise UnsupportedCheckpoint(
            f"Dense activation {dotted!r}",
            limit=f"torch's {', '.join(ACTIVATIONS)} are supported",
            remedy="use a checkpoint with one of those",
        )
    return Dense(
        in_features=sizes["in_features"],
        out_features=sizes["out_features"],
        bias=bias,
        activation=ACTIVATIONS[name],
        use_residual=residual,
    )


def dense_tensors(index: int, dense: Dense, weights: Weights, name: str) -> dict[str, Float32]:
    """A Dense module's weights, (in, out) and (out,)."""
    expected: dict[str, tuple[int, ...]] = {
        "linear.weight": (dense.out_features, dense.in_features)
    }
    if dense.bias:
        expected["linear.bias"] = (dense.out_features,)
    if weights.shapes() != expected:
        raise CorruptCheckpoint(
            f"{name} holds {dict(weights.shapes())}",
            limit=f"its config asks for {expected}",
            remedy="check that the Dense module's config and weights belong together",
        )
    tensors = {f"dense.{index}.weight": np.ascontiguousarray(weights.read("linear.weight").T)}
    if dense.bias:
        tensors[f"dense.{index}.bias"] = weights.read("linear.bias")
    return tensors


def require_sentence_embedding(config: Mapping[str, Any], module: str) -> None:
    """Refuse a module that works on tokens, or writes its result elsewhere."""
    for key in ("module_input_name", "module_output_name"):
        name = config.get(key)
        if name not in (None, "sentence_embedding"):
            raise UnsupportedCheckpoint(
                f"{module} with {key} {name!r}",
                limit="modules after the pooling work on sentence_embedding",
                remedy="use a checkpoint that does",
            )
