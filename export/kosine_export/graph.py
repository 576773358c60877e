"""The ONNX graphs, written node by node from an `EncoderSpec`.

Two faces on the same weights:

- `packed_graph`: kosine's own. Rows that several sentences share, a segment id per token;
  unit vectors and their norms out. Inputs are those of `kosine.backends.rows.fill.Rows`.
- `model_graph`: the ecosystem's. `input_ids`, `attention_mask` (, `token_type_ids`) in,
  `sentence_embedding` and `last_hidden_state` out.

Neither holds weights: initializers are external data that point into the safetensors file.

Attention over all queries at once holds (heads, S, S) scores: gigabytes at 8,192 tokens. So the
float32 packed graph of an encoder of more than `QUERY_BLOCK` tokens takes queries in blocks of that
many; in shorter rows the last blocks are empty. Every other graph has one block: TensorRT and
OpenVINO fuse attention in that form, and then hold no scores.

Forms are chosen for the engines that read them. GELU is `Div(sqrt 2) → Erf`, which ONNX
Runtime fuses. Attention is `MatMul → Cast float32 → Add(Where(Equal)) → Softmax → MatMul`, which
TensorRT fuses into one kernel per layer. The norm is `Sqrt(ReduceSum(x * x))`; ReduceL2 leaves
lengths off by 1e-6.

In float16 graphs every tensor is float16 except four islands in float32: LayerNorm and its
statistics, softmax, pooling, and everything after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from kosine.bundle.tensorfile import TensorEntry
from kosine_export.spec import EncoderSpec

__all__ = ["MASKED", "QUERY_BLOCK", "Graph", "model_graph", "packed_graph"]

OPSET = 17
OPSET_MAX_POOL = 18  # ScatterND with reduction="max"
IR_VERSION = 8
# Added to scores that must not count. Finite, and inside float16's range, so that no engine
# makes it -inf; exp(-30000) is 0 in float32 beside any score that a model gives.
MASKED = -30000.0
QUERY_BLOCK = 1024
COUNT_FLOOR = 1e-9
NORM_FLOOR = 1e-12
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
TYPE_OF_DTYPE = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class Graph:
    """Collects nodes; each method adds one and returns the name of its output.

    Args:
        entries: Where each weight lies in the safetensors file.
        location: That file's name, relative to the graph's own folder.
        precision: "float32" or "float16".
        shadow: Write the float16 graph's every node and name with float32 in place of float16,
            to look at values before they would overflow.
    """

    def __init__(
        self,
        entries: Mapping[str, TensorEntry],
        location: str,
        precision: str,
        *,
        shadow: bool = False,
    ) -> None:
        self._entries = entries
        self._location = location
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._count: dict[str, int] = {}
        self.is_half = precision == "float16"
        self.half = TYPES["float32"] if shadow else TYPES[precision]
        # Names of the outputs that a float16 graph computes in float16.
        self.half_outputs: list[str] = []

    def op(
        self, kind: str, *inputs: str, half: bool = False, outputs: int = 1, **attrs: Any
    ) -> Any:
        """Add a node. `half` says that its outputs have the graph's working precision."""
        number = self._count[kind] = self._count.get(kind, 0) + 1
        names = [f"{kind}_{number}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, names[0], **attrs))
        if half and self.is_half:
            self.half_outputs += names
        return names[0] if outputs == 1 else names

    def weight(self, name: str) -> str:
        """A weight as an external initializer."""
        if name not in self._initializers:
            entry = self._entries[name]
            tensor = TensorProto(
                name=name, data_type=TYPE_OF_DTYPE[entry.dtype.name], dims=entry.shape
            )
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", self._location),
                ("offset", str(entry.offset)),
                ("length", str(entry.nbytes)),
            ):
                tensor.external_data.add(key=key, value=value)
            self._initializers[name] = tensor
        return name

    def ints(self, name: str, values: Sequence[int] | int) -> str:
        """An int64 constant; a plain int gives a scalar."""
        return self._constant(name, np.asarray(values, np.int64))

    def number(self, name: str, value: float, *, half: bool = False) -> str:
        """A scalar constant, float32 or of the graph's working precision."""
        to_half = half and self.half == TensorProto.FLOAT16
        return self._constant(name, np.asarray(value, np.float16 if to_half else np.float32))

    def to_half(self, x: str) -> str:
        """To the graph's working precision: nothing to do in a float32 graph."""
        return self.op("Cast", x, half=True, to=self.half) if self.is_half else x

    def to_float(self, x: str) -> str:
        """To float32: nothing to do in a float32 graph."""
        return self.op("Cast", x, to=TensorProto.FLOAT) if self.is_half else x

    def cut(self, x: str, edges: Sequence[int]) -> list[str]:
        """(R, heads, S, n) cut along S at `edges`; whole where there are none."""
        if not edges:
            return [x]
        axis, places = self.ints("axes_2", [2]), [self.ints(f"edge_{at}", [at]) for at in edges]
        return [self.op("Slice", x, *ends, axis) for ends in itertools.pairwise(places)]

    def linear(self, x: str, name: str, *, half: bool = True, bias: bool = True) -> str:
        y: str = self.op("MatMul", x, self.weight(f"{name}.weight"), half=half)
        return self.op("Add", y, self.weight(f"{name}.bias"), half=half) if bias else y

    def layer_norm(self, x: str, name: str, eps: float) -> str:
        """float32 in, float32 out."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return str(self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps))

    def gelu(self, x: str, *, half: bool = True) -> str:
        suffix = "" if half else "_float"
        root = self.number(f"sqrt_two{suffix}", math.sqrt(2.0), half=half)
        one = self.number(f"one{suffix}", 1.0, half=half)
        point_five = self.number(f"point_five{suffix}", 0.5, half=half)
        erf = self.op("Erf", self.op("Div", x, root, half=half), half=half)
        return str(
            self.op("Mul", self.op("Mul", x, self.op("Add", erf, one, half=half), half=half),
                    point_five, half=half)
        )  # fmt: skip

    def build(
        self,
        name: str,
        inputs: Sequence[tuple[str, Sequence[str | int]]],
        outputs: Sequence[tuple[str, str, Sequence[str | int]]],
        opset: int,
    ) -> onnx.ModelProto:
        """The model of int64 `inputs` (name, shape) and float32 `outputs` (name, from, shape)."""
        for public, inner, _ in outputs:
            self._nodes.append(helper.make_node("Identity", [inner], [public], public))
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n, shape in inputs],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, _, s in outputs],
            list(self._initializers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=IR_VERSION,
            producer_name="kosine",
        )

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        name = f"constant.{value.dtype}.{name}"
        if name not in self._initializers:
            self._initializers[name] = onnx.numpy_helper.from_array(value, name)
        return name


def packed_graph(
    spec: EncoderSpec,
    entries: Mapping[str, TensorEntry],
    *,
    location: str = "weights.safetensors",
    precision: str = "float32",
    shadow: bool = False,
) -> tuple[onnx.ModelProto, list[str]]:
    """The packed-rows graph, and the names of its float16 activations.

    Symbolic sizes: rows R, width S, slots K, sentences n.
    """
    g = Graph(entries, location, precision, shadow=shadow)
    words = g.op("Gather", g.weight("embeddings.word.weight"), "input_ids", half=True)
    places = g.op("Gather", g.weight("embeddings.position.weight"), "position_ids", half=True)
    types = None
    if spec.type_vocab_size:
        row = g.ints("zero", 0)
        types = g.op("Gather", g.weight("embeddings.token_type.weight"), row, half=True)
    x = _embed(g, spec, words, places, types)

    # (R, 1, S, 1) against (R, 1, 1, S): attention stays inside equal segment ids.
    own = g.op("Unsqueeze", "segment_ids", g.ints("axes_1_3", [1, 3]))
    other = g.op("Unsqueeze", "segment_ids", g.ints("axes_1_2", [1, 2]))
    edges = _query_edges(spec.max_tokens) if precision == "float32" else []
    biases = [_attention_bias(g, g.op("Equal", block, other)) for block in g.cut(own, edges)]
    x = _layers(g, spec, x, biases, edges)

    inputs: list[tuple[str, Sequence[str | int]]] = [
        (name, ["rows", "width"]) for name in ("input_ids", "position_ids", "segment_ids")
    ]
    pool_ids = "segment_ids"
    if not spec.include_prompt and spec.pooling != "cls":
        pool_ids = "pool_ids"
        inputs.append((pool_ids, ["rows", "width"]))
    if spec.pooling == "mean":
        inputs += [("slots", ["slots"]), ("sentence_index", ["sentences"])]
        pooled = _segment_means(g, spec, x, pool_ids)
    elif spec.pooling == "cls":
        inputs.append(("token_index", ["sentences"]))
        flat = g.op("Reshape", x, g.ints("flat", [-1, spec.hidden_size]))
        pooled = g.op("Gather", flat, "token_index")
    else:
        inputs += [("slots", ["slots"]), ("sentence_index", ["sentences"])]
        pooled = _segment_maxima(g, spec, x, pool_ids)
    vectors, norms = _finish(g, spec, pooled)
    model = g.build(
        "kosine_packed",
        inputs,
        [("vectors", vectors, ["sentences", spec.dim]), ("norms", norms, ["sentences"])],
        OPSET_MAX_POOL if spec.pooling == "max" else OPSET,
    )
    return model, g.half_outputs


def model_graph(
    spec: EncoderSpec,
    entries: Mapping[str, TensorEntry],
    *,
    location: str = "weights.safetensors",
    precision: str = "float32",
) -> onnx.ModelProto:
    """The graph for tools that take a sentence-transformers ONNX folder: padded rectangles.

    Position ids follow transformers: counted from `input_ids != pad` for RoBERTa, 0, 1, 2, ...
    for the others. Mean and max pooling count the prompt in; a checkpoint that leaves it out
    needs `packed.onnx`, or a tool that pools `last_hidden_state` itself.
    """
    g = Graph(entries, location, precision)
    names = ["input_ids", "attention_mask"]
    shape = g.op("Shape", "input_ids")
    types = None
    if spec.type_vocab_size > 1:
        names.append("token_type_ids")
        table = g.weight("embeddings.token_type.weight")
        types = g.op("Gather", table, "token_type_ids", half=True)
    elif spec.type_vocab_size:
        table = g.weight("embeddings.token_type.weight")
        types = g.op("Gather", table, g.ints("zero", 0), half=True)
    if spec.position_rule == "roberta":
        pad = g.ints("pad", spec.pad_id)
        real = g.op("Not", g.op("Equal", "input_ids", pad))
        real = g.op("Cast", real, to=TensorProto.INT64)
        count = g.op("Mul", g.op("CumSum", real, g.ints("one", 1)), real)
        positions = g.op("Add", count, pad)
    else:
        length = g.op("Gather", shape, g.ints("one", 1))
        positions = g.op("Range", g.ints("zero", 0), length, g.ints("one", 1))
    places = g.op("Gather", g.weight("embeddings.position.weight"), positions, half=True)
    words = g.op("Gather", g.weight("embeddings.word.weight"), "input_ids", half=True)
    x = _embed(g, spec, words, places, types)
    keep = g.op("Cast", "attention_mask", to=TensorProto.BOOL)
    bias = _attention_bias(g, g.op("Unsqueeze", keep, g.ints("axes_1_2", [1, 2])))
    x = _layers(g, spec, x, [bias])
    column = g.op("Unsqueeze", keep, g.ints("axes_2", [2]))
    if spec.pooling == "mean":
        weights = g.op("Cast", column, to=TensorProto.FLOAT)
        axis = g.ints("axes_1", [1])
        total = g.op("ReduceSum", g.op("Mul", x, weights), axis, keepdims=0)
        count = g.op("ReduceSum", weights, axis, keepdims=0)
        floor = g.number("count_floor", COUNT_FLOOR)
        pooled = g.op("Div", total, g.op("Max", count, floor))
    elif spec.pooling == "cls":
        pooled = g.op("Gather", x, g.ints("zero", 0), axis=1)
    else:
        lowest = g.number("lowest", float(np.finfo(np.float32).min))
        masked = g.op("Where", column, x, lowest)
        pooled = g.op("ReduceMax", masked, axes=[1], keepdims=0)
        sums = g.op("ReduceSum", x, g.ints("axes_2", [2]), keepdims=0)
        sums = g.op("Where", keep, sums, g.number("nothing", 0.0))
        sums = g.op("ReduceSum", sums, g.ints("axes_1", [1]), keepdims=1)
        pooled = _with_nan(g, pooled, sums)
    vectors, _ = _finish(g, spec, pooled)
    return g.build(
        "kosine_model",
        [(name, ["batch", "sequence"]) for name in names],
        [
            ("sentence_embedding", vectors, ["batch", spec.dim]),
            ("last_hidden_state", x, ["batch", "sequence", spec.hidden_size]),
        ],
        OPSET,
    )


def _embed(g: Graph, spec: EncoderSpec, words: str, places: str, types: str | None) -> str:
    x = g.op("Add", g.to_float(words), g.to_float(places))
    if types is not None:
        x = g.op("Add", x, g.to_float(types))
    x = g.layer_norm(x, "embeddings.norm", spec.layer_norm_eps)
    x = g.to_half(x)
    if spec.embedding_size != spec.hidden_size:
        x = g.linear(x, "embeddings.project")
    return str(x)


def _attention_bias(g: Graph, allowed: str) -> str:
    """float32, 0 where `allowed`, MASKED elsewhere."""
    return str(g.op("Where", allowed, g.number("allowed", 0.0), g.number("masked", MASKED)))


def _query_edges(max_tokens: int) -> list[int]:
    """Where queries are cut into blocks; nothing where one block holds them all."""
    if max_tokens <= QUERY_BLOCK:
        return []
    return list(range(0, max_tokens + QUERY_BLOCK, QUERY_BLOCK))


def _layers(
    g: Graph, spec: EncoderSpec, x: str, biases: Sequence[str], edges: Sequence[int] = ()
) -> str:
    """(R, S, hidden) in the working precision to (R, S, hidden) float32.

    `biases` has (R, 1, queries, S) for each block that `edges` cut the queries into.
    """
    heads = g.ints("heads", [0, 0, spec.num_heads, spec.head_size])
    merged = g.ints("merged", [0, 0, spec.hidden_size])
    thirds = g.ints("thirds", [spec.hidden_size] * 3)
    scale = g.number("scale", 1 / math.sqrt(spec.head_size), half=True)
    for layer in range(spec.num_layers):
        at = f"layers.{layer}"
        qkv = g.linear(x, f"{at}.attention.qkv")
        parts = g.op("Split", qkv, thirds, half=True, outputs=3, axis=-1)
        q, k, v = (g.op("Reshape", part, heads, half=True) for part in parts)
        # Scaled before the product: in float16 the scores then stay small as well.
        q = g.op("Mul", q, scale, half=True)
        q = g.op("Transpose", q, half=True, perm=[0, 2, 1, 3])
        k = g.op("Transpose", k, half=True, perm=[0, 2, 3, 1])
        v = g.op("Transpose", v, half=True, perm=[0, 2, 1, 3])
        contexts = []
        for block, bias in zip(g.cut(q, edges), biases, strict=True):
            scores = g.op("Add", g.to_float(g.op("MatMul", block, k, half=True)), bias)
            shares = g.to_half(g.op("Softmax", scores, axis=-1))
            contexts.append(g.op("MatMul", shares, v, half=True))
        context = g.op("Concat", *contexts, axis=2) if edges else contexts[0]
        context = g.op("Transpose", context, half=True, perm=[0, 2, 1, 3])
        context = g.op("Reshape", context, merged, half=True)
        y = g.linear(context, f"{at}.attention.output")
        x = _residual_norm(g, spec, x, y, f"{at}.attention.norm")
        x = g.to_half(x)
        y = g.linear(g.gelu(g.linear(x, f"{at}.ffn.up")), f"{at}.ffn.down")
        x = _residual_norm(g, spec, x, y, f"{at}.ffn.norm")
        if layer < spec.num_layers - 1:
            x = g.to_half(x)
    return x


def _residual_norm(g: Graph, spec: EncoderSpec, x: str, y: str, name: str) -> str:
    return g.layer_norm(g.op("Add", g.to_float(x), g.to_float(y)), name, spec.layer_norm_eps)


def _segment_means(g: Graph, spec: EncoderSpec, x: str, pool_ids: str) -> str:
    """(R, S, H) to (n, H): a one-hot (R, K, S) product per row, then the slots in use."""
    tokens = g.op("Unsqueeze", pool_ids, g.ints("axes_1", [1]))
    slots = g.op("Unsqueeze", "slots", g.ints("axes_0_2", [0, 2]))
    member = g.op("Cast", g.op("Equal", tokens, slots), to=TensorProto.FLOAT)
    total = g.op("MatMul", member, x)
    count = g.op("ReduceSum", member, g.ints("last", [-1]), keepdims=1)
    mean = g.op("Div", total, g.op("Max", count, g.number("count_floor", COUNT_FLOOR)))
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


def _with_nan(g: Graph, maxima: str, sums: str) -> str:
    """NaN for the rows where `sums` is NaN: engines drop a NaN from a maximum, none from a sum."""
    return str(g.op("Where", g.op("Equal", sums, sums), maxima, sums))


def _finish(g: Graph, spec: EncoderSpec, pooled: str) -> tuple[str, str]:
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
