"""Kernels and products, put on a stream: compiled and chosen when they first occur."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from kosine.backends.cuda.device import KernelDevice
from kosine.backends.cuda.products import WORKSPACE_BYTES, Product, Products
from kosine.backends.cuda.weights import Weights
from kosine_kernels.cuda.compiling import Compiled, compile_kernel
from kosine_kernels.steps import Norm

__all__ = ["NARROW_PARTS", "NARROW_TOKENS", "NO_NORM", "Calls", "power"]

ACTIVATE_COLUMNS = 1_024  # of a row that one program takes
C_TYPES = {"fp32": ctypes.c_float, "i32": ctypes.c_int}
# Up to so many rows products are kernels of our own: (columns, depth, warps) of a program, and the
# parts that the depth is cut into where the sum can wait.
NARROW_TOKENS = 128
NARROW_ROWS = 64  # of a program
NARROW = (32, 128, 4)
NARROW_STAGES = 6, 4  # for one program's rows, and for more
NARROW_PARTS = 4
NO_NORM = Norm("", 0.0, bias=False)


class Calls:
    """What an encoder's steps are made of, on one stream.

    Args:
        gpu: Its stream takes everything.
        weights: On that GPU.
        dtype: Of weights and activations.

    Attributes:
        chained: Whether kernels may be started before those in front of them have ended.
    """

    def __init__(self, gpu: KernelDevice, weights: Weights, dtype: str) -> None:
        self.chained = False
        self._gpu = gpu
        self._weights = weights
        self._dtype = dtype
        self._kernels: dict[Any, tuple[Compiled, Any]] = {}
        self._products = Products(gpu.allocate(WORKSPACE_BYTES), gpu.stream, gpu.seconds)

    def close(self) -> None:
        """Let go of cuBLASLt."""
        self._products.close()

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        arguments: Sequence[float],
        constants: Mapping[str, Any],
        *,
        dtype: str | None = None,
        warps: int = 4,
        stages: int = 2,
    ) -> None:
        """Put a kernel of `kosine_kernels.cuda` on the stream, by its name."""
        dtype = dtype or self._dtype
        # The first of all follows no kernel.
        chained = self.chained and name != "embed"
        constants = {**constants, "CHAINED": chained}
        key = (name, dtype, warps, stages, *constants.values())
        if key not in self._kernels:
            compiled = compile_kernel(
                name,
                constants,
                dtype=dtype,
                architecture=self._gpu.capability,
                warps=warps,
                stages=stages,
            )
            self._kernels[key] = (compiled, self._gpu.load(compiled))
        compiled, function = self._kernels[key]
        types = [C_TYPES.get(kind, ctypes.c_void_p) for kind in compiled.types]
        types += [ctypes.c_void_p] * 2  # scratch memory, which no kernel here needs
        self._gpu.launch(
            function,
            grid,
            compiled.threads,
            compiled.shared,
            ((*arguments, 0, 0), tuple(types)),
            chained=chained,
        )

    def multiply(self, name: str, rows: int, x: int, out: int) -> None:
        """out = linear(x)"""
        if self.is_narrow(rows):
            self.narrow(name, rows, x, out)
        else:
            self.multiply_by_cublas(name, rows, x, out, self._dtype)

    def is_narrow(self, rows: int) -> bool:
        """Whether a product of so many rows is a kernel of our own."""
        return rows <= NARROW_TOKENS

    def narrow(
        self,
        name: str,
        rows: int,
        x: int,
        out: int,
        *,
        activation: str = "identity",
        parts: int = 1,
    ) -> int:
        """out = activation(linear(x)) in a kernel of our own; in how many parts."""
        linear = self._weights.linear[name]
        columns, depth, warps = NARROW
        while linear.inner % (depth * parts):
            depth, parts = (depth // 2, parts) if depth > 16 else (NARROW[1], parts // 2)
        height = min(NARROW_ROWS, max(16, power(rows)))
        self.launch(
            "narrow_product",
            (-(-linear.columns // columns) * parts, -(-rows // height)),
            (x, linear.weight, linear.bias, out, rows),
            {
                "INNER": linear.inner,
                "COLUMNS": linear.columns,
                "ROWS": height,
                "BLOCK": columns,
                "DEPTH": depth,
                "PARTS": parts,
                "BIAS": linear.bias != 0,
                "ACTIVATION": activation,
            },
            warps=warps,
            stages=NARROW_STAGES[rows > height],
        )
        return parts

    def multiply_by_cublas(self, name: str, rows: int, x: int, out: int, dtype: str) -> None:
        linear = self._weights.linear[name]
        self._products.multiply(
            Product(rows, linear.inner, linear.columns, dtype, x, linear.weight, linear.bias, out)
        )

    def activate(
        self,
        activation: str,
        width: int,
        rows: int,
        inner: int,
        out: int,
        *,
        gated: bool = False,
        residual: int = 0,
        dtype: str | None = None,
    ) -> None:
        """The kernel `activate` on rows of `width` columns."""
        block = min(ACTIVATE_COLUMNS, power(width))
        self.launch(
            "activate",
            (rows, -(-width // block)),
            (inner, out, residual),
            {
                "WIDTH": width,
                "BLOCK": block,
                "ACTIVATION": activation,
                "GATED": gated,
                "RESIDUAL": residual != 0,
            },
            dtype=dtype,
            warps=2,
        )

    def norm(self, norm: Norm) -> tuple[int, int]:
        """Addresses of its weight and its bias."""
        if norm is NO_NORM:
            return 0, 0
        bias = self._weights.at[f"{norm.name}.bias"] if norm.bias else 0
        return self._weights.at[f"{norm.name}.weight"], bias


def power(width: int) -> int:
    """The least power of two that is not less."""
    return 1 << (width - 1).bit_length()
