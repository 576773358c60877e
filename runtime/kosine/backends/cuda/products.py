"""cuBLASLt's matrix products: `out = x @ weight.T + bias`, the fastest algorithm of each shape.

The library is called through ctypes: the names and numbers are those of `cublasLt.h`, CUDA 12 and
13.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kosine.backends.device import first_line
from kosine.errors import BackendError, MissingExtra

__all__ = ["WORKSPACE_BYTES", "Product", "Products"]

WORKSPACE_BYTES = 32 << 20  # what NVIDIA advises for Hopper
ALGORITHMS = 8  # of those that the heuristic names, best first

TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType_t
COMPUTE_32F = 68
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # cublasLtMatmulDescAttributes_t
EPILOGUE_BIAS = 4
MAX_WORKSPACE_BYTES = 1  # cublasLtMatmulPreferenceAttributes_t


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace_bytes", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class Product:
    """What is multiplied. Addresses are on the GPU; rows lie end to end.

    Attributes:
        rows, inner, columns: x is (rows, inner), weight (columns, inner), out (rows, columns).
        dtype: Of all of them and of the bias: "float16", "bfloat16" or "float32". Sums are
            float32, without TF32.
        bias: (columns,), or 0 where there is none.
    """

    rows: int
    inner: int
    columns: int
    dtype: str
    x: int
    weight: int
    bias: int
    out: int


class Products:
    """cuBLASLt on one GPU.

    Args:
        workspace: Address of WORKSPACE_BYTES on the GPU.
        stream: Handle of the stream that products go to.
        seconds: How long the GPU takes for what a function enqueues.

    Raises:
        MissingExtra: There is no cuBLASLt.
        BackendError: It does not start.
    """

    def __init__(
        self, workspace: int, stream: int, seconds: Callable[[Callable[[], None]], float]
    ) -> None:
        self._library = _load()
        self._workspace = workspace
        self._stream = c_void_p(stream)
        self._seconds = seconds
        self._handle = c_void_p()
        self._call("cublasLtCreate", byref(self._handle))
        self._chosen: dict[tuple[int, int, int, str, bool], _Heuristic] = {}

    def multiply(self, product: Product) -> None:
        """Put a product on the stream. The first one of a shape is timed: not for a capture."""
        key = (product.rows, product.inner, product.columns, product.dtype, bool(product.bias))
        with _Described(self, product) as described:
            if key not in self._chosen:
                self._chosen[key] = self._fastest(described, product)
            self._enqueue(described, product, self._chosen[key])

    def close(self) -> None:
        """Let go of cuBLASLt's handle."""
        if self._handle:
            self._library.cublasLtDestroy(self._handle)
            self._handle = c_void_p()

    def _fastest(self, described: _Described, product: Product) -> _Heuristic:
        preference = c_void_p()
        self._call("cublasLtMatmulPreferenceCreate", byref(preference))
        try:
            limit = c_size_t(WORKSPACE_BYTES)
            self._call(
                "cublasLtMatmulPreferenceSetAttribute",
                preference,
                MAX_WORKSPACE_BYTES,
                byref(limit),
                c_size_t(ctypes.sizeof(limit)),
            )
            found = (_Heuristic * ALGORITHMS)()
            count = c_int()
            weight, x, out = described.layouts
            self._call(
                "cublasLtMatmulAlgoGetHeuristic",
                self._handle,
                described.operation,
                weight,
                x,
                out,
                out,
                preference,
                ALGORITHMS,
                found,
                byref(count),
            )
        finally:
            self._library.cublasLtMatmulPreferenceDestroy(preference)
        usable = [each for each in found[: count.value] if each.status == 0]
        if not usable:
            raise BackendError(
                f"cuBLASLt has no algorithm for {product}",
                remedy="use dtype='float16', or backend='onnx'",
            )
        return min(
            usable,
            key=lambda each: self._seconds(lambda: self._enqueue(described, product, each)),
        )

    def _enqueue(self, described: _Described, product: Product, algorithm: _Heuristic) -> None:
        weight, x, out = described.layouts
        self._call(
            "cublasLtMatmul",
            self._handle,
            described.operation,
            byref(c_float(1)),
            c_void_p(product.weight),
            weight,
            c_void_p(product.x),
            x,
            byref(c_float(0)),
            c_void_p(product.out),
            out,
            c_void_p(product.out),
            out,
            byref(algorithm),
            c_void_p(self._workspace),
            c_size_t(WORKSPACE_BYTES),
            self._stream,
        )

    def _call(self, function: str, *args: Any) -> None:
        status = getattr(self._library, function)(*args)
        if status:
            raise BackendError(
                f"{function} failed with status {status}",
                remedy="check free GPU memory with nvidia-smi; after a fault, load it again",
            )


class _Described:
    """The descriptors of a product. cuBLASLt counts columns first: it sees every matrix turned,
    weight (inner, columns), to be turned back, x (inner, rows) and out (columns, rows).
    """

    def __init__(self, owner: Products, product: Product) -> None:
        self._library = owner._library
        self.operation = c_void_p()
        self.layouts = (c_void_p(), c_void_p(), c_void_p())
        kind = TYPES[product.dtype]
        owner._call("cublasLtMatmulDescCreate", byref(self.operation), COMPUTE_32F, 0)
        attributes: list[tuple[int, Any]] = [(TRANSPOSE_A, c_int(1)), (TRANSPOSE_B, c_int(0))]
        if product.bias:
            attributes += [(EPILOGUE, c_int(EPILOGUE_BIAS)), (BIAS_POINTER, c_void_p(product.bias))]
        for name, value in attributes:
            owner._call(
                "cublasLtMatmulDescSetAttribute",
                self.operation,
                name,
                byref(value),
                c_size_t(ctypes.sizeof(value)),
            )
        shapes = (
            (product.inner, product.columns),
            (product.inner, product.rows),
            (product.columns, product.rows),
        )
        for layout, (height, width) in zip(self.layouts, shapes, strict=True):
            owner._call(
                "cublasLtMatrixLayoutCreate",
                byref(layout),
                kind,
                c_uint64(height),
                c_uint64(width),
                c_int64(height),
            )

    def __enter__(self) -> _Described:
        return self

    def __exit__(self, *_: object) -> None:
        for layout in self.layouts:
            self._library.cublasLtMatrixLayoutDestroy(layout)
        self._library.cublasLtMatmulDescDestroy(self.operation)


def _load() -> Any:
    """libcublasLt of pip, conda or the system, as NVIDIA's own search finds it."""
    try:
        found = import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt")
        return ctypes.CDLL(found.abs_path)
    except Exception as error:  # its exception classes share no base of their own
        raise MissingExtra(
            f"backend 'cuda' needs cuBLAS, which does not load: {first_line(error)}",
            remedy="pip install 'kosine[cuda]'",
        ) from error
