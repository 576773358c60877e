"""The onnxruntime package, and the graphs of a bundle that it runs."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kosine.bundle import Bundle
from kosine.bundle.folder import Graph
from kosine.errors import MissingExtra, MissingTarget

__all__ = ["QUIET", "external_values", "import_onnxruntime", "packed_graph", "probe"]

GRAPHS = {"float32": ("packed.onnx", "onnx"), "float16": ("fp16/packed.onnx", "onnx-fp16")}
QUIET = 3  # ONNX Runtime's severity "error": its warnings concern its own optimiser


def probe(bundle: Bundle, dtype: str) -> None:
    """Raise what keeps an engine from being made, as far as that shows without making one."""
    _check_onnxruntime()
    _graph_name(bundle, dtype)


def external_values(graph: Graph) -> dict[str, Any]:
    """The tensors of a graph that lie in the weights file, as ONNX Runtime's values, not copied."""
    make = import_onnxruntime().OrtValue.ortvalue_from_numpy
    return {name: make(tensor) for name, tensor in graph.tensors.items()}


def packed_graph(bundle: Bundle, dtype: str) -> Graph:
    """The packed graph of a dtype, after it was judged; MissingTarget where there is none."""
    return bundle.graph(_graph_name(bundle, dtype))


def _graph_name(bundle: Bundle, dtype: str) -> str:
    graph, target = GRAPHS[dtype]
    if not bundle.has(graph):
        raise MissingTarget(
            f"the bundle has no {graph}",
            limit=f"its targets: {', '.join(bundle.manifest.targets)}",
            remedy=f"export it again with --target {target}",
        )
    return graph


def import_onnxruntime() -> Any:
    """The onnxruntime module, or the error that says how to get it."""
    _check_onnxruntime()
    # Its telemetry thread, started on import, would be lost in a fork, and asks nobody first.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _check_onnxruntime() -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra(
            "backend 'onnx' needs onnxruntime, which is not installed",
            remedy="pip install 'kosine[onnx]'",
        )
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(installed) == 2:
        raise MissingExtra(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite one another",
            limit="exactly one of them",
            remedy="pip uninstall both, then pip install 'kosine[onnx]' or 'kosine[gpu]'",
        )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
