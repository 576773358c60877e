"""A TensorRT plan brought to life: the engine, and contexts that run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kosine.backends.device import first_line
from kosine.backends.gpu import Cuda
from kosine.backends.rows.fill import Rows
from kosine.bundle.plans import TensorRTPlan
from kosine.errors import BackendError

__all__ = ["PlanContext", "PlanEngine"]

OUTPUTS = ("vectors", "norms")


class PlanEngine:
    """A deserialised plan. All its contexts share one scratch memory: they run one at a time.

    Args:
        module: tensorrt or tensorrt_rtx.
        data: The plan; deserialising runs what it holds, so it must have been verified.
        plan: What the manifest says of it.
        cuda: Where it runs.

    Attributes:
        inputs: Data type by input name, of those that `kosine.backends.rows.fill.Rows` has.

    Raises:
        BackendError: TensorRT refuses the plan, or it is not what the manifest says.
    """

    def __init__(self, module: Any, data: bytes, plan: TensorRTPlan, cuda: Cuda) -> None:
        self._module = module
        self._cuda = cuda
        self._logger = _logger(module)
        self._runtime = module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(
                f"TensorRT {plan.version} cannot load {plan.path}: {self._logger.last}",
                remedy="export the bundle again on this machine",
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = {
            name: np.dtype(module.nptype(self._engine.get_tensor_dtype(name)))
            for name in names
            if modes[name] == module.TensorIOMode.INPUT
        }
        outputs = {name for name in names if name not in self.inputs}
        profiles = self._engine.num_optimization_profiles
        if (
            outputs != set(OUTPUTS)
            or not set(self.inputs) <= set(Rows.__slots__)
            or profiles != len(plan.profiles)
        ):
            raise BackendError(
                f"{plan.path} maps {', '.join(self.inputs)} to {', '.join(sorted(outputs))} in "
                f"{profiles} profiles",
                limit=f"the manifest says {len(plan.profiles)} profiles; it gives "
                f"{' and '.join(OUTPUTS)}",
                remedy="export the bundle again",
            )
        self._scratch_bytes = int(self._engine.device_memory_size_v2)
        self._scratch = cuda.allocate(self._scratch_bytes)
        self._how = self._context_options()

    def context(self, profile: int) -> PlanContext:
        """A new context for one profile."""
        context = self._engine.create_execution_context(self._how)
        if context is None:
            raise self._error("no execution context")
        context.set_device_memory(self._scratch, self._scratch_bytes)
        if not context.set_optimization_profile_async(profile, self._cuda.stream):
            raise self._error(f"profile {profile} refused")
        self._cuda.synchronize()
        return PlanContext(self, context)

    def close(self) -> None:
        """Let the engine go; its contexts must be gone. The scratch memory is `cuda`'s to free."""
        self._how = self._engine = self._runtime = None

    def parts(self) -> tuple[object, ...]:
        """What must never be destroyed in a forked child."""
        return self._how, self._engine, self._runtime, self._logger

    def _context_options(self) -> Any:
        """What contexts are made with: the scratch memory is ours, kernels never change."""
        managed = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(self._module, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            return managed
        # TensorRT-RTX compiles on this machine. Kernels made for one shape in the background
        # would change a text's vector from one call to the next; making them at once would
        # hold up the first call of every shape. The cache spares later contexts the compiling.
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        config.dynamic_shapes_kernel_specialization_strategy = strategies.NONE
        config.set_runtime_cache(config.create_runtime_cache())
        return config

    def _error(self, what: str) -> BackendError:
        return BackendError(
            f"TensorRT failed: {what}: {self._logger.last}",
            remedy="check free GPU memory with nvidia-smi, or export the bundle again",
        )


class PlanContext:
    """One execution context: shapes and addresses are set, then it is enqueued."""

    def __init__(self, engine: PlanEngine, context: Any) -> None:
        self._engine = engine
        self._context = context

    def bind(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Set the shape of each input, and the device address of each input and output."""
        context = self._context
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._engine._error(f"shape {shape} of {name} refused")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._engine._error(f"address of {name} refused")

    def enqueue(self) -> None:
        """Put the computation on the stream."""
        if not self._context.execute_async_v3(self._engine._cuda.stream):
            raise self._engine._error("execution refused")

    def close(self) -> None:
        self._context = None

    def parts(self) -> tuple[object, ...]:
        return (self._context,)


def _logger(module: Any) -> Any:
    """A TensorRT logger that keeps the last error, for messages."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                self.last = first_line(message)

    return Logger()
