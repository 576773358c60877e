"""ONNX Runtime on packed rows."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
import weakref
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from kosine.batching import plan_rows
from kosine.bundle import Bundle
from kosine.errors import (
    BackendError,
    BackendUnavailable,
    MissingExtra,
    MissingTarget,
    UnknownOption,
)
from kosine.packed import Float32, Packed, Pooled
from kosine.positions import position_ids
from kosine.rows import Rows, fill_rows
from kosine.threads import usable_cpus

__all__ = ["OnnxBackend"]

GRAPHS = {"float32": ("packed.onnx", "onnx"), "float16": ("fp16/packed.onnx", "onnx-fp16")}
QUIET = 3  # ONNX Runtime's severity "error": its warnings concern its own optimiser


class OnnxBackend:
    """Runs `packed.onnx` (or `fp16/packed.onnx`) in one ONNX Runtime session.

    Args:
        bundle: The opened bundle.
        dtype: "float32", or "float16" (on a CPU that is float32 arithmetic on float16 weights:
            good for checking a graph, not for speed).
        device: "auto" or "cpu".
        threads: Threads inside one call; None takes the CPUs that the process may really use.
        spin: Let idle threads spin for the next call. Saves microseconds per operator where the
            process does nothing else, and burns those CPUs where it does.

    Raises:
        MissingExtra: onnxruntime is absent, or both of its wheels are installed.
        MissingTarget: The bundle lacks the graph for `dtype`.
        BackendUnavailable: Another device was asked for.
    """

    name = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        *,
        dtype: str = "float32",
        device: str = "auto",
        threads: int | None = None,
        spin: bool = False,
    ) -> None:
        if device not in ("auto", "cpu"):
            raise BackendUnavailable(
                f"backend 'onnx' cannot run on device {device!r}",
                limit="cpu",
                remedy="leave device out",
            )
        if threads is not None and threads < 1:
            raise UnknownOption(f"threads is {threads}", limit="at least 1", remedy="leave it out")
        graph, target = GRAPHS[dtype]
        if not bundle.has(graph):
            raise MissingTarget(
                f"the bundle has no {graph}",
                limit=f"its targets: {', '.join(bundle.manifest.targets)}",
                remedy=f"export it again with --target {target}",
            )
        self.dim = bundle.manifest.dim
        self.dtype = dtype
        self._pad_id = bundle.manifest.special_ids["pad"]
        self._position_rule = bundle.manifest.architecture.position_rule
        self.threads = threads or usable_cpus()
        self._graph = bundle.graph(graph)
        self._spin = spin
        self._lock = threading.Lock()
        self._session: Any = self._open()
        self._inputs = [node.name for node in self._session.get_inputs()]
        _live.add(self)

    def _open(self) -> Any:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = QUIET
        # Shapes change from call to call: a memory pattern per shape would only pile up.
        options.enable_mem_pattern = False
        spinning = "1" if self._spin else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        try:
            return ort.InferenceSession(
                str(self._graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception classes share no base of their own
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load {self._graph.name}: "
                f"{_first_line(error)}",
                remedy="export the bundle again, or install another onnxruntime",
            ) from error

    def _session_here(self) -> Any:
        """This process's session: a forked child opens one of its own on first use."""
        if self._session is None:
            with self._lock:
                if self._session is None:
                    self._session = self._open()
        return self._session

    def _forked(self) -> None:
        """In a child: the session's threads did not come along, and destroying it would wait for
        them for ever. So it is never destroyed, and never used again."""
        self._lock = threading.Lock()
        session, self._session = self._session, None
        for part in (session, getattr(session, "_sess", None)):
            if part is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))

    def run(self, batch: Packed) -> Pooled:
        """See `Backend.run`; rows are laid out by `plan_rows`, one session call a rectangle."""
        positions = position_ids(batch.ids, batch.starts, self._position_rule, self._pad_id)
        vectors: Float32 = np.empty((len(batch), self.dim), np.float32)
        norms: Float32 = np.empty(len(batch), np.float32)
        for plan in plan_rows(batch.lengths):
            rows = fill_rows(batch, positions, plan, self._pad_id)
            vectors[plan.indices], norms[plan.indices] = self._run_rows(rows)
        return Pooled(vectors, norms)

    def _run_rows(self, rows: Rows) -> Any:
        feed = {name: getattr(rows, name) for name in self._inputs}
        try:
            return self._session_here().run(None, feed)
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed on rows {rows.input_ids.shape}: {_first_line(error)}",
                remedy="check free memory, or lower max_batch_tokens",
            ) from error


def import_onnxruntime() -> Any:
    """The onnxruntime module, or the error that says how to get it."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra(
            "backend 'onnx' needs onnxruntime, which is not installed",
            remedy="pip install 'kosine[onnx]'",
        )
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(installed) == 2:
        raise MissingExtra(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite one another",
            limit="exactly one of them",
            remedy="pip uninstall both, then pip install 'kosine[onnx]' or 'kosine[gpu]'",
        )
    # Its telemetry thread, started on import, would be lost in a fork, and asks nobody first.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]


_live: weakref.WeakSet[OnnxBackend] = weakref.WeakSet()


def _after_fork() -> None:
    for backend in list(_live):
        backend._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
