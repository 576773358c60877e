"""`packed.onnx`: rows that several sentences share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from kosine.bundle.tensorfile import TensorEntry
from kosine.spec import EncoderSpec
from kosine_export.graph.block import Sight, embed, layers, reads_places, require_supported
from kosine_export.graph.emit import Graph
from kosine_export.graph.pooling import pool_packed, unit_vectors

__all__ = ["QUERY_BLOCK", "packed_graph"]

OPSET = 17
OPSET_MAX_POOL = 18  # ScatterND with reduction="max"
QUERY_BLOCK = 1024


def packed_graph(
    spec: EncoderSpec,
    entries: Mapping[str, TensorEntry],
    *,
    max_tokens: int,
    location: str = "weights.safetensors",
    precision: str = "float32",
    shadow: bool = False,
) -> tuple[onnx.ModelProto, list[str]]:
    """The packed-rows graph for texts of up to `max_tokens`, and the names of its float16
    activations.

    With heads that read tokens the float32 graph gives these too, as `last_hidden_state`.

    Symbolic sizes: rows R, width S, slots K, sentences n.
    """
    require_supported(spec)
    opset = OPSET_MAX_POOL if "max" in spec.pooling.modes else OPSET
    g = Graph(entries, location, precision, shadow=shadow, opset=opset)
    words = g.op("Gather", g.weight("embeddings.word.weight"), "input_ids", half=True)
    rows = types = None
    if spec.embeddings.positions.rule != "none":
        rows = g.op("Gather", g.weight("embeddings.position.weight"), "position_ids", half=True)
    if spec.embeddings.token_types:
        row = g.ints("zero", 0)
        types = g.op("Gather", g.weight("embeddings.token_type.weight"), row, half=True)
    x = embed(g, spec, words, rows, types)

    # (R, 1, S, 1) against (R, 1, 1, S): attention stays inside equal segment ids.
    own = g.op("Unsqueeze", "segment_ids", g.ints("axes_1_3", [1, 3]))
    other = g.op("Unsqueeze", "segment_ids", g.ints("axes_1_2", [1, 2]))
    edges = _query_edges(max_tokens) if precision == "float32" else []
    allowed = [g.op("Equal", block, other) for block in g.cut(own, edges)]
    asked = reads_places(spec)
    x = layers(g, spec, x, Sight(g, allowed, "places" if asked else None, edges))
    pooled, read = pool_packed(g, spec, x)
    rectangles = ["input_ids", "position_ids", "segment_ids"]
    if rows is None:
        rectangles.remove("position_ids")
    if asked:
        rectangles.append("places")
    shapes = dict.fromkeys(rectangles, ("rows", "width")) | read
    inputs: list[tuple[str, Sequence[str | int]]] = list(shapes.items())
    vectors, norms = unit_vectors(g, spec, pooled)
    outputs: list[tuple[str, str, Sequence[str | int]]] = [
        ("vectors", vectors, ["sentences", spec.dim]),
        ("norms", norms, ["sentences"]),
    ]
    if spec.heads is not None and precision == "float32":
        outputs.append(("last_hidden_state", x, ["rows", "width", spec.hidden_size]))
    model = g.build("kosine_packed", inputs, outputs)
    return model, g.half_outputs


def _query_edges(max_tokens: int) -> list[int]:
    """Where queries are cut into blocks; nothing where one block holds them all."""
    if max_tokens <= QUERY_BLOCK:
        return []
    return list(range(0, max_tokens + QUERY_BLOCK, QUERY_BLOCK))
