"""ONNX Runtime on a CPU, on packed rows."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kosine.backend import CPU_BATCH_TOKENS, closed_error
from kosine.backends.device import check_cpu, explain
from kosine.backends.forks import never_destroy, watch_forks
from kosine.backends.onnx.library import QUIET, external_values, import_onnxruntime, packed_graph
from kosine.backends.rows.fill import fill_rows
from kosine.backends.rows.loop import RowLoop
from kosine.backends.rows.plan import RowPlan, plan_rows
from kosine.bundle import Bundle
from kosine.errors import BackendError, KosineError
from kosine.exit_gate import awaited_at_exit
from kosine.packed import Float32, Int32, Packed, Pooled
from kosine.threads import usable_cpus

__all__ = ["OnnxBackend", "start_session"]

# In trials its fused residual and LayerNorm took about five times as long on a CPU as the two
# apart; what that makes of an encoder is in bench/results/onnx.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
OUTPUTS = ("vectors", "norms")
TOKENS = "last_hidden_state"  # of bundles with heads for tokens


class OnnxBackend:
    """Runs `packed.onnx` (or `fp16/packed.onnx`) in one ONNX Runtime session.

    Args:
        bundle: The opened bundle.
        dtype: "float32", or "float16" (on a CPU that is float32 arithmetic on float16 weights:
            good for checking a graph, not for speed).
        device: "auto" or "cpu".
        threads: Threads inside one call; None takes the CPUs that the process may really use.
        spin: Let idle threads spin for the next call, too. They always spin inside one, from
            operator to operator; between calls that burns CPUs others may want.

    Raises:
        MissingExtra: onnxruntime is absent, or both of its wheels are installed.
        MissingTarget: The bundle lacks the graph for `dtype`.
        BackendUnavailable: Another device was asked for.
    """

    name = "onnx"
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
        check_cpu(self.name, device, threads, limit="cpu, cuda or cuda:N")
        self._graph = packed_graph(bundle, dtype)
        # Kept as long as any session: ONNX Runtime reads in them, a forked child's too.
        self._weights = external_values(self._graph)
        self.dim = bundle.manifest.dim
        self.dtype = dtype
        self._rows = RowLoop(bundle.manifest)
        self.threads = threads or usable_cpus()
        self._spin = spin
        self._lock = threading.Lock()
        self._closed = False
        self._session: Any = self._open()
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._hands_out_tokens = len(self._session.get_outputs()) > len(OUTPUTS)
        self._hidden_size = bundle.manifest.spec.hidden_size
        watch_forks(self.forked)

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = QUIET
        # Shapes change from call to call: a memory pattern per shape would only pile up.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        if not self._spin:
            # Threads that fall asleep between two operators cost every call; threads that go on
            # spinning after it cost the rest of the process.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _open(self) -> Any:
        ort = import_onnxruntime()
        try:
            return start_session(self._graph.data, self._weights, self._options(ort))
        except Exception as error:  # its exception classes share no base of their own
            what, remedy = explain(error, "export the bundle again, or install another onnxruntime")
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load {self._graph.name}: {what}",
                remedy=remedy,
            ) from error

    def _session_here(self) -> Any:
        """This process's session: a forked child opens one of its own on first use."""
        session = self._session
        if session is None:
            with self._lock:
                if self._closed:
                    raise closed_error()
                if self._session is None:
                    self._session = self._open()
                session = self._session
        return session

    def close(self) -> None:
        """See `Backend.close`. The mapped weights stay until the last call under way has ended."""
        with self._lock:
            self._closed = True
            self._session = None

    def forked(self) -> None:
        """In a child: the session's threads did not come along, and destroying it would wait for
        them for ever. So it is never destroyed, and never used again."""
        self._lock = threading.Lock()
        session, self._session = self._session, None
        never_destroy(session, getattr(session, "_sess", None))

    def run(self, batch: Packed) -> Pooled:
        """See `Backend.run`; rows are laid out by `plan_rows`, one session call a rectangle."""
        return self._rows.run(batch, plan_rows(batch.lengths), self._run_rows)

    def run_tokens(self, batch: Packed) -> tuple[Pooled, Float32]:
        """See `kosine.heads.TokenBackend`."""
        if not self._hands_out_tokens:
            raise BackendError(
                f"{self._graph.name} gives no vectors of tokens in {self.dtype}",
                limit="the float32 graph of a bundle with heads for tokens",
                remedy="load the bundle with dtype='float32'",
            )
        hidden: Float32 = np.empty((batch.num_tokens, self._hidden_size), np.float32)

        def keep(batch: Packed, positions: Int32, plan: RowPlan) -> Any:
            vectors, norms, found = self._run_rows(batch, positions, plan, (*OUTPUTS, TOKENS))
            for index, row, offset in zip(plan.indices, plan.row, plan.offset, strict=True):
                begin, end = batch.starts[index], batch.starts[index + 1]
                hidden[begin:end] = found[row, offset : offset + end - begin]
            return vectors, norms

        return self._rows.run(batch, plan_rows(batch.lengths), keep), hidden

    @awaited_at_exit
    def _run_rows(
        self, batch: Packed, positions: Int32, plan: RowPlan, outputs: Sequence[str] = OUTPUTS
    ) -> Any:
        try:
            rows = fill_rows(batch, positions, plan, self._rows.pad_id)
            feed = {name: getattr(rows, name) for name in self._inputs}
            return self._session_here().run(outputs, feed)
        except KosineError:
            raise
        except Exception as error:
            what, remedy = explain(error, "run `kosine verify` on the bundle")
            raise BackendError(
                f"ONNX Runtime failed on rows {(plan.num_rows, plan.width)}: {what}",
                remedy=remedy,
            ) from error


@awaited_at_exit
def start_session(graph: bytes, weights: Mapping[str, Any], options: Any) -> Any:
    """A session of ONNX Runtime on the CPU; `weights` must outlive it."""
    import onnxruntime

    # As external data they are seen by the optimiser; as initializers of the caller's they are
    # read where they are, and what is not rearranged for the CPU (the embeddings) is not copied.
    options.add_external_initializers([*weights], [*weights.values()])
    for name, value in weights.items():
        options.add_initializer(name, value)
    return onnxruntime.InferenceSession(
        graph,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=SLOW_FUSIONS,
        enable_fallback=0,  # a second try would print on stdout, and forget the line above
    )
