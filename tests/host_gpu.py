"""A GPU of host memory, and in the place of kernels the reference in numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from kosine.backends.cuda.shape import MAX_SENTENCES, TILES, Shape
from kosine.errors import BackendError
from kosine_kernels import reference


class HostCuda:
    """What `kosine.backends.cuda.device.KernelDevice` has, on a stream that does things at once.

    Memory that nothing was written to is NaN.
    """

    name, architecture, capability, stream = "a stand-in", "9.0", 90, 7
    made: list[HostCuda] = []  # noqa: RUF012
    fail_capture = False

    def __init__(self, index: int) -> None:
        self.index = index
        self.blocks: dict[int, np.ndarray] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.captured = self.replayed = self.dropped = self.launched = 0
        self.closed = False
        self.made.append(self)

    def activate(self) -> None:
        assert not self.closed

    def allocate(self, nbytes: int) -> int:
        block = np.full(nbytes + 256, 0xFF, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % 256
        self.blocks[address] = block
        self.order = sorted(self.blocks)
        return address

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.full(nbytes, 0xFF, np.uint8)

    def copy_in(self, address: int, host: np.ndarray) -> None:
        whole = np.ascontiguousarray(host)
        ctypes.memmove(address, whole.ctypes.data, whole.nbytes)

    def upload(self, address: int, host: np.ndarray, nbytes: int) -> None:
        assert self.capturing is None
        assert nbytes <= host.nbytes
        ctypes.memmove(address, host.ctypes.data, nbytes)

    def download(self, host: np.ndarray, address: int, nbytes: int) -> None:
        assert self.capturing is None
        assert nbytes <= host.nbytes
        ctypes.memmove(host.ctypes.data, address, nbytes)

    def synchronize(self) -> None:
        assert self.capturing is None

    def mark(self, event: Any = None) -> Any:
        return event or object()

    def wait(self, event: Any) -> None:
        assert event is not None

    def capture(self, enqueue: Callable[[], None]) -> Any:
        self.capturing = []
        try:
            enqueue()
            if self.fail_capture:
                raise BackendError("cudaStreamEndCapture failed: no\nmore")
            self.captured += 1
            return self.capturing
        finally:
            self.capturing = None

    def replay(self, graph: list[Callable[[], None]]) -> None:
        self.replayed += 1
        for work in graph:
            work()

    def drop(self, graph: Any) -> None:  # noqa: ARG002
        self.dropped += 1

    def close(self) -> None:
        self.blocks.clear()
        self.closed = True

    def put(self, work: Callable[[], None]) -> None:
        self.launched += 1
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)


class ReferenceForward:
    """`kosine.backends.cuda.forward.Forward`, computed by `kosine_kernels.reference`."""

    def __init__(self, gpu, steps, tensors, *, hidden, dtype, max_tokens) -> None:  # noqa: ARG002
        self.gpu, self.steps, self.tensors = gpu, steps, tensors
        ids, starts = np.zeros(1, np.int32), np.array([0, 1], np.int32)
        self.dim = reference.encode(steps, tensors, ids, starts, None, ids)[0].shape[1]
        self.vector_bytes = MAX_SENTENCES * (self.dim + 1) * 4
        self.vectors = gpu.allocate(self.vector_bytes)
        shapes = [Shape(max_tokens, MAX_SENTENCES, tile) for tile in TILES]
        self.input_bytes = 4 * max(shape.numbers for shape in shapes)
        self.inputs = gpu.allocate(self.input_bytes)
        self.shapes: list[Shape] = []

    def enqueue(self, shape: Shape) -> None:
        self.shapes.append(shape)
        self.gpu.put(lambda: self.compute(shape))

    def compute(self, shape: Shape) -> None:
        at = SimpleNamespace(
            **{
                name: np.ctypeslib.as_array(
                    (ctypes.c_int32 * length).from_address(self.inputs + 4 * begin)
                )
                for name, (begin, length) in shape.places.items()
            }
        )
        count = int(np.searchsorted(at.starts, at.starts[-1]))
        self.check_tiles(shape, at, count)
        tokens = int(at.starts[count])
        rows = np.ctypeslib.as_array(
            (ctypes.c_float * (shape.sentences * (self.dim + 1))).from_address(self.vectors)
        ).reshape(shape.sentences, self.dim + 1)
        rows[:] = np.nan
        rows[:count, :-1], rows[:count, -1] = reference.encode(
            self.steps,
            self.tensors,
            at.ids[:tokens],
            at.starts[: count + 1],
            at.skip[:count],
            at.positions[:tokens],
        )

    def check_tiles(self, shape: Shape, at: SimpleNamespace, count: int) -> None:
        """Every row of every sentence is in one tile."""
        covered = np.zeros(shape.tokens, int)
        for sentence, begin in zip(at.tile_sentence, at.tile_begin, strict=True):
            if sentence >= 0:
                end = min(begin + shape.tile, at.starts[sentence + 1])
                assert at.starts[sentence] <= begin < end
                covered[begin:end] += 1
        assert (covered[: at.starts[count]] == 1).all()
        assert (covered[at.starts[count] :] == 0).all()
        assert (at.ids[at.starts[count] :] == 0).all()

    def close(self) -> None:
        self.tensors = None


def stand_in(monkeypatch: Any) -> type[HostCuda]:
    """Put host memory in the place of CUDA, and the reference in that of Triton and cuBLASLt."""
    HostCuda.made.clear()
    monkeypatch.setattr(HostCuda, "fail_capture", False)
    monkeypatch.setattr("kosine.backends.cuda.backend.KernelDevice", HostCuda)
    monkeypatch.setattr("kosine.backends.cuda.backend.check_gpu", lambda _: None)
    monkeypatch.setattr("kosine.backends.cuda.backend.forward_class", lambda: ReferenceForward)
    return HostCuda
