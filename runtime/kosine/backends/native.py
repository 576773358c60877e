"""The native CPU engine on packed tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.backend import CPU_BATCH_TOKENS, Capabilities, closed_error
from kosine.backends.device import check_cpu, explain
from kosine.backends.lowering import lower, require_supported
from kosine.bundle import Bundle
from kosine.bundle.int8 import INT8_WEIGHTS
from kosine.errors import (
    BackendError,
    BackendUnavailable,
    IntegrityError,
    MissingTarget,
    UnknownOption,
)
from kosine.exit_gate import awaited_at_exit
from kosine.packed import Float32, Packed, Pooled
from kosine.positions import position_ids
from kosine.threads import usable_cpus
from kosine_kernels.engine import ISA_VARIABLE, Engine, Unavailable, isa_levels, select_isa
from kosine_kernels.quantized import products
from kosine_kernels.steps import Step

__all__ = ["CAPABILITIES", "IN_BYTES", "NATIVE_INT8", "NativeBackend", "probe", "require_engine"]

CAPABILITIES = Capabilities(
    ("float32", "bfloat16", "w8a16", "int8"), {"cpu": ("bfloat16", "float32")}
)
NATIVE_INT8 = "native-int8"
IN_BYTES = ("w8a16", "int8")  # the dtypes that need it


def probe(bundle: Bundle, dtype: str) -> None:
    """Raise what keeps an engine from being made, as far as that shows without making one."""
    require_engine(dtype)
    require_supported(bundle.manifest.spec, bundle.path.name)
    if dtype in IN_BYTES and bundle.manifest.int8 is None:
        raise MissingTarget(
            f"{bundle.path.name} has no weights of bytes, which dtype {dtype!r} runs on",
            limit=f"its targets: {', '.join(bundle.manifest.targets)}",
            remedy=f"export it again with --target {NATIVE_INT8}",
        )


class NativeBackend:
    """Runs `weights.safetensors` in `kosine_kernels.engine.Engine`.

    In "w8a16" and "int8" the products of layers take `int8/weights.safetensors` instead.

    The same text gives the same bits alone, anywhere in any batch, and with any number of
    threads, as long as dtype and ISA level stay the same. The environment variable `KOSINE_ISA`
    (avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx_bf16, amx_int8) forbids everything above
    a level.

    Args:
        bundle: The opened bundle. Its weights are packed into memory of the engine's own.
        dtype: "float32" (AVX2, AVX512), "bfloat16" (AVX512-BF16, AMX), "w8a16" or "int8" (both
            AVX2, AVX-VNNI, AVX512-VNNI, AMX).
        device: "auto" or "cpu".
        threads: Most threads in one call; None takes the CPUs that the process may really use.
        spin: Let idle threads watch for the next call 10 ms long, not 50 us.

    Attributes:
        isa: The ISA level in use.
        threads: Most threads in one call.

    Raises:
        BackendUnavailable: No native module in this build, no such ISA level or dtype on this
            machine, or another device.
        UnknownOption: `threads` out of range, or a `KOSINE_ISA` that is no level of this machine.
        MissingTarget: Weights of bytes are needed, and the bundle has none.
        IntegrityError: They are not those of this model.
        BackendError: The engine cannot run a model of this shape.
    """

    name = "native"
    device = "cpu"
    batch_tokens = CPU_BATCH_TOKENS

    def __init__(
        self,
        bundle: Bundle,
        *,
        dtype: str = "float32",
        device: str = "auto",
        threads: int | None = None,
        spin: bool = False,
    ) -> None:
        check_cpu(self.name, device, threads)
        probe(bundle, dtype)
        self.isa = require_engine(dtype)
        spec, int8 = bundle.manifest.spec, bundle.manifest.int8
        steps = lower(spec)
        try:
            engine = awaited_at_exit(Engine)(
                _tensors(bundle, steps, in_bytes=dtype in IN_BYTES),
                steps,
                dtype=dtype,
                bytes_only=int8.bytes_only if int8 is not None and dtype == "int8" else (),
                threads=threads or usable_cpus(),
                spin=spin,
                isa=self.isa,
            )
        except (ValueError, TypeError) as error:
            raise BackendError(
                f"the native engine cannot run {bundle.path.name}: {error}",
                remedy="use backend='onnx'",
            ) from error
        self._engine: Engine | None = engine
        self.dim = engine.dim
        self.dtype = dtype
        self.threads = engine.threads
        self._positions = spec.embeddings.positions
        self._hidden_size = spec.hidden_size

    def run(self, batch: Packed) -> Pooled:
        """See `Backend.run`; the GIL is released meanwhile."""
        return self._call_engine(batch)

    def run_tokens(self, batch: Packed) -> tuple[Pooled, Float32]:
        """See `kosine.heads.TokenBackend`."""
        hidden = np.empty((batch.num_tokens, self._hidden_size), np.float32)
        return self._call_engine(batch, hidden), hidden

    @awaited_at_exit
    def _call_engine(self, batch: Packed, hidden: Float32 | None = None) -> Pooled:
        engine = self._engine
        if engine is None:
            raise closed_error()
        try:
            ids, starts = (np.ascontiguousarray(p, np.int32) for p in (batch.ids, batch.starts))
            skip = None if batch.skip is None else np.ascontiguousarray(batch.skip, np.int32)
            positions = position_ids(ids, starts, self._positions)
            return Pooled(*engine.forward(ids, starts, positions, skip, hidden))
        except ValueError as error:
            raise BackendError(
                f"the native engine refused a batch of {len(batch)} texts: {error}",
                remedy="pass ids and lengths within the manifest's limits",
            ) from error
        except (MemoryError, RuntimeError) as error:
            what, remedy = explain(error, "run `kosine verify` on the bundle")
            raise BackendError(
                f"the native engine failed on {len(batch)} texts of {batch.num_tokens} tokens: "
                f"{what}",
                remedy=remedy,
            ) from error

    def close(self) -> None:
        """See `Backend.close`: the packed weights, the workspaces and the threads go."""
        self._engine = None  # a call under way holds on to it until it ends


def _tensors(bundle: Bundle, steps: Sequence[Step], *, in_bytes: bool) -> dict[str, NDArray[Any]]:
    """The arrays that the engine packs, as views of the bundle's files.

    Raises:
        IntegrityError: The weights of bytes are of other products, or have factors that scale
            nothing.
    """
    weights = bundle.tensors()
    kept = (name for name, entry in weights.entries.items() if entry.dtype == np.float32)
    tensors = {name: weights[name] for name in kept}
    if not in_bytes:
        return tensors
    file = bundle.tensors(INT8_WEIGHTS)
    found = {name: array for name, array in file.tensors().items() if name[:5] != "_pad."}
    names = products(steps)
    wanted = {f"{name}.{part}" for name in names for part in ("weight", "scale")}
    wanted |= {f"{source}.smooth" for source in names.values()}
    odd = sorted(wanted ^ set(found))
    if odd:
        raise IntegrityError(
            f"{INT8_WEIGHTS} {'lacks' if odd[0] in wanted else 'has'} tensor {odd[0][:60]!r}",
            limit=f"{len(wanted)} tensors of {len(names)} products",
            remedy="export the bundle again",
        )
    for name, array in found.items():
        # A NaN of the factors would be told from one of the model only by its place.
        if name.endswith((".scale", ".smooth")) and not _positive(array):
            raise IntegrityError(
                f"{INT8_WEIGHTS} has a factor in {name[:60]!r} that scales nothing",
                limit="finite numbers above 0",
                remedy="export the bundle again",
            )
    return tensors | found


def _positive(array: NDArray[Any]) -> bool:
    return bool((array > 0).all() and (array < np.inf).all())


def require_engine(dtype: str) -> str:
    """The ISA level for a dtype.

    Raises:
        UnknownOption: `KOSINE_ISA` names no level, or one that this machine lacks.
        BackendUnavailable: No native module, or no level that is allowed here has the dtype.
    """
    try:
        return select_isa(dtype)
    except (Unavailable, ValueError) as error:
        forced = os.environ.get(ISA_VARIABLE, "")
        reason = str(error).rpartition("; ")[0]  # the remedies below know more than its own
        # Every level runs float32: one that does not is not there. Without AVX2 none is, and
        # then the processor is to blame.
        absent = forced and isa_levels() and not _runs("float32", forced)
        if absent or isinstance(error, ValueError):
            raise UnknownOption(
                f"the environment variable {ISA_VARIABLE} cannot be followed: {reason}",
                remedy=f"choose one of these, or unset {ISA_VARIABLE}",
            ) from error
        if forced and _runs(dtype, ""):
            remedy = f"unset {ISA_VARIABLE}, or use dtype='float32'"
        elif _runs("float32", ""):
            remedy = "use dtype='float32'"
        else:
            remedy = "use backend='onnx'"
        held = f" with {ISA_VARIABLE}={forced}" if forced and isa_levels() else ""
        raise BackendUnavailable(
            f"backend 'native' cannot run in {dtype} here{held}: {reason}", remedy=remedy
        ) from error


def _runs(dtype: str, level: str) -> bool:
    """Whether the dtype runs on this machine with nothing above `level` ("" for no limit)."""
    try:
        select_isa(dtype, level)
    except (Unavailable, ValueError):
        return False
    return True
