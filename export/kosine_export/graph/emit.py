"""Nodes and initializers of an ONNX graph, collected by the names of their outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from kosine.bundle.tensorfile import TensorEntry

__all__ = ["Graph"]

IR_VERSION = 8
C = 0.044715  # of GELU's approximation by tanh
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
        opset: Of the operators.
    """

    def __init__(
        self,
        entries: Mapping[str, TensorEntry],
        location: str,
        precision: str,
        *,
        shadow: bool = False,
        opset: int = 17,
    ) -> None:
        self._entries = entries
        self._opset = opset
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

    def floats(self, name: str, values: NDArray[np.float32]) -> str:
        """A float32 constant array."""
        return self._constant(name, values)

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

    def layer_norm(self, x: str, name: str, eps: float, *, bias: bool = True) -> str:
        """float32 in, float32 out."""
        names = ("weight", "bias") if bias else ("weight",)
        arrays = [self.weight(f"{name}.{part}") for part in names]
        return str(self.op("LayerNormalization", x, *arrays, axis=-1, epsilon=eps))

    def rms_norm(self, x: str, name: str, eps: float, *, bias: bool = False) -> str:
        """LayerNorm around a mean of zero; float32 in, float32 out."""
        squares = self.op("Pow", x, self.number("two", 2.0))
        if self._opset < 18:
            mean = self.op("ReduceMean", squares, axes=[-1])
        else:
            mean = self.op("ReduceMean", squares, self.ints("last", [-1]))
        root = self.op("Sqrt", self.op("Add", mean, self.number("eps", eps)))
        y = self.op("Mul", self.op("Div", x, root), self.weight(f"{name}.weight"))
        return str(self.op("Add", y, self.weight(f"{name}.bias")) if bias else y)

    def activation(self, x: str, name: str) -> str:
        """Of a feed-forward, by its name in `kosine.spec`; in the working precision.

        Those but the erf form go through float32: x ** 3 leaves float16 early.
        """
        if name == "gelu":
            return self.gelu(x)
        x = self.to_float(x)
        if name == "silu":
            return self.to_half(self.op("Mul", x, self.op("Sigmoid", x)))
        cubed = self.op("Mul", self.op("Pow", x, self.number("three", 3.0)), self.number("c", C))
        inner = self.op(
            "Mul", self.op("Add", x, cubed), self.number("root", math.sqrt(2 / math.pi))
        )
        share = self.op("Add", self.op("Tanh", inner), self.number("one_float", 1.0))
        half = self.op("Mul", x, self.number("point_five_float", 0.5))
        return self.to_half(self.op("Mul", half, share))

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
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=IR_VERSION,
            producer_name="kosine",
        )

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """One initializer for each name and value: layers may differ in their sizes."""
        first = full = f"constant.{value.dtype}.{name}"
        again = 1
        while self._initializers.setdefault(full, tensor := from_array(value, full)) != tensor:
            again += 1
            full = f"{first}.{again}"
        return full
