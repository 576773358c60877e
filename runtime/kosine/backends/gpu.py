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
        capability: The same as a number, for example 90.
        stream: The stream's handle.

    Raises:
        MissingExtra, BackendUnavailable: As `check_gpu`.
    """

    def __init__(self, index: int) -> None:
        self._cuda = check_gpu(index)
        self._index = index
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._events: list[Any] = []
        self._modules: list[Any] = []
        self.activate()
        properties = self._call("cudaGetDeviceProperties", index)
        self.name: str = properties.name.decode().rstrip("\0")
        self.architecture = f"{properties.major}.{properties.minor}"
        self.capability = 10 * properties.major + properties.minor
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

    def copy_in(self, address: int, host: NDArray[Any]) -> None:
        """Copy an array to the device, and wait until it is there."""
        whole = np.ascontiguousarray(host)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, whole.ctypes.data, whole.nbytes, kind)

    def clear(self, address: int, nbytes: int) -> None:
        """Queue zeros into device memory."""
        self._call("cudaMemsetAsync", address, 0, nbytes, self._stream)

    def mark(self, event: Any = None) -> Any:
        """An event that is reached once the stream has done what is queued so far.

        Args:
            event: One that was reached, to be used again.
        """
        if event is None:
            event = self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming)
            self._events.append(event)
        self._call("cudaEventRecord", event, self._stream)
        return event

    def wait(self, event: Any) -> None:
        """Wait for an event; the GIL is released meanwhile."""
        self._call("cudaEventSynchronize", event)

    def seconds(self, enqueue: Callable[[], None], runs: int = 8) -> float:
        """How long the GPU takes for what `enqueue` queues, the mean of `runs` in one graph: a
        processor that queues them one by one would be slower than a small kernel.
        """

        def several() -> None:
            for _ in range(runs):
                enqueue()

        graph = self.capture(several)
        events = [self._call("cudaEventCreate") for _ in range(2)]
        try:
            self.replay(graph)
            self._call("cudaEventRecord", events[0], self._stream)
            self.replay(graph)
            self._call("cudaEventRecord", events[1], self._stream)
            self._call("cudaEventSynchronize", events[1])
            return float(self._call("cudaEventElapsedTime", *events)) / 1e3 / runs
        finally:
            for event in events:
                self._call("cudaEventDestroy", event)
            self.drop(graph)

    def load(self, kernel: Any) -> Any:
        """The function of a `kosine_kernels.cuda.compiling.Compiled`."""
        driver = import_module("cuda.bindings.driver")
        module = self._drive(driver, "cuModuleLoadData", kernel.code)
        self._modules.append(module)
        function = self._drive(driver, "cuModuleGetFunction", module, kernel.name.encode())
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._drive(driver, "cuFuncSetAttribute", function, limit, kernel.shared)
        return function

    def launch(
        self,
        function: Any,
        grid: tuple[int, int],
        threads: int,
        shared: int,
        arguments: tuple[tuple[Any, ...], tuple[Any, ...]],
    ) -> None:
        """Queue a kernel.

        Args:
            arguments: Their values, and their types of ctypes.
        """
        driver = import_module("cuda.bindings.driver")
        self._drive(
            driver,
            "cuLaunchKernel",
            function,
            *(*grid, 1),
            *(threads, 1, 1),
            shared,
            self.stream,
            arguments,
            0,
        )

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
        while self._events:
            self._cuda.cudaEventDestroy(self._events.pop())
        while self._modules:
            import_module("cuda.bindings.driver").cuModuleUnload(self._modules.pop())
        while self._device:
            self._cuda.cudaFree(self._device.pop())
        while self._pinned:
            self._cuda.cudaFreeHost(self._pinned.pop())
        self._cuda.cudaStreamDestroy(self._stream)

    def _drive(self, driver: Any, function: str, *args: Any) -> Any:
        error, *values = getattr(driver, function)(*args)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise BackendError(
                f"{function} failed: {error.name}",
                remedy="check free GPU memory with nvidia-smi; after a fault, load it again",
            )
        return values[0] if values else None

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
