"""`model.onnx`: padded rectangles, as other tools feed them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from kosine.bundle.tensorfile import TensorEntry
from kosine.spec import EncoderSpec
from kosine_export.graph.block import Sight, embed, layers, reads_places, require_supported
from kosine_export.graph.emit import Graph
from kosine_export.graph.pooling import columns, first, pool_padded, unit_vectors

__all__ = ["model_graph"]

OPSET = 17


def model_graph(
    spec: EncoderSpec,
    entries: Mapping[str, TensorEntry],
    *,
    location: str = "weights.safetensors",
    precision: str = "float32",
) -> onnx.ModelProto:
    """The graph for tools that take a sentence-transformers ONNX folder: padded rectangles.

    Sentences may be padded on either side, or on both: places are counted by the mask, and by
    `input_ids != pad` for RoBERTa, as transformers does it. Poolings count the prompt in; a
    checkpoint that leaves it out needs `packed.onnx`, or a tool that pools `last_hidden_state`
    itself.
    """
    require_supported(spec)
    g = Graph(entries, location, precision, opset=OPSET)
    names = ["input_ids", "attention_mask"]
    types = None
    if spec.embeddings.token_types > 1:
        names.append("token_type_ids")
        table = g.weight("embeddings.token_type.weight")
        types = g.op("Gather", table, "token_type_ids", half=True)
    elif spec.embeddings.token_types:
        table = g.weight("embeddings.token_type.weight")
        types = g.op("Gather", table, g.ints("zero", 0), half=True)
    keep = g.op("Cast", "attention_mask", to=TensorProto.BOOL)
    rule = spec.embeddings.positions.rule
    places = positions = None
    if rule == "absolute" or reads_places(spec) or "weightedmean" in spec.pooling.modes:
        # Not CumSum, whose output has the shape of the ids: where ONNX Runtime knows that, it
        # fuses residuals with LayerNorm, which takes longer on a CPU.
        within = g.op("Sub", columns(g), first(g, keep))
        places = g.op("Max", within, g.ints("zero", 0))
    if rule == "roberta":
        pad = g.ints("pad", spec.embeddings.positions.pad_id)
        real = g.op("Not", g.op("Equal", "input_ids", pad))
        real = g.op("Cast", real, to=TensorProto.INT64)
        count = g.op("Mul", g.op("CumSum", real, g.ints("one", 1)), real)
        positions = g.op("Add", count, pad)
    if rule == "absolute":
        positions = places
    rows = None
    if positions is not None:
        rows = g.op("Gather", g.weight("embeddings.position.weight"), positions, half=True)
    words = g.op("Gather", g.weight("embeddings.word.weight"), "input_ids", half=True)
    x = embed(g, spec, words, rows, types)
    allowed = g.op("Unsqueeze", keep, g.ints("axes_1_2", [1, 2]))
    line = None
    if reads_places(spec):
        line = g.op("Unsqueeze", columns(g), g.ints("axes_0", [0]))
    x = layers(g, spec, x, Sight(g, [allowed], places, columns=line))
    pooled = pool_padded(g, spec, x, keep, places)
    vectors, _ = unit_vectors(g, spec, pooled)
    return g.build(
        "kosine_model",
        [(name, ["batch", "sequence"]) for name in names],
        [
            ("sentence_embedding", vectors, ["batch", spec.dim]),
            ("last_hidden_state", x, ["batch", "sequence", spec.hidden_size]),
        ],
    )
