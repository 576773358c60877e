"""One GPU, one stream: the little of CUDA that an engine needs, with typed errors."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.errors import BackendError, BackendUnavailable, MissingExtra

__all__ = ["Cuda", "check_gpu", "cuda_runtime"]


def cuda_runtime() -> Any:
    """The module `cuda.bindings.runtime`, or the error that says how to get it."""
    try:
        missing = importlib.util.find_spec("cuda.bindings") is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise MissingExtra(
            "kosine's GPU backends need cuda-python, which is not installed",
            remedy="pip install 'kosine[cuda]' or 'kosine[tensorrt]'",
        )
    return import_module("cuda.bindings.runtime")


def check_gpu(index: int) -> Any:
    """`cuda_runtime()`, where it knows a GPU of that index. Nothing is set up on the GPU.

    Raises:
        MissingExtra: cuda-python is absent.
        BackendUnavailable: No driver, no GPU, or none with this index.
    """
    cuda = cuda_runtime()
    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess:
        raise BackendUnavailable(
            f"CUDA cannot be used here: {_text(cuda, error)}",
            limit="an NVIDIA GPU and its driver",
            remedy="install the driver, load nothing on a GPU before a fork, or use device='cpu'",
        )
    if index >= count:
        raise BackendUnavailable(
            f"there is no device cuda:{index}",
            limit=f"{count} GPUs, from cuda:0",
            remedy="name one of them, and check CUDA_VISIBLE_DEVICES",
        )
    return cuda


class Cuda:
    """A GPU with a stream of its own. Copies and graphs go to that stream, in order.

    Not for several threads at once: its owner takes a lock. Threads may take turns; each calls
    `activate` first.

    Attributes:
        name: The GPU's name.
        architecture: Its compute capability, for example "9.0".
        stream: The stream's handle.

    Raises:
        MissingExtra, BackendUnavailable: As `check_gpu`.
    """

    def __init__(self, index: int) -> None:
        self._cuda = check_gpu(index)
        self._index = index
        self._device: list[int] = []
        self._pinned: list[int] = []
        self.activate()
        properties = self._call("cudaGetDeviceProperties", index)
        self.name: str = properties.name.decode().rstrip("\0")
        self.architecture = f"{properties.major}.{properties.minor}"
        self._stream = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def activate(self) -> None:
        """Make this the calling thread's GPU."""
        self._call("cudaSetDevice", self._index)

    def allocate(self, nbytes: int) -> int:
        """Device memory, freed by `close`: its address, a multiple of 256."""
        address = int(self._call("cudaMalloc", max(nbytes, 1)))
        self._device.append(address)
        return address

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """(nbytes,) uint8 of page-locked host memory, freed by `close`."""
        address = int(self._call("cudaMallocHost", max(nbytes, 1)))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(nbytes, 1)).from_address(address))

    def upload(self, address: int, host: NDArray[np.uint8], nbytes: int) -> None:
        """Queue a copy of the first bytes of pinned memory to the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, nbytes, kind, self._stream)

    def download(self, host: NDArray[np.uint8], address: int, nbytes: int) -> None:
        """Queue a copy of bytes on the device to the beginning of pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream; the GIL is released meanwhile."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """A graph of what `enqueue` puts on the stream; nothing runs yet.

        Other threads may use the GPU meanwhile (thread-local mode).
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            # The stream must leave capture mode, whatever it has captured.
            _, broken = self._cuda.cudaStreamEndCapture(self._stream)
            if broken is not None and int(broken):
                self._cuda.cudaGraphDestroy(broken)
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def replay(self, graph: Any) -> None:
        """Queue a graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def drop(self, graph: Any) -> None:
        """Free a graph that is not running."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free everything. Errors are left out: the memory goes with the process at the latest."""
        self._cuda.cudaSetDevice(self._index)
        self._cuda.cudaStreamSynchronize(self._stream)
        while self._device:
            self._cuda.cudaFree(self._device.pop())
        while self._pinned:
            self._cuda.cudaFreeHost(self._pinned.pop())
        self._cuda.cudaStreamDestroy(self._stream)

    def _call(self, function: str, *args: Any) -> Any:
        error, *values = getattr(self._cuda, function)(*args)
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise BackendError(
                f"{function} failed: {_text(self._cuda, error)}",
                remedy="check free GPU memory with nvidia-smi; after a fault, load it again",
            )
        return values[0] if values else None


def _text(cuda: Any, error: Any) -> str:
    name, text = (
        getattr(cuda, function)(error)[1].decode()
        for function in ("cudaGetErrorName", "cudaGetErrorString")
    )
    return f"{name}, {text}"
