"""From token vectors to sentence vectors as nodes: pooling, Dense modules, unit length."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from kosine.spec import EncoderSpec
from kosine_export.graph.emit import Graph

__all__ = ["pool_padded", "segment_maxima", "segment_means", "unit_vectors"]

COUNT_FLOOR = 1e-9
NORM_FLOOR = 1e-12


def segment_means(g: Graph, spec: EncoderSpec, x: str, pool_ids: str) -> str:
    """(R, S, H) to (n, H): a one-hot (R, K, S) product per row, then the slots in use."""
    tokens = g.op("Unsqueeze", pool_ids, g.ints("axes_1", [1]))
    slots = g.op("Unsqueeze", "slots", g.ints("axes_0_2", [0, 2]))
    member = g.op("Cast", g.op("Equal", tokens, slots), to=TensorProto.FLOAT)
    total = g.op("MatMul", member, x)
    count = g.op("ReduceSum", member, g.ints("last", [-1]), keepdims=1)
    mean = g.op("Div", total, g.op("Max", count, g.number("count_floor", COUNT_FLOOR)))
    flat = g.op("Reshape", mean, g.ints("flat", [-1, spec.hidden_size]))
    return str(g.op("Gather", flat, "sentence_index"))


def segment_maxima(g: Graph, spec: EncoderSpec, x: str, pool_ids: str) -> str:
    """(R, S, H) to (n, H): every token is scattered to its slot under max.

    Slot 0 of each row takes the filler and the prompt; it is never gathered.
    """
    zero, one = g.ints("zero", 0), g.ints("one", 1)
    shape = g.op("Shape", pool_ids)
    num_rows = g.op("Gather", shape, zero)
    stride = g.op("Add", g.op("Gather", g.op("Shape", "slots"), zero), one)
    first = g.op("Mul", g.op("Range", zero, num_rows, one), stride)
    target = g.op("Add", pool_ids, g.op("Unsqueeze", first, g.ints("axes_1", [1])))
    target = g.op("Reshape", target, g.ints("column", [-1, 1]))
    flat = g.op("Reshape", x, g.ints("flat", [-1, spec.hidden_size]))
    places = g.op("Reshape", g.op("Mul", num_rows, stride), g.ints("vector", [-1]))
    size = g.op("Concat", places, g.ints("hidden", [spec.hidden_size]), axis=0)
    lowest = g.number("lowest", float(np.finfo(np.float32).min))
    maxima = g.op("ScatterND", g.op("Expand", lowest, size), target, flat, reduction="max")
    column = g.op("Concat", places, g.ints("axes_1", [1]), axis=0)
    sums = g.op("ReduceSum", flat, g.ints("last", [-1]), keepdims=1)
    nothing = g.op("Expand", g.number("nothing", 0.0), column)
    maxima = _with_nan(g, maxima, g.op("ScatterND", nothing, target, sums, reduction="add"))
    # Without slot 0 the slots lie as `sentence_index` counts them: K to a row.
    rows = g.op("Reshape", stride, g.ints("vector", [-1]))
    cube = g.op("Concat", g.ints("any", [-1]), rows, g.ints("hidden", [spec.hidden_size]), axis=0)
    maxima = g.op("Reshape", maxima, cube)
    kept = g.op(
        "Slice", maxima, g.ints("axes_1", [1]), g.ints("end", [1 << 60]), g.ints("axes_1", [1])
    )
    kept = g.op("Reshape", kept, g.ints("flat", [-1, spec.hidden_size]))
    return str(g.op("Gather", kept, "sentence_index"))


def pool_padded(g: Graph, spec: EncoderSpec, x: str, keep: str) -> str:
    """(B, S, H) to (B, H), over the positions where `keep`, (B, S), is true."""
    column = g.op("Unsqueeze", keep, g.ints("axes_2", [2]))
    if spec.pooling.mode == "mean":
        weights = g.op("Cast", column, to=TensorProto.FLOAT)
        axis = g.ints("axes_1", [1])
        total = g.op("ReduceSum", g.op("Mul", x, weights), axis, keepdims=0)
        count = g.op("ReduceSum", weights, axis, keepdims=0)
        floor = g.number("count_floor", COUNT_FLOOR)
        pooled = g.op("Div", total, g.op("Max", count, floor))
    elif spec.pooling.mode == "cls":
        pooled = g.op("Gather", x, g.ints("zero", 0), axis=1)
    else:
        lowest = g.number("lowest", float(np.finfo(np.float32).min))
        masked = g.op("Where", column, x, lowest)
        pooled = g.op("ReduceMax", masked, axes=[1], keepdims=0)
        sums = g.op("ReduceSum", x, g.ints("axes_2", [2]), keepdims=0)
        sums = g.op("Where", keep, sums, g.number("nothing", 0.0))
        sums = g.op("ReduceSum", sums, g.ints("axes_1", [1]), keepdims=1)
        pooled = _with_nan(g, pooled, sums)
    return str(pooled)


def _with_nan(g: Graph, maxima: str, sums: str) -> str:
    """NaN for the rows where `sums` is NaN: engines drop a NaN from a maximum, none from a sum."""
    return str(g.op("Where", g.op("Equal", sums, sums), maxima, sums))


def unit_vectors(g: Graph, spec: EncoderSpec, pooled: str) -> tuple[str, str]:
    """Dense modules, then unit vectors and the norms that were divided out. All float32."""
    for n, dense in enumerate(spec.dense):
        y = g.linear(pooled, f"dense.{n}", half=False, bias=dense.bias)
        if dense.activation == "gelu":
            y = g.gelu(y, half=False)
        elif dense.activation != "identity":
            y = g.op(dense.activation.capitalize(), y)
        pooled = g.op("Add", y, pooled) if dense.use_residual else y
    squares = g.op("Mul", pooled, pooled)
    norms = g.op("Sqrt", g.op("ReduceSum", squares, g.ints("last", [-1]), keepdims=1))
    floor = g.number("norm_floor", NORM_FLOOR)
    vectors = g.op("Div", pooled, g.op("Max", norms, floor))
    return str(vectors), str(g.op("Squeeze", norms, g.ints("last", [-1])))
