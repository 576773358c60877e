"""TensorRT engines on packed rows of fixed shapes."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.backend import Capabilities, closed_error
from kosine.backends.capture_gate import GATE
from kosine.backends.device import check_threads, cuda_index, first_line
from kosine.backends.forks import check_process, never_destroy, watch_forks
from kosine.backends.gpu import Cuda, check_gpu
from kosine.backends.rows.buckets import Piece, Shape, fill_piece, input_shape, pieces
from kosine.backends.rows.fill import Rows
from kosine.backends.rows.loop import RowLoop
from kosine.backends.tensorrt.engine import PlanContext, PlanEngine
from kosine.backends.tensorrt.selection import choose_plan, find_flavours, installed_flavours
from kosine.bundle import Bundle
from kosine.bundle.plans import TensorRTPlan
from kosine.errors import BackendError, KosineError, UnknownOption
from kosine.exit_gate import awaited_at_exit
from kosine.packed import Float32, Int32, Packed, Pooled
from kosine.threads import usable_cpus

__all__ = ["CAPABILITIES", "TensorRTBackend", "probe"]

CAPABILITIES = Capabilities(("float16",), {"cuda": ("float16",)})

MAX_GRAPHS = 32  # each has a context of its own
ALIGNMENT = 256

logger = logging.getLogger("kosine")


def probe(bundle: Bundle, dtype: str) -> None:  # noqa: ARG001
    """Raise what keeps an engine from being made, as far as that shows without making one.

    Whether a plan fits this GPU and this version shows only when it is loaded.
    """
    find_flavours(bundle.manifest.plans, bundle.path.name)
    check_gpu(0)


@dataclass(slots=True)
class _Captured:
    """A shape that was run before: with a context of its own, and the graph captured from it."""

    context: PlanContext
    graph: Any


class TensorRTBackend:
    """Runs the plan of the bundle that was built for this GPU and this version of TensorRT.

    A shape that comes a second time is captured in a CUDA graph; the `MAX_GRAPHS` that were used
    last are kept. Threads take turns; several encoders on one GPU run side by side, each on its
    own stream. Device memory is taken once, for the largest profile.

    Args:
        bundle: The opened bundle. The plan's sha256 is checked before it is deserialised.
        dtype: "float16".
        device: "auto", "cuda" (both the first GPU) or "cuda:N".
        threads: CPU threads that tokenise; None takes those that the process may really use.
        spin: Of no meaning here; the GPU computes.

    Raises:
        MissingTarget: The bundle has no plan.
        MissingExtra: TensorRT or cuda-python is not installed.
        BackendUnavailable: No such GPU, or no driver.
        PlanMismatch: No plan for this GPU and this version.
        BackendError: TensorRT or CUDA failed.
    """

    name = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        *,
        dtype: str = "float16",
        device: str = "auto",
        threads: int | None = None,
        spin: bool = False,  # noqa: ARG002
    ) -> None:
        if dtype != "float16":
            raise UnknownOption(
                f"backend 'tensorrt' has no dtype {dtype!r}",
                limit="it runs in float16",
                remedy="leave dtype out, or use another backend",
            )
        check_threads(threads)
        index = cuda_index(device, self.name)
        self.device = f"cuda:{index}"
        self.threads = threads or usable_cpus()
        plans = bundle.manifest.plans
        modules = installed_flavours(plans, bundle.path.name)
        self.dim = bundle.manifest.dim
        self.dtype = dtype
        self._rows = RowLoop(bundle.manifest)
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._open = False
        with GATE.shared():
            self._cuda = Cuda(index)
            try:
                versions = {flavour: module.__version__ for flavour, module in modules.items()}
                self.plan = choose_plan(plans, versions, self._cuda.architecture, self._cuda.name)
                data = bytes(bundle.data(self.plan.path))
                self._engine = PlanEngine(modules[self.plan.flavour], data, self.plan, self._cuda)
                del data
                self._allocate(self.plan)
                self._contexts = [
                    self._engine.context(profile) for profile in range(len(self.plan.profiles))
                ]
            except BaseException as error:
                self._cuda.close()
                if isinstance(error, KosineError) or not isinstance(error, Exception):
                    raise
                raise BackendError(
                    f"TensorRT failed on {bundle.path.name}: {first_line(error)}",
                    remedy="export the bundle again on this machine",
                ) from error
        self._seen: set[Shape] = set()  # finite: profiles times their row counts
        self._captured: OrderedDict[Shape, _Captured] = OrderedDict()
        self._use_graphs = True
        self._open = True
        self.batch_tokens = max(p.max_rows * p.width for p in self.plan.profiles)
        watch_forks(self.forked)

    @awaited_at_exit
    def run(self, batch: Packed) -> Pooled:
        """See `Backend.run`; the rows are laid out outside the lock, computed inside it."""
        check_process(self._owner)
        parts = pieces(batch.lengths, self.plan.profiles)
        return self._rows.run(batch, parts, self._run_piece)

    def close(self) -> None:
        """Give the GPU's memory back. Calls after this are a BackendError."""
        if self._owner != os.getpid():
            return
        with self._lock, GATE.shared():
            if not self._open:
                return
            self._open = False
            with suppress(BackendError):  # after a fault on the GPU even this fails
                self._cuda.activate()
                self._cuda.synchronize()
            while self._captured:
                self._drop(self._captured.popitem()[1])
            for context in self._contexts:
                context.close()
            self._contexts.clear()
            self._engine.close()
            self._cuda.close()

    def __del__(self) -> None:
        # Not there where __init__ was refused.
        if getattr(self, "_open", False):
            self.close()

    def forked(self) -> None:
        """In a child: nothing of CUDA may be touched or destroyed here."""
        never_destroy(
            *self._engine.parts(),
            *(part for context in self._contexts for part in context.parts()),
            *(part for ready in self._captured.values() for part in ready.context.parts()),
        )

    def _run_piece(self, batch: Packed, positions: Int32, piece: Piece) -> tuple[Float32, Float32]:
        rows = fill_piece(batch, positions, piece, self._rows.pad_id)
        with self._lock, GATE.shared():
            return self._compute(piece.shape, rows, len(piece.indices))

    def _allocate(self, plan: TensorRTPlan) -> None:
        """One input and one output arena, in pinned memory and on the GPU, for every profile."""
        largest = [
            Shape(i, p.max_rows, p.width, p.max_slots, p.max_rows * p.max_slots)
            for i, p in enumerate(plan.profiles)
        ]
        input_bytes = max(self._layout(shape)[1] for shape in largest)
        self._max_sentences = max(shape.sentences for shape in largest)
        self._norms_at = _aligned(self._max_sentences * self.dim * 4)
        self._inputs = self._cuda.allocate(input_bytes)
        self._outputs = self._cuda.allocate(self._norms_at + self._max_sentences * 4)
        self._host_inputs = self._cuda.pinned(input_bytes)
        self._host_vectors = self._cuda.pinned(self._max_sentences * self.dim * 4)
        self._host_norms = self._cuda.pinned(self._max_sentences * 4)

    def _layout(self, shape: Shape) -> tuple[dict[str, int], int]:
        """Where each input begins in the arena, and how many bytes they take."""
        places, end = {}, 0
        for name, dtype in self._engine.inputs.items():
            places[name] = end
            end = _aligned(end + int(np.prod(input_shape(name, shape))) * dtype.itemsize)
        return places, end

    def _compute(self, shape: Shape, rows: Rows, count: int) -> tuple[Float32, Float32]:
        """The first `count` vectors and norms."""
        if not self._open:
            raise closed_error()
        cuda = self._cuda
        cuda.activate()
        places, nbytes = self._layout(shape)
        for name, dtype in self._engine.inputs.items():
            values: NDArray[Any] = getattr(rows, name)
            begin, size = places[name], values.size * dtype.itemsize
            target = self._host_inputs[begin : begin + size].view(dtype)
            target[...] = values.reshape(-1)
        cuda.upload(self._inputs, self._host_inputs, nbytes)
        self._launch(shape, places)
        vectors, norms = count * self.dim * 4, count * 4
        cuda.download(self._host_vectors, self._outputs, vectors)
        cuda.download(self._host_norms, self._outputs + self._norms_at, norms)
        cuda.synchronize()
        return (
            self._host_vectors[:vectors].view(np.float32).reshape(count, self.dim).copy(),
            self._host_norms[:norms].view(np.float32).copy(),
        )

    def _launch(self, shape: Shape, places: dict[str, int]) -> None:
        """Put the computation on the stream: as a graph, or on the way to one."""
        ready = self._captured.get(shape)
        if ready is not None:
            self._captured.move_to_end(shape)
            self._cuda.replay(ready.graph)
            return
        if shape not in self._seen or not self._use_graphs:
            self._seen.add(shape)
            context = self._contexts[shape.profile]
            self._bind(context, shape, places)
            context.enqueue()
            return
        # A graph is bound to its context's state, so the context is never used for another
        # shape. Its first run settles that state, and gives this call's vectors.
        if len(self._captured) >= MAX_GRAPHS:
            self._drop(self._captured.popitem(last=False)[1])
        context = self._engine.context(shape.profile)
        self._bind(context, shape, places)
        context.enqueue()
        self._cuda.synchronize()
        try:
            graph = self._cuda.capture(context.enqueue)
        except BackendError as error:
            self._use_graphs = False
            context.close()
            logger.warning("TensorRT runs without CUDA graphs from now on: %s", first_line(error))
            return
        self._captured[shape] = _Captured(context, graph)

    def _bind(self, context: PlanContext, shape: Shape, places: dict[str, int]) -> None:
        context.bind(
            {name: input_shape(name, shape) for name in places},
            {
                **{name: self._inputs + begin for name, begin in places.items()},
                "vectors": self._outputs,
                "norms": self._outputs + self._norms_at,
            },
        )

    def _drop(self, ready: _Captured) -> None:
        with suppress(BackendError):  # after a fault; the memory goes with the process
            self._cuda.drop(ready.graph)
        ready.context.close()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
