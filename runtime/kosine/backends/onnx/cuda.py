"""ONNX Runtime on a GPU, on packed rows of fixed shapes."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kosine.backend import closed_error
from kosine.backends.device import check_threads, cuda_index, first_line
from kosine.backends.forks import check_process, never_destroy, watch_forks
from kosine.backends.onnx.bound import BoundSession
from kosine.backends.onnx.library import QUIET, external_values, import_onnxruntime, packed_graph
from kosine.backends.rows.buckets import Piece, fill_piece, pieces
from kosine.backends.rows.loop import RowLoop
from kosine.bundle import Bundle
from kosine.bundle.plans import PlanProfile
from kosine.errors import BackendError, BackendUnavailable, KosineError
from kosine.packed import Float32, Int32, Packed, Pooled
from kosine.threads import usable_cpus

__all__ = ["OnnxCudaBackend", "gpu_profiles"]

PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"
LIBRARY = "libonnxruntime_providers_cuda.so"
WIDTHS = (32, 64, 128, 256, 512)
MAX_RUN_TOKENS = 16_384  # enough to fill the largest GPUs, and a bound on memory
TOKENS_PER_SLOT = 4
INSTALL = "pip uninstall onnxruntime, then pip install 'kosine[gpu]'"

SILENT, WARNINGS = 4, 2  # ONNX Runtime's severities "fatal" and, its own default, "warning"

logger = logging.getLogger("kosine")


class OnnxCudaBackend:
    """Runs `packed.onnx` or `fp16/packed.onnx` in ONNX Runtime's CUDA provider.

    Inputs and outputs are bound to fixed places on the GPU, and shapes that repeat are captured
    in CUDA graphs; where a capture fails it is said once in the log, and everything goes on
    without graphs. One thread of the backend talks to the session, whoever calls.

    Args:
        bundle: The opened bundle.
        dtype: "float16" or "float32" (without TF32: as exact as on a CPU).
        device: "cuda" (the first GPU) or "cuda:N".
        threads: CPU threads that tokenise; None takes those that the process may really use.
        spin: Of no meaning here; the GPU computes.

    Raises:
        MissingExtra: onnxruntime is absent, or both of its wheels are installed.
        MissingTarget: The bundle lacks the graph for `dtype`.
        BackendUnavailable: This onnxruntime has no CUDA provider, its CUDA libraries are
            missing, or there is no such GPU.
    """

    name = "onnx"
    batch_tokens = MAX_RUN_TOKENS

    def __init__(
        self,
        bundle: Bundle,
        *,
        dtype: str = "float16",
        device: str = "cuda",
        threads: int | None = None,
        spin: bool = False,  # noqa: ARG002
    ) -> None:
        check_threads(threads)
        self._index = cuda_index(device, self.name)
        self.device = f"cuda:{self._index}"
        self.threads = threads or usable_cpus()
        self._ort = import_onnxruntime()
        self._graph = packed_graph(bundle, dtype)
        self.dim = bundle.manifest.dim
        self.dtype = dtype
        self._rows = RowLoop(bundle.manifest)
        self._profiles = gpu_profiles(bundle.manifest.max_tokens)
        self._owner = os.getpid()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kosine-cuda")
        try:
            self._bound = self._worker.submit(self._bind).result()
        except BaseException:
            self._worker.shutdown()
            raise
        watch_forks(self.forked)

    def run(self, batch: Packed) -> Pooled:
        """See `Backend.run`; rows are laid out in the caller's thread."""
        check_process(self._owner)
        parts = pieces(batch.lengths, self._profiles, tight=True)
        return self._rows.run(batch, parts, self._run_piece)

    def close(self) -> None:
        """Give the GPU's memory back. Calls after this are a BackendError."""
        if self._owner == os.getpid():
            self._worker.shutdown()
            self._bound.close()

    def __del__(self) -> None:
        # Not there where __init__ was refused. This may be the worker: it cannot wait for itself.
        if hasattr(self, "_bound") and self._owner == os.getpid():
            self._worker.shutdown(wait=False)
            self._bound.close()

    def forked(self) -> None:
        """In a child: nothing of CUDA may be touched or destroyed here."""
        never_destroy(*self._bound.parts())

    def _run_piece(self, batch: Packed, positions: Int32, piece: Piece) -> tuple[Float32, Float32]:
        rows = fill_piece(batch, positions, piece, self._rows.pad_id)
        try:
            future = self._worker.submit(self._bound.run, piece.shape, rows, len(piece.indices))
        except RuntimeError as error:
            raise closed_error() from error
        try:
            return future.result()
        except KosineError:
            raise
        except Exception as error:  # its exception classes share no base of their own
            raise BackendError(
                f"ONNX Runtime failed on the GPU on rows {rows.input_ids.shape}: "
                f"{first_line(error)}",
                remedy="check free GPU memory with nvidia-smi, or lower max_batch_tokens",
            ) from error

    def _bind(self) -> BoundSession:
        ort = self._ort
        if PROVIDER not in ort.get_available_providers():
            raise BackendUnavailable(
                f"this onnxruntime {ort.__version__} has no {PROVIDER}",
                limit=f"it has {', '.join(ort.get_available_providers())}",
                remedy=INSTALL,
            )
        _preload(ort)
        try:
            return BoundSession(
                ort,
                self._open,
                dim=self.dim,
                max_sentences=max(p.max_rows * p.max_slots for p in self._profiles),
                device=DEVICE,
                index=self._index,
            )
        except BackendUnavailable:
            raise
        except Exception as error:  # its exception classes share no base of their own
            raise BackendUnavailable(
                f"ONNX Runtime {ort.__version__} cannot run {self._graph.name} on "
                f"cuda:{self._index}: {first_line(error)}",
                limit="an NVIDIA GPU, its driver, and the CUDA libraries of kosine[gpu]",
                remedy=f"check nvidia-smi and CUDA_VISIBLE_DEVICES; {INSTALL}",
            ) from error

    def _open(self, graphs: bool) -> Any:
        ort = self._ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = QUIET
        options.enable_mem_pattern = False
        weights = external_values(self._graph)
        options.add_external_initializers([*weights], [*weights.values()])
        # A provider that does not start is logged by no session, but on standard error.
        ort.set_default_logger_severity(SILENT)
        try:
            session = ort.InferenceSession(
                self._graph.data,
                options,
                providers=[(PROVIDER, self._provider_options(graphs))],
                enable_fallback=0,
            )
        finally:
            ort.set_default_logger_severity(WARNINGS)
        # Where its CUDA libraries do not load it goes on without an error, on the CPU.
        if PROVIDER not in session.get_providers():
            raise BackendUnavailable(
                f"ONNX Runtime {ort.__version__} could not start {PROVIDER}: {_reason(ort)}",
                limit=f"it would run on {', '.join(session.get_providers())}",
                remedy=f"check nvidia-smi; {INSTALL} (it brings the CUDA libraries)",
            )
        return session

    def _provider_options(self, graphs: bool) -> dict[str, str]:
        return {
            "device_id": str(self._index),
            "enable_cuda_graph": "1" if graphs else "0",
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }


def gpu_profiles(max_tokens: int) -> tuple[PlanProfile, ...]:
    """The widths that rows have on a GPU, up to texts of `max_tokens`, with their most rows."""
    widest = -(-max_tokens // 8) * 8  # tensor cores want multiples of 8
    widths = [*(width for width in WIDTHS if width < widest), widest]
    return tuple(
        PlanProfile(
            width=width,
            min_rows=1,
            opt_rows=max(1, MAX_RUN_TOKENS // width),
            max_rows=max(1, MAX_RUN_TOKENS // width),
            max_slots=max(1, width // TOKENS_PER_SLOT),
        )
        for width in widths
    )


def _preload(ort: Any) -> None:
    """Load the CUDA libraries that pip installed, where this onnxruntime knows how."""
    if not hasattr(ort, "preload_dlls"):
        return
    said = io.StringIO()
    # It prints, and standard output is the command line's answer.
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    if said.getvalue():
        logger.info("onnxruntime: %s", first_line(said.getvalue()))


def _reason(ort: Any) -> str:
    """Why the provider's library does not load, as far as the loader knows."""
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / LIBRARY))
    except OSError as error:
        return first_line(error)
    return "no reason given"
