"""kosine's own engine on an NVIDIA GPU."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from kosine.backend import Capabilities, closed_error
from kosine.backends.capture_gate import GATE
from kosine.backends.cuda.device import KernelDevice
from kosine.backends.cuda.shape import Shape, cut, shape_of, token_steps
from kosine.backends.device import check_threads, cuda_index, first_line
from kosine.backends.forks import check_process, watch_forks
from kosine.backends.gpu import check_gpu
from kosine.backends.lowering import RUNS as STEPS_RUN
from kosine.backends.lowering import lower
from kosine.bundle import Bundle
from kosine.errors import BackendError, BackendUnavailable, KosineError, MissingExtra, UnknownOption
from kosine.exit_gate import awaited_at_exit
from kosine.packed import Float32, Int32, Packed, Pooled
from kosine.positions import position_ids
from kosine.spec_fields import unsupported
from kosine.threads import usable_cpus

if TYPE_CHECKING:
    from kosine.backends.cuda.forward import Forward

__all__ = ["CAPABILITIES", "CudaBackend", "probe"]

CAPABILITIES = Capabilities(("float16", "bfloat16"), {"cuda": ("float16", "bfloat16")})
RUNS: Mapping[str, Container[Any] | str] = {
    **STEPS_RUN,
    "layers.attention.head_size": (16, 32, 64, 128, 256),
}
PIECE_TOKENS = 8_192  # of one graph: more gains nothing on the largest GPUs
PIECES = 8  # of one call, so that the GPU computes one while the next is laid out
MAX_GRAPHS = 128
OLDEST = 80  # compute capability: bfloat16 on tensor cores

logger = logging.getLogger("kosine")


def probe(bundle: Bundle, dtype: str) -> None:  # noqa: ARG001
    """Raise what keeps an engine from being made, as far as that shows without making one."""
    found = unsupported(bundle.manifest.spec, RUNS)
    if found is not None:
        raise BackendError(
            f"backend 'cuda' cannot run {bundle.path.name}: {found[0]}",
            limit=found[1],
            remedy="use backend='onnx'",
        )
    forward_class()
    check_gpu(0)


def forward_class() -> type[Forward]:
    """`Forward`, whose module needs Triton; or the error that says how to get it."""
    if importlib.util.find_spec("triton") is None:
        raise MissingExtra(
            "backend 'cuda' needs Triton, which is not installed",
            remedy="pip install 'kosine[cuda]'",
        )
    found: type[Forward] = import_module("kosine.backends.cuda.forward").Forward
    return found


@dataclass(slots=True)
class _Slot:
    """Page-locked memory of one piece on its way, and the event after its download."""

    inputs: Int32
    vectors: Float32
    event: Any = None


class CudaBackend:
    """Runs `weights.safetensors` in kosine's Triton kernels and cuBLASLt's products.

    Tokens are packed: nothing is padded but the end of a batch. A shape that comes a second time
    is captured in a CUDA graph; the MAX_GRAPHS that were used last are kept. Threads take turns;
    several encoders on one GPU run side by side, each on its own stream.

    Args:
        bundle: The opened bundle.
        dtype: "float16" or "bfloat16".
        device: "auto", "cuda" (both the first GPU) or "cuda:N".
        threads: CPU threads that tokenise; None takes those that the process may really use.
        spin: Of no meaning here; the GPU computes.

    Raises:
        MissingExtra: Triton, cuda-python or cuBLAS is not installed.
        BackendUnavailable: No such GPU, no driver, or a GPU older than compute capability 8.0.
        BackendError: A model that it cannot run, or CUDA failed.
    """

    name = "cuda"
    batch_tokens = PIECES * PIECE_TOKENS

    def __init__(
        self,
        bundle: Bundle,
        *,
        dtype: str = "float16",
        device: str = "auto",
        threads: int | None = None,
        spin: bool = False,  # noqa: ARG002
    ) -> None:
        if dtype not in CAPABILITIES.dtypes:
            raise UnknownOption(
                f"backend 'cuda' has no dtype {dtype!r}",
                limit=f"it runs in {', '.join(CAPABILITIES.dtypes)}",
                remedy="leave dtype out, or use another backend",
            )
        check_threads(threads)
        index = cuda_index(device, self.name)
        probe(bundle, dtype)
        spec = bundle.manifest.spec
        self.device = f"cuda:{index}"
        self.threads = threads or usable_cpus()
        self.dtype = dtype
        self._positions = spec.embeddings.positions
        self._piece_tokens = -(-max(PIECE_TOKENS, bundle.manifest.max_tokens) // 16) * 16
        self._steps = token_steps(self._piece_tokens)
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._open = False
        weights = bundle.tensors()
        with GATE.shared():
            self._gpu = KernelDevice(index)
            try:
                self._require_architecture()
                self._forward = forward_class()(
                    self._gpu,
                    lower(spec),
                    {
                        name: weights[name]
                        for name, entry in weights.entries.items()
                        if entry.dtype == np.float32
                    },
                    hidden=spec.hidden_size,
                    dtype=dtype,
                    max_tokens=self._piece_tokens,
                )
                self.dim = self._forward.dim
                self._slots = [self._slot() for _ in range(2)]
            except BaseException as error:
                self._gpu.close()
                if isinstance(error, KosineError) or not isinstance(error, Exception):
                    raise
                raise BackendError(
                    f"backend 'cuda' cannot load {bundle.path.name}: {first_line(error)}",
                    remedy="use backend='onnx', or device='cpu'",
                ) from error
        self._seen: set[Shape] = set()
        self._graphs: OrderedDict[Shape, Any] = OrderedDict()
        self._use_graphs = True
        self._open = True
        watch_forks(self.forked)

    @awaited_at_exit
    def run(self, batch: Packed) -> Pooled:
        """See `Backend.run`; while the GPU computes one piece the next is laid out."""
        check_process(self._owner)
        positions = position_ids(batch.ids, batch.starts, self._positions)
        rows: Float32 = np.empty((len(batch), self.dim + 1), np.float32)
        waiting: list[tuple[_Slot, int, int]] = []
        with self._lock, GATE.shared():
            if not self._open:
                raise closed_error()
            self._gpu.activate()
            for number, (begin, end) in enumerate(cut(batch.starts, self._piece_tokens)):
                if len(waiting) == len(self._slots):
                    self._collect(rows, *waiting.pop(0))
                slot = self._slots[number % len(self._slots)]
                self._start(slot, *_piece(batch, positions, begin, end))
                waiting.append((slot, begin, end))
            for each in waiting:
                self._collect(rows, *each)
        return Pooled(np.ascontiguousarray(rows[:, :-1]), rows[:, -1].copy())

    def close(self) -> None:
        """Give the GPU's memory back. Calls after this are a BackendError."""
        if self._owner != os.getpid():
            return
        with self._lock, GATE.shared():
            if not self._open:
                return
            self._open = False
            with suppress(BackendError):  # after a fault on the GPU even this fails
                self._gpu.activate()
                self._gpu.synchronize()
            while self._graphs:
                self._drop(self._graphs.popitem()[1])
            self._forward.close()
            self._gpu.close()

    def __del__(self) -> None:
        # Not there where __init__ was refused.
        if getattr(self, "_open", False):
            self.close()

    def forked(self) -> None:
        """In a child: nothing of CUDA may be touched or destroyed here."""
        self._open = False

    def _start(self, slot: _Slot, piece: Packed, positions: Int32) -> None:
        shape = shape_of(piece.lengths, self._steps)
        shape.fill(slot.inputs[: shape.numbers], piece, positions)
        gpu, forward = self._gpu, self._forward
        gpu.upload(forward.inputs, slot.inputs.view(np.uint8), 4 * shape.numbers)
        self._launch(shape)
        nbytes = 4 * (self.dim + 1) * len(piece)
        gpu.download(slot.vectors.view(np.uint8), forward.vectors, nbytes)
        slot.event = gpu.mark(slot.event)

    def _collect(self, rows: Float32, slot: _Slot, begin: int, end: int) -> None:
        self._gpu.wait(slot.event)
        found = slot.vectors[: (end - begin) * (self.dim + 1)]
        rows[begin:end] = found.reshape(end - begin, self.dim + 1)

    def _launch(self, shape: Shape) -> None:
        """Put the computation on the stream: as a graph, or on the way to one."""
        graph = self._graphs.get(shape)
        if graph is not None:
            self._graphs.move_to_end(shape)
            self._gpu.replay(graph)
            return
        self._forward.enqueue(shape)
        if shape not in self._seen or not self._use_graphs:
            self._seen.add(shape)
            return
        try:
            graph = self._gpu.capture(lambda: self._forward.enqueue(shape))
        except BackendError as error:
            self._use_graphs = False
            logger.warning("the GPU runs without CUDA graphs from now on: %s", first_line(error))
            return
        self._graphs[shape] = graph
        if len(self._graphs) > MAX_GRAPHS:
            self._gpu.synchronize()
            self._drop(self._graphs.popitem(last=False)[1])

    def _drop(self, graph: Any) -> None:
        with suppress(BackendError):  # after a fault; the memory goes with the process
            self._gpu.drop(graph)

    def _slot(self) -> _Slot:
        forward, gpu = self._forward, self._gpu
        return _Slot(
            gpu.pinned(forward.input_bytes).view(np.int32),
            gpu.pinned(forward.vector_bytes).view(np.float32),
        )

    def _require_architecture(self) -> None:
        if self._gpu.capability < OLDEST:
            raise BackendUnavailable(
                f"backend 'cuda' cannot run on {self._gpu.name}, of compute capability "
                f"{self._gpu.architecture}",
                limit="compute capability 8.0 and later",
                remedy="use backend='onnx' or 'tensorrt'",
            )


def _piece(batch: Packed, positions: Int32, begin: int, end: int) -> tuple[Packed, Int32]:
    if end - begin == len(batch):
        return batch, positions
    first, last = batch.starts[begin], batch.starts[end]
    skip = None if batch.skip is None else batch.skip[begin:end]
    piece = Packed(batch.ids[first:last], batch.starts[begin : end + 1] - first, skip)
    return piece, positions[first:last]
