"""From token vectors to sentence vectors as nodes: pooling, Dense modules, unit length."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from kosine.spec import EncoderSpec
from kosine_export.graph.emit import Graph

__all__ = ["columns", "first", "pool_packed", "pool_padded", "unit_vectors"]

COUNT_FLOOR = 1e-9
NORM_FLOOR = 1e-12
# What a packed graph may read besides ids, positions and segments: their shapes.
PACKED_INPUTS = {
    "pool_ids": ("rows", "width"),
    "places": ("rows", "width"),
    "slots": ("slots",),
    "sentence_index": ("sentences",),
    "token_index": ("sentences",),
    "last_index": ("sentences",),
}


def pool_packed(g: Graph, spec: EncoderSpec, x: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """(R, S, H) to (n, modes * H), and the shapes of the inputs that this reads."""
    modes = spec.pooling.modes
    own, read, parts = "segment_ids", set[str](), []
    if not spec.pooling.include_prompt and set(modes) != {"cls"}:
        own = "pool_ids"
        read.add(own)
    for mode in modes:
        if mode == "cls":
            read.add("token_index")
            parts.append(_tokens(g, spec, x, "token_index"))
        elif mode == "lasttoken":
            read.add("last_index")
            last = _tokens(g, spec, x, "last_index")
            if own == "pool_ids":  # a prompt that leaves nothing gives zeros
                ids = g.op("Reshape", own, g.ints("vector", [-1]))
                segment = g.op("Gather", ids, "last_index")
                gone = g.op("Equal", segment, g.ints("zero", 0))
                gone = g.op("Unsqueeze", gone, g.ints("axes_1", [1]))
                last = g.op("Where", gone, g.number("nothing", 0.0), last)
            parts.append(last)
        else:
            read |= {"slots", "sentence_index"}
            if mode == "weightedmean":
                read.add("places")
            if mode == "max":
                parts.append(_segment_maxima(g, spec, x, own))
            else:
                parts.append(_segment_means(g, spec, x, own, mode))
    pooled = str(g.op("Concat", *parts, axis=-1)) if len(parts) > 1 else parts[0]
    return pooled, {name: shape for name, shape in PACKED_INPUTS.items() if name in read}


def _tokens(g: Graph, spec: EncoderSpec, x: str, index: str) -> str:
    flat = g.op("Reshape", x, g.ints("flat", [-1, spec.hidden_size]))
    return str(g.op("Gather", flat, index))


def _segment_means(g: Graph, spec: EncoderSpec, x: str, pool_ids: str, mode: str) -> str:
    """(R, S, H) to (n, H): a one-hot (R, K, S) product per row, then the slots in use."""
    tokens = g.op("Unsqueeze", pool_ids, g.ints("axes_1", [1]))
    slots = g.op("Unsqueeze", "slots", g.ints("axes_0_2", [0, 2]))
    member = g.op("Cast", g.op("Equal", tokens, slots), to=TensorProto.FLOAT)
    if mode == "weightedmean":
        weights = g.op("Add", "places", g.ints("one", 1))
        weights = g.op("Unsqueeze", weights, g.ints("axes_1", [1]))
        member = g.op("Mul", member, g.op("Cast", weights, to=TensorProto.FLOAT))
    total = g.op("MatMul", member, x)
    count = g.op("ReduceSum", member, g.ints("last", [-1]), keepdims=1)
    count = g.op("Max", count, g.number("count_floor", COUNT_FLOOR))
    if mode == "mean_sqrt_len_tokens":
        count = g.op("Sqrt", count)
    mean = g.op("Div", total, count)
    flat = g.op("Reshape", mean, g.ints("flat", [-1, spec.hidden_size]))
    return str(g.op("Gather", flat, "sentence_index"))


def _segment_maxima(g: Graph, spec: EncoderSpec, x: str, pool_ids: str) -> str:
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


def pool_padded(g: Graph, spec: EncoderSpec, x: str, keep: str, places: str | None) -> str:
    """(B, S, H) to (B, modes * H), over the positions where `keep`, (B, S), is true.

    `places` are those of tokens in their sentences, (B, S), which weighted means need.
    """
    parts = [_pool_padded(g, x, keep, places or "", mode) for mode in spec.pooling.modes]
    return str(g.op("Concat", *parts, axis=-1)) if len(parts) > 1 else parts[0]


def _pool_padded(g: Graph, x: str, keep: str, places: str, mode: str) -> str:
    column = g.op("Unsqueeze", keep, g.ints("axes_2", [2]))
    if mode in ("mean", "mean_sqrt_len_tokens", "weightedmean"):
        weights = g.op("Cast", column, to=TensorProto.FLOAT)
        if mode == "weightedmean":
            order = g.op("Cast", g.op("Add", places, g.ints("one", 1)), to=TensorProto.FLOAT)
            weights = g.op("Mul", weights, g.op("Unsqueeze", order, g.ints("axes_2", [2])))
        axis = g.ints("axes_1", [1])
        total = g.op("ReduceSum", g.op("Mul", x, weights), axis, keepdims=0)
        count = g.op("ReduceSum", weights, axis, keepdims=0)
        floor = g.number("count_floor", COUNT_FLOOR)
        count = g.op("Max", count, floor)
        if mode == "mean_sqrt_len_tokens":
            count = g.op("Sqrt", count)
        pooled = g.op("Div", total, count)
    elif mode == "lasttoken":
        kept = g.op("Mul", g.op("Cast", keep, to=TensorProto.INT64), columns(g))
        last = g.op("ReduceMax", kept, axes=[1], keepdims=1)
        pooled = g.op("GatherND", x, last, batch_dims=1)
    elif mode == "cls":
        pooled = g.op("GatherND", x, first(g, keep), batch_dims=1)
    else:
        lowest = g.number("lowest", float(np.finfo(np.float32).min))
        masked = g.op("Where", column, x, lowest)
        pooled = g.op("ReduceMax", masked, axes=[1], keepdims=0)
        sums = g.op("ReduceSum", x, g.ints("axes_2", [2]), keepdims=0)
        sums = g.op("Where", keep, sums, g.number("nothing", 0.0))
        sums = g.op("ReduceSum", sums, g.ints("axes_1", [1]), keepdims=1)
        pooled = _with_nan(g, pooled, sums)
    return str(pooled)


def columns(g: Graph) -> str:
    """(S,) 0, 1, 2, ... over the padded sequence."""
    length = g.op("Gather", g.op("Shape", "input_ids"), g.ints("one", 1))
    return str(g.op("Range", g.ints("zero", 0), length, g.ints("one", 1)))


def first(g: Graph, keep: str) -> str:
    """(B, 1) column of each sentence's first token."""
    return str(g.op("ArgMax", g.op("Cast", keep, to=TensorProto.FLOAT), axis=1, keepdims=1))


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
