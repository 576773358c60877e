"""The native CPU engine: packed token ids in, unit vectors out, no Python in between.

It needs Linux on x86-64 with AVX2 and a build with the native module; elsewhere `Engine` raises
`Unavailable`. See `kernels/README.md` for what happens inside.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine_kernels.steps import Step

try:
    from kosine_kernels import _native
except ImportError as error:
    _native_missing: ImportError | None = error
else:
    _native_missing = None

__all__ = ["ISA_VARIABLE", "Engine", "Unavailable", "forced_level", "isa_levels", "select_isa"]

ISA_VARIABLE = "KOSINE_ISA"
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class Unavailable(RuntimeError):
    """The native module is not in this build, or this machine lacks what was asked for."""


class Engine:
    """An encoder's weights, packed for this processor, and the threads to run them.

    Calls may come from several threads, and from a child of `fork()`: the packed weights stay
    shared with the parent, the threads are made anew. The same sentence gives the same bits
    alone, anywhere in any batch, and with any number of threads.

    Args:
        tensors: Names to C-contiguous float32 arrays (memory-mapped ones too), as
            `kosine_kernels.reference.encode` takes them. They are copied: nothing holds on to
            them afterwards.
        steps: What to compute, in order; see `kosine_kernels.steps`. Row widths and head sizes
            are multiples of 16, head sizes at most 256.
        dtype: "float32", or "bfloat16": products of bfloat16 operands summed in float32,
            attention's too, with everything between products in float32. "w8a16" and "int8" take
            weights of signed bytes, `NAME.weight` int8 (in, out) with `NAME.scale` float32
            (out,), for the products of layers: `NAME.smooth` float32 (in,), where there is one,
            is what their input is multiplied by. "w8a16" rounds the input to 15 bits and "int8"
            to bytes, see `kosine_kernels.quantized`. Their attention is bfloat16 where the
            processor multiplies that.
        bytes_only: With "int8": names of products that run as in "w8a16". Of a gate and what it
            gates both or none.
        threads: Most threads in one call.
        spin: Let the threads watch 10 ms for the next call before they sleep, not 50 us. Saves
            a wake-up in each call, and burns those processors between calls.
        isa: "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16" or "amx_int8":
            nothing above that level is used. Default: the environment variable `KOSINE_ISA`, or
            the best that the machine has. ("amx_bf16_emulated" and "amx_int8_emulated" are for
            tests: AMX done in AVX512, slowly, and never chosen unless they are named.)
        guard: "after" or "before" puts an unmapped page against that side of every buffer: a
            stray access ends the process. For tests; slow.

    Raises:
        Unavailable: No native module, or no such ISA level or dtype on this machine.
        ValueError: Shapes, names or numbers that do not fit, or steps in an impossible order.
        TypeError: A tensor that is not C-contiguous float32, or a step of another type.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        steps: Sequence[Step],
        *,
        dtype: str = "float32",
        bytes_only: Collection[str] = (),
        threads: int = 1,
        spin: bool = False,
        isa: str | None = None,
        guard: str = "none",
    ) -> None:
        native = native_module()
        for name, tensor in tensors.items():
            # The extension sees neither the dtype's byte order nor the alignment of a view.
            flags = tensor.flags
            known = tensor.dtype in (np.float32, np.int8)
            if not (known and flags.c_contiguous and flags.aligned):
                raise TypeError(
                    f"tensor {name} is not an aligned, C-contiguous float32 or int8 array; "
                    "convert it"
                )
        try:
            self._engine = native.Engine(
                dict(tensors),
                list(steps),
                dtype=dtype,
                bytes_only=set(bytes_only),
                isa=forced_level(isa),
                threads=threads,
                spin=spin,
                guard=guard,
            )
        except native.Unavailable as error:
            raise Unavailable(str(error)) from None
        self.dim: int = self._engine.dim
        self.hidden: int = self._engine.hidden
        self.dtype: str = self._engine.dtype
        self.isa: str = self._engine.isa
        self.threads: int = self._engine.threads
        self.packed_bytes: int = self._engine.packed_bytes

    def forward(
        self,
        ids: Int32,
        starts: Int32,
        positions: Int32,
        skip: Int32 | None = None,
        states: Float32 | None = None,
    ) -> tuple[Float32, Float32]:
        """Encode packed sentences; the GIL is released meanwhile.

        Args:
            ids: (T,) int32 token ids.
            starts: (B + 1,) int32 offsets into `ids`, from 0 to T, each sentence of at least 1.
            positions: (T,) int32 rows of the position table.
            skip: (B,) int32 leading tokens that pooling leaves out, or None. Where nothing is
                left, cls falls back to the first token and the other poolings give zeros.
            states: (T, hidden) float32, filled with the rows of tokens that pooling reads; None
                where nobody needs them.

        Returns:
            vectors (B, dim) float32 of unit length and norms (B,) float32 before normalising.

        Raises:
            ValueError: A number out of range, or arrays that do not fit; nothing was computed.
            TypeError: An array that is not C-contiguous int32.
        """
        count = max(len(starts) - 1, 0)
        vectors = np.empty((count, self.dim), np.float32)
        norms = np.empty(count, np.float32)
        self._engine.forward(ids, starts, positions, skip, vectors, norms, states)
        return vectors, norms

    def __repr__(self) -> str:
        return (
            f"<kosine_kernels.Engine dim={self.dim} {self.dtype} {self.isa} threads={self.threads}>"
        )


def isa_levels() -> tuple[str, ...]:
    """The levels that this machine has, lowest first; empty where the engine cannot run."""
    return tuple(_native.isa_levels()) if _native_missing is None else ()


def select_isa(dtype: str, isa: str | None = None) -> str:
    """The level that an `Engine` of that dtype would use.

    Raises:
        Unavailable, ValueError: as `Engine` does.
    """
    native = native_module()
    try:
        level: str = native.select_isa(dtype, forced_level(isa))
    except native.Unavailable as error:
        raise Unavailable(str(error)) from None
    return level


def native_module() -> ModuleType:
    """The extension module.

    Raises:
        Unavailable: It is not in this build.
    """
    if _native_missing is not None:
        raise Unavailable(
            f"the native module cannot be imported ({_native_missing}); it is built on Linux "
            "x86-64; install kosine there with a C++ compiler, or use another backend"
        )
    return _native


def forced_level(isa: str | None) -> str:
    """The level not to be exceeded, empty for any: `isa`, or what `KOSINE_ISA` says."""
    return os.environ.get(ISA_VARIABLE, "") if isa is None else isa
