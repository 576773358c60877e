"""A stand-in for the `tensorrt` module: as much of its API as the exporter calls.

It reads no graph and compiles nothing. It keeps what it was told, logs what it is given to log, and
differs between 10.x and 11.x where those differ.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 8


class ILogger:
    Severity = Severity

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase: str) -> None:
        raise NotImplementedError


class FakeTensorRT:
    """What `sys.modules["tensorrt"]` becomes.

    Args:
        version: Decides what the module has.
        log: (severity, message) pairs of one build.
        engine: What building gives; None is a failure.
        rejects: Timing caches that the library does not take.
        parse_errors: (node, description) pairs; any makes parsing fail.
        broken: Names of callables that raise what the bindings raise.
    """

    def __init__(
        self,
        version: str = "10.13.3.9",
        *,
        log: tuple[tuple[Severity, str], ...] = (),
        engine: bytes | None = b"engine",
        rejects: tuple[bytes, ...] = (),
        parse_errors: tuple[tuple[str, str], ...] = (),
        broken: tuple[str, ...] = (),
    ) -> None:
        self.__version__ = version
        self.built: list[dict[str, Any]] = []
        self._log, self._engine, self._rejects = log, engine, rejects
        self._parse_errors, self._broken = parse_errors, broken
        self.ILogger = ILogger
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        old = int(version.split(".")[0]) < 11
        self.NetworkDefinitionCreationFlag = enum.IntEnum(
            "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1} if old else {"EXPLICIT_BATCH": 0}
        )
        self.BuilderFlag = enum.Enum("BuilderFlag", ["TF32", "REFIT"] if old else ["REFIT"])
        if old:
            self.IProgressMonitor = IProgressMonitor

    def call(self, name: str) -> None:
        if name in self._broken:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    # The module's classes

    def Builder(self, logger: ILogger) -> FakeTensorRT:  # noqa: N802
        assert isinstance(logger, ILogger)
        self.call("Builder")
        self._logger = logger
        return self

    def OnnxParser(self, network: Any, logger: ILogger) -> Any:  # noqa: N802
        assert network.flags is not None
        assert logger is self._logger
        errors = [
            SimpleNamespace(node_name=lambda n=node: n, desc=lambda d=text: d)
            for node, text in self._parse_errors
        ]
        return SimpleNamespace(
            parse_from_file=lambda path: path.endswith("packed.onnx") and not errors,
            num_errors=len(errors),
            get_error=lambda i: errors[i],
        )

    # Builder

    def create_network(self, flags: int) -> Any:
        tensors = {
            name: SimpleNamespace(name=name, dtype=DataType.INT64)
            for name in ("input_ids", "position_ids", "segment_ids", "slots", "sentence_index")
        }
        vectors = SimpleNamespace(name="vectors", dtype=DataType.FLOAT)
        half = SimpleNamespace(name="x", dtype=DataType.HALF)
        layers = [("MATRIX_MULTIPLY", half), ("SOFTMAX", half), ("NORMALIZATION", vectors)]
        made = [
            SimpleNamespace(
                type=SimpleNamespace(name=kind), num_outputs=1, get_output=lambda _, o=output: o
            )
            for kind, output in layers
        ]
        return SimpleNamespace(
            flags=flags,
            num_inputs=len(tensors),
            get_input=lambda i: [*tensors.values()][i],
            num_outputs=1,
            get_output=lambda _: vectors,
            num_layers=len(made),
            get_layer=lambda i: made[i],
        )

    def create_builder_config(self) -> Config:
        self.config = Config(self)
        return self.config

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(
            shapes=shapes, set_shape=lambda name, *bounds: shapes.update({name: bounds})
        )

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        self.call("build_serialized_network")
        self.built.append({"flags": network.flags, **vars(config)})
        for severity, message in self._log:
            self._logger.log(severity, message)
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            monitor.phase_start("Computing profile costs", "Building engine", 2)
            going = monitor.step_complete("Computing profile costs", 0)
            monitor.phase_start("Timing tactics", "Computing profile costs", 4)
            going = monitor.step_complete("Timing tactics", 1) and going
            monitor.phase_finish("Timing tactics")
            going = monitor.step_complete("Computing profile costs", 1) and going
            monitor.phase_finish("Computing profile costs")
            if not going:
                return None
        return self._engine


class Config:
    """IBuilderConfig."""

    def __init__(self, module: FakeTensorRT) -> None:
        self._module = module
        self.profiling_verbosity = self.progress_monitor = None
        self.profiles: list[dict[str, Any]] = []
        self.cleared: list[Any] = []
        self.timings: bytes | None = None

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        if "add_optimization_profile" in self._module._broken:
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, held: bytes) -> bytes | None:
        if held == b"raises":
            raise ValueError("not a timing cache")
        return None if held == b"nothing" else held

    def set_timing_cache(self, timings: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if timings in self._module._rejects:
            return False
        self.timings = timings
        return True

    def get_timing_cache(self) -> Any:
        if self.timings is None:
            return None
        return SimpleNamespace(serialize=lambda: self.timings + b"+")
