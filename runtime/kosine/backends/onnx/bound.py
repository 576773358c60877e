"""An ONNX Runtime session whose inputs and outputs stay where they are on a device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kosine.backends.capture_gate import GATE
from kosine.backends.device import first_line
from kosine.backends.rows.buckets import Shape, input_shape
from kosine.backends.rows.fill import Rows
from kosine.errors import BackendUnavailable
from kosine.packed import Float32

__all__ = ["BoundSession"]

# ONNX Runtime never frees a captured graph, so there is a last one; shapes after it run without.
MAX_GRAPHS = 64
# The graph is captured in one of the first runs that name it; which one depends on the version.
CAPTURE_RUNS = 3
NO_GRAPH = -1

logger = logging.getLogger("kosine")


@dataclass(slots=True)
class _Bound:
    """Inputs on the device and the binding that names them and the outputs."""

    binding: Any
    inputs: dict[str, Any]
    graph_id: int
    options: Any
    runs: int = 0


class BoundSession:
    """Runs `packed.onnx` in fixed shapes by I/O binding, with a CUDA graph for those that repeat.

    Calls must come from one thread only: ONNX Runtime keeps its graphs by thread.

    Args:
        ort: The onnxruntime module.
        open_session: Opens the session; its argument says whether graphs are to be captured.
        dim: Length of the vectors.
        max_sentences: Most vectors of any shape.
        device: ONNX Runtime's name for the kind of device, "cuda" or "cpu".
        index: The device's number.

    Attributes:
        graphs: Whether CUDA graphs are captured; False from the first failure on.
    """

    def __init__(
        self,
        ort: Any,
        open_session: Callable[[bool], Any],
        *,
        dim: int,
        max_sentences: int,
        device: str,
        index: int,
    ) -> None:
        self._ort = ort
        self._open_session = open_session
        self._dim = dim
        self._max_sentences = max_sentences
        self._device = (device, index)
        self.graphs = True
        with GATE.shared():
            self._session = self._open_first()
            # Outputs of all shapes lie in one place: the largest is all they need.
            self._vectors = self._on_device((max_sentences, dim), np.float32)
            self._norms = self._on_device((max_sentences,), np.float32)
        self._names = [node.name for node in self._session.get_inputs()]
        self._seen: set[Shape] = set()  # finite: profiles times their row and sentence counts
        self._bound: dict[Shape, _Bound] = {}

    def run(self, shape: Shape, rows: Rows, count: int) -> tuple[Float32, Float32]:
        """The first `count` vectors (count, dim) and norms (count,)."""
        bound = self._bound.get(shape)
        if bound is None:
            with GATE.shared():
                bound = self._bind(shape)
        if bound.graph_id == NO_GRAPH or bound.runs >= CAPTURE_RUNS:
            with GATE.shared():
                return self._compute(bound, rows, count)
        try:
            with GATE.exclusive():
                return self._compute(bound, rows, count)
        except Exception as error:  # noqa: BLE001 - as above
            self._without_graphs(error)
        # The session may be stuck in a broken capture: only a new one is of use. First the old
        # one goes, for both may not fit into the GPU's memory.
        del bound
        self._bound.clear()
        self._session = None
        with GATE.shared():
            self._session = self._open_session(False)
            return self._compute(self._bind(shape), rows, count)

    def parts(self) -> tuple[object, ...]:
        """What must never be destroyed in a forked child."""
        held = [part for bound in self._bound.values() for part in (bound.binding, bound.inputs)]
        inner = getattr(self._session, "_sess", None)
        return self._session, inner, self._vectors, self._norms, *held

    def close(self) -> None:
        """Give the device's memory back."""
        with GATE.shared():
            self._bound.clear()
            self._vectors = self._norms = self._session = None

    def _open_first(self) -> Any:
        """With graphs if that is possible: a node that runs on the CPU forbids them."""
        try:
            return self._open_session(True)
        except BackendUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - its exception classes share no base
            session = self._open_session(False)
            self._without_graphs(error)
            return session

    def _bind(self, shape: Shape) -> _Bound:
        """Bind a shape; from its second time on it is kept, under a graph's number."""
        binding = self._session.io_binding()
        inputs = {name: self._on_device(input_shape(name, shape), np.int64) for name in self._names}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value, sizes in (
            ("vectors", self._vectors, [shape.sentences, self._dim]),
            ("norms", self._norms, [shape.sentences]),
        ):
            binding.bind_output(name, *self._device, np.float32, sizes, value.data_ptr())
        keep = self.graphs and shape in self._seen and len(self._bound) < MAX_GRAPHS
        graph_id = len(self._bound) + 1 if keep else NO_GRAPH
        options = None
        if self.graphs:
            options = self._ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
        bound = _Bound(binding, inputs, graph_id, options)
        if keep:
            self._bound[shape] = bound
        self._seen.add(shape)
        return bound

    def _compute(self, bound: _Bound, rows: Rows, count: int) -> tuple[Float32, Float32]:
        for name, value in bound.inputs.items():
            value.update_inplace(getattr(rows, name))
        self._session.run_with_iobinding(bound.binding, bound.options)
        bound.runs += 1
        vectors, norms = bound.binding.copy_outputs_to_cpu()
        return vectors[:count], norms[:count]

    def _on_device(self, shape: tuple[int, ...], dtype: type[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, *self._device)

    def _without_graphs(self, error: Exception) -> None:
        self.graphs = False
        logger.warning("ONNX Runtime runs without CUDA graphs: %s", first_line(error))
