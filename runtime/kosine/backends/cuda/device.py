"""A GPU that runs kernels: what `kosine.backends.gpu.Cuda` has, and launches, events and timing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.backends.gpu import Cuda
from kosine.errors import BackendError

__all__ = ["KernelDevice"]


class KernelDevice(Cuda):
    """As `Cuda`.

    Attributes:
        capability: The compute capability as a number, for example 90.
    """

    def __init__(self, index: int) -> None:
        self._events: list[Any] = []
        self._modules: list[Any] = []
        super().__init__(index)
        self._driver = import_module("cuda.bindings.driver")
        self.capability = int(self.architecture.replace(".", ""))
        self._chaining = self._driver.CUlaunchAttribute()
        kinds = self._driver.CUlaunchAttributeID
        self._chaining.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        self._chaining.value.programmaticStreamSerializationAllowed = 1

    def copy_in(self, address: int, host: NDArray[Any]) -> None:
        """Copy an array to the device, and wait until it is there."""
        whole = np.ascontiguousarray(host)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, whole.ctypes.data, whole.nbytes, kind)

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
        module = self._drive("cuModuleLoadData", kernel.code)
        self._modules.append(module)
        function = self._drive("cuModuleGetFunction", module, kernel.name.encode())
        limit = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._drive("cuFuncSetAttribute", function, limit, kernel.shared)
        return function

    def launch(
        self,
        function: Any,
        grid: tuple[int, int],
        threads: int,
        shared: int,
        arguments: tuple[tuple[Any, ...], tuple[Any, ...]],
        *,
        chained: bool = False,
    ) -> None:
        """Queue a kernel.

        Args:
            arguments: Their values, and their types of ctypes.
            chained: Start it before the kernel in front of it has ended: it waits itself.
        """
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = *grid, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = shared
        config.hStream = self.stream
        if chained:
            config.attrs = [self._chaining]
            config.numAttrs = 1
        self._drive("cuLaunchKernelEx", config, function, arguments, 0)

    def close(self) -> None:
        """See `Cuda.close`."""
        self._cuda.cudaSetDevice(self._index)
        self._cuda.cudaStreamSynchronize(self._stream)
        while self._events:
            self._cuda.cudaEventDestroy(self._events.pop())
        while self._modules:
            self._driver.cuModuleUnload(self._modules.pop())
        super().close()

    def _drive(self, function: str, *args: Any) -> Any:
        error, *values = getattr(self._driver, function)(*args)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise BackendError(
                f"{function} failed: {error.name}",
                remedy="check free GPU memory with nvidia-smi; after a fault, load it again",
            )
        return values[0] if values else None
