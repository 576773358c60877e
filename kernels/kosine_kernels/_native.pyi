"""The extension module, built from `kernels/src`; `kosine_kernels.engine` documents it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine_kernels.steps import Step

class Unavailable(RuntimeError): ...

def isa_levels() -> list[str]: ...
def select_isa(dtype: str, isa: str) -> str: ...

class Engine:
    dim: int
    hidden: int
    dtype: str
    isa: str
    threads: int
    packed_bytes: int

    def __init__(
        self,
        tensors: dict[str, NDArray[np.float32] | NDArray[np.int8]],
        steps: list[Step],
        *,
        dtype: str,
        bytes_only: set[str],
        isa: str,
        threads: int,
        spin: bool,
        guard: str,
    ) -> None: ...
    def forward(
        self,
        ids: NDArray[np.int32],
        starts: NDArray[np.int32],
        positions: NDArray[np.int32],
        skip: NDArray[np.int32] | None,
        vectors: NDArray[np.float32],
        norms: NDArray[np.float32],
        states: NDArray[np.float32] | None,
    ) -> None: ...

class kernels:  # noqa: N801  (a submodule)
    """One kernel at a time, in guarded buffers: for tests and measurements."""

    @staticmethod
    def gemm(
        dtype: str,
        isa: str,
        a: NDArray[np.float32],
        weight: NDArray[np.float32] | NDArray[np.int8],
        bias: NDArray[np.float32],
        out: NDArray[np.float32],
        epilogue: str,
        guard: str,
        scale: NDArray[np.float32] | None = None,
        smooth: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]: ...
    @staticmethod
    def quantize(
        isa: str, x: NDArray[np.float32], smooth: NDArray[np.float32] | None, guard: str
    ) -> NDArray[np.float32]: ...
    @staticmethod
    def layer_norm(
        dtype: str,
        isa: str,
        x: NDArray[np.float32],
        gain: NDArray[np.float32],
        bias: NDArray[np.float32],
        eps: float,
        guard: str,
        keeps_x: bool = False,
        rms: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    @staticmethod
    def norm_rows(
        dtype: str,
        isa: str,
        x: NDArray[np.float32],
        gain: NDArray[np.float32],
        bias: NDArray[np.float32],
        eps: float,
        rms: bool,
        out: NDArray[np.float32],
        adds: bool,
        guard: str,
    ) -> NDArray[np.float32]: ...
    @staticmethod
    def round(dtype: str, isa: str, x: NDArray[np.float32], guard: str) -> NDArray[np.float32]: ...
    @staticmethod
    def attention(
        dtype: str,
        isa: str,
        q: NDArray[np.float32],
        k: NDArray[np.float32],
        v: NDArray[np.float32],
        guard: str,
        window: int = ...,
        causal: bool = False,
        distances: NDArray[np.float32] | None = None,
        parts: int = 1,
    ) -> NDArray[np.float32]: ...
    @staticmethod
    def stray_read(guard: str) -> int: ...
    @staticmethod
    def report_leaks() -> None: ...
    @staticmethod
    def schedule(
        dtype: str, isa: str, starts: NDArray[np.int32], threads: int
    ) -> tuple[bool, list[list[int]]]: ...

class search:  # noqa: N801  (a submodule)
    """The best rows of a corpus; `kosine_kernels.search` documents it."""

    @staticmethod
    def products(
        queries: NDArray[np.float32],
        corpus: NDArray[Any],
        bits: bool,
        shift: NDArray[np.float32] | None,
        scale: NDArray[np.float32] | None,
        normalise: bool,
        threads: int,
        isa: str,
        indices: NDArray[np.int64],
        scores: NDArray[np.float32],
    ) -> None: ...
    @staticmethod
    def distances(
        queries: NDArray[np.uint8],
        corpus: NDArray[np.uint8],
        threads: int,
        isa: str,
        indices: NDArray[np.int64],
        scores: NDArray[np.float32],
    ) -> None: ...
