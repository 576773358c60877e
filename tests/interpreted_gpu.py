"""A GPU of host memory for kosine's own engine: kernels in Triton's interpreter, products in torch.

Needs TRITON_INTERPRET=1 before Triton is imported.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from host_gpu import HostCuda
from kosine.backends.cuda.products import Product
from kosine_kernels.cuda import compiling

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i32": torch.int32}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class InterpretedCuda(HostCuda):
    """Runs Triton's kernels in its interpreter."""

    def seconds(self, enqueue: Any, runs: int = 8) -> float:  # noqa: ARG002
        raise AssertionError("products are torch's here")

    def load(self, kernel: Any) -> Any:
        return kernel

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int],
        threads: int,  # noqa: ARG002
        shared: int,  # noqa: ARG002
        arguments: tuple[tuple[Any, ...], tuple[Any, ...]],
        *,
        chained: bool = False,  # noqa: ARG002
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

    def __init__(self, workspace: int, stream: int, seconds: Any) -> None:  # noqa: ARG002
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
    function = compiling.find(name)
    constants = {**constants, "CHAINED": False}  # inline assembly
    assert set(function.arg_names) == {*compiling.SIGNATURES[name], *constants}
    return SimpleNamespace(
        function=function, constants=constants, types=types, threads=128, shared=0
    )


def stand_in(monkeypatch: Any) -> type[InterpretedCuda]:
    """Put the interpreter in the place of Triton's compiler, and torch in that of cuBLASLt."""
    InterpretedCuda.made.clear()
    monkeypatch.setattr("kosine.backends.cuda.calls.Products", TorchProducts)
    monkeypatch.setattr("kosine.backends.cuda.calls.compile_kernel", compile_kernel)
    return InterpretedCuda
