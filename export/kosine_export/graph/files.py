"""The graphs as files of a bundle, and the weights that a float16 graph reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kosine.bundle.tensorfile import TensorEntry
from kosine.spec import EncoderSpec
from kosine_export.graph.packed import packed_graph
from kosine_export.graph.padded import model_graph

__all__ = ["WEIGHTS", "to_half", "write_graphs"]

WEIGHTS = "weights.safetensors"


def write_graphs(
    folder: Path,
    spec: EncoderSpec,
    entries: Mapping[str, TensorEntry],
    precision: str,
    *,
    max_tokens: int,
) -> None:
    """Write `packed.onnx` and `model.onnx` beside the weights, and have onnx check them."""
    packed, _ = packed_graph(spec, entries, max_tokens=max_tokens, precision=precision)
    model = model_graph(spec, entries, precision=precision)
    for name, graph in (("packed.onnx", packed), ("model.onnx", model)):
        path = folder / name
        path.write_bytes(graph.SerializeToString())
        onnx.checker.check_model(str(path), full_check=True)


def to_half(name: str, tensor: NDArray[np.float32]) -> NDArray[Any]:
    """float16, but for what the float32 islands read: LayerNorm's numbers and Dense modules."""
    island = ".norm." in name or name.startswith("dense.")
    return tensor if island else tensor.astype(np.float16)
