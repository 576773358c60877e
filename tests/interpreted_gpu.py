"""A GPU of host memory for kosine's own engine: kernels in Triton's interpreter, products in torch.

Needs TRITON_INTERPRET=1 before Triton is imported. Memory that nothing was written to is NaN.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kosine.backends.cuda.products import Product
from kosine.errors import BackendError
from kosine_kernels.cuda import compiling, kernels

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i32": torch.int32}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class InterpretedCuda:
    """What `kosine.backends.gpu.Cuda` has, on a stream that does things at once."""

    name, architecture, capability, stream = "an interpreter", "9.0", 90, 7
    made: list[InterpretedCuda] = []  # noqa: RUF012
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

    def seconds(self, enqueue: Callable[[], None], runs: int = 8) -> float:
        raise AssertionError("products are torch's here")

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

    def drop(self, graph: Any) -> None:
        self.dropped += 1

    def close(self) -> None:
        self.blocks.clear()
        self.closed = True

    def load(self, kernel: Any) -> Any:
        return kernel

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int],
        threads: int,
        shared: int,
        arguments: tuple[tuple[Any, ...], tuple[Any, ...]],
    ) -> None:
        *values, _, _ = arguments[0]
        assert len(values) == len(kernel.types)

        def work() -> None:
            found = [
                value if kind[0] != "*" else self.tensor(value, TORCH[kind[1:]])
                for value, kind in zip(values, kernel.types, strict=True)
            ]
            kernel.function[grid](*found, **kernel.constants)

        self.put(work)

    def put(self, work: Callable[[], None]) -> None:
        self.launched += 1
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def tensor(self, address: int, dtype: torch.dtype) -> torch.Tensor:
        """From an address to the end of its block."""
        if address == 0:
            return torch.zeros(1, dtype=dtype)
        assert address % 16 == 0
        base = self.order[bisect_right(self.order, address) - 1]
        block = self.blocks[base]
        nbytes = block.ctypes.data + block.nbytes - address
        assert nbytes > 0
        nbytes -= nbytes % dtype.itemsize
        return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=dtype)


class TorchProducts:
    """`Products`, rounded as cuBLASLt rounds: sums in float32, one rounding at the end."""

    gpu: InterpretedCuda

    def __init__(self, workspace: int, stream: int, seconds: Any) -> None:
        self.gpu = InterpretedCuda.made[-1]

    def multiply(self, product: Product) -> None:
        self.gpu.put(lambda: self.compute(product))

    def compute(self, p: Product) -> None:
        kind = HALVES[p.dtype]
        x = self.gpu.tensor(p.x, kind)[: p.rows * p.inner].view(p.rows, p.inner)
        weight = self.gpu.tensor(p.weight, kind)[: p.columns * p.inner].view(p.columns, p.inner)
        out = x.float() @ weight.float().T
        if p.bias:
            out += self.gpu.tensor(p.bias, kind)[: p.columns].float()
        self.gpu.tensor(p.out, kind)[: p.rows * p.columns] = out.to(kind).reshape(-1)

    def close(self) -> None:
        pass


def compile_kernel(name: str, constants: Mapping[str, Any], *, dtype: str, **_: Any) -> Any:
    types = tuple(compiling.argument_types(name, constants, dtype).values())
    function = getattr(kernels, name)
    assert set(function.arg_names) == {*compiling.SIGNATURES[name], *constants}
    return SimpleNamespace(
        function=function, constants=dict(constants), types=types, threads=128, shared=0
    )


def stand_in(monkeypatch: Any) -> type[InterpretedCuda]:
    """Put the interpreter in the place of CUDA, Triton's compiler and cuBLASLt."""
    InterpretedCuda.made.clear()
    monkeypatch.setattr(InterpretedCuda, "fail_capture", False)
    monkeypatch.setattr("kosine.backends.cuda.backend.Cuda", InterpretedCuda)
    monkeypatch.setattr("kosine.backends.cuda.backend.check_gpu", lambda _: None)
    monkeypatch.setattr("kosine.backends.cuda.forward.Products", TorchProducts)
    monkeypatch.setattr("kosine.backends.cuda.forward.compile_kernel", compile_kernel)
    return InterpretedCuda
