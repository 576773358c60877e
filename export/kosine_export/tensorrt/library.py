"""The TensorRT at hand: which module, for which GPUs, and its callbacks into Python.

`tensorrt` and `tensorrt_rtx` have nearly the same API. Where they, or versions of theirs,
differ, it is decided here.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kosine.bundle.plans import FLAVOURS
from kosine.errors import BackendUnavailable, MissingExtra, UnknownOption

__all__ = ["RTX_ARCHITECTURES", "Library", "Watch", "find_library", "gpu_architecture"]

RTX = "tensorrt-rtx"
# What one plan of the RTX flavour is built for unless told: the generations that share a plan.
RTX_ARCHITECTURES = ("8.6", "8.9", "12.0")
CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CUdevice_attribute: COMPUTE_CAPABILITY_MAJOR, _MINOR
# Of the library's severities. Its errors come back in the exception that is raised, so nothing
# of it needs to reach a terminal unasked.
LEVELS = {
    "INTERNAL_ERROR": logging.INFO,
    "ERROR": logging.INFO,
    "WARNING": logging.INFO,
}
ERRORS = ("INTERNAL_ERROR", "ERROR")
# Of the phases that a build reports, the one in which nearly all its time passes: some steps for
# each profile. The others are over in a moment, and would make a bar that jumps and then stands.
LONG_PHASE = "Computing profile costs"

logger = logging.getLogger("kosine.tensorrt")


@dataclass(frozen=True, slots=True)
class Library:
    """An imported TensorRT.

    Attributes:
        flavour: A key of `kosine.bundle.plans.FLAVOURS`.
        module: The module itself.
    """

    flavour: str
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    def architectures(self, asked: Sequence[str] = ()) -> tuple[str, ...]:
        """Compute capabilities to build for: those asked for, or the flavour's own choice.

        Raises:
            UnknownOption: One that it cannot build for on this machine.
            BackendUnavailable: It builds for the GPU at hand, and there is none.
        """
        if self.flavour == RTX:
            known = self._targets()
            chosen = tuple(dict.fromkeys(asked or RTX_ARCHITECTURES))
        else:
            here = gpu_architecture()
            if here is None:
                raise BackendUnavailable(
                    f"{self.flavour} {self.version} builds for the GPU at hand, and there is none",
                    limit="an NVIDIA GPU and its driver",
                    remedy=f"export on the GPU's machine, or install {RTX}, which needs none",
                )
            known = [here]
            chosen = tuple(dict.fromkeys(asked or known))
        for architecture in chosen:
            if architecture not in known:
                raise UnknownOption(
                    f"{self.flavour} {self.version} cannot build for compute capability "
                    f"{architecture[:20]!r} here",
                    limit=f"known: {', '.join(known)}",
                    remedy="choose from these for --trt-arch",
                )
        return chosen

    def set_architectures(self, config: Any, architectures: Sequence[str]) -> None:
        """Tell a builder config what to build for; the data-centre flavour takes the GPU's."""
        if self.flavour != RTX:
            return
        config.num_compute_capabilities = len(architectures)
        for i, architecture in enumerate(architectures):
            name = f"SM{architecture.replace('.', '')}"
            config.set_compute_capability(getattr(self.module.ComputeCapability, name), i)

    def create_network(self, builder: Any) -> Any:
        """A strongly typed network: in 10.x that is a flag, since 11 there is no other kind."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return builder.create_network(0 if flag is None else 1 << int(flag))

    @property
    def has_timing_cache(self) -> bool:
        """RTX times nothing while it builds: it compiles again on the GPU that loads the plan."""
        return self.flavour != RTX

    def _targets(self) -> list[str]:
        found = []
        for name in dir(self.module.ComputeCapability):
            if digits := re.fullmatch(r"SM(\d+)(\d)", name):
                found.append((int(digits[1]), int(digits[2])))
        return [f"{major}.{minor}" for major, minor in sorted(found)]


def find_library(flavour: str | None = None) -> Library:
    """Import TensorRT.

    Args:
        flavour: A key of `FLAVOURS`; None takes what is installed, and of both the data-centre
            one where a GPU is visible, for which alone it builds.

    Raises:
        UnknownOption: No such flavour.
        MissingExtra: It is not installed, or its libraries cannot be loaded.
    """
    if flavour is not None and flavour not in FLAVOURS:
        raise UnknownOption(
            f"unknown TensorRT flavour {flavour!r}",
            limit=f"known: {', '.join(FLAVOURS)}",
            remedy="choose one of these for --trt-flavour",
        )
    found, reasons = [], []
    for name in [flavour] if flavour else FLAVOURS:
        try:
            found.append(Library(name, importlib.import_module(FLAVOURS[name])))
        except (ImportError, OSError) as error:
            # OSError: the package is there, the libraries that it loads are not.
            reasons.append(f"{name}: {(str(error).splitlines() or [''])[0][:120]}")
    if not found:
        raise MissingExtra(
            f"target 'tensorrt-fp16' needs TensorRT, which is not to be had ({'; '.join(reasons)})",
            limit=f"one of {', '.join(FLAVOURS)}" if flavour is None else flavour,
            remedy="pip install 'kosine[tensorrt]'",
        )
    if len(found) > 1 and gpu_architecture() is None:
        return next(library for library in found if library.flavour == RTX)
    return found[0]


def gpu_architecture() -> str | None:
    """Compute capability of the first visible GPU, for example "9.0"; None where there is none."""
    try:
        driver = ctypes.CDLL(CUDA_DRIVER)
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    )
    return None if failed else f"{major.value}.{minor.value}"


class Watch:
    """The library's callbacks: its log, and how far the build has come.

    The callers are C++: an exception that left a callback would end the process. So one that
    strikes inside (Ctrl-C does) is kept, the build is told to stop, and `reraise` raises it.

    Args:
        library: Whose interfaces are implemented.
        on_progress: Called with the share of the build that is done, 0 to 1, never falling.

    Attributes:
        logger: To be passed where the library wants an ILogger.
        monitor: An IProgressMonitor, or None where the library has none.
        lines: Every log line.
        errors: Error messages, one line each.
    """

    def __init__(self, library: Library, on_progress: Callable[[float], None]) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._on_progress = on_progress
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._share = 0.0
        self._caught: BaseException | None = None
        module = library.module
        self.logger = _implement(module.ILogger, log=self._log)
        monitor = getattr(module, "IProgressMonitor", None)
        self.monitor = None if monitor is None else _implement(
            monitor,
            phase_start=self._phase_start,
            step_complete=self._step_complete,
            phase_finish=self._phase_finish,
        )  # fmt: skip

    def reraise(self) -> None:
        """Raise what a callback caught."""
        if self._caught is not None:
            raise self._caught

    def _log(self, severity: Any, message: str) -> None:
        try:
            # At "\n" alone: names within a line are separated by other line ends of Unicode.
            self.lines += message.split("\n")
            if severity.name in ERRORS:
                self.errors.append(" ".join(message.split()))
            logger.log(LEVELS.get(severity.name, logging.DEBUG), "%s", message)
        except BaseException as error:  # noqa: BLE001
            self._caught = error

    def _phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        self._phases.pop(phase, None)  # to the end: the phase that runs is the last that began
        self._phases[phase] = (parent, max(1, steps), 0)

    def _step_complete(self, phase: str, step: int) -> bool:
        """Whether to go on."""
        try:
            parent, steps, _ = self._phases.get(phase, (None, 1, 0))
            self._phases[phase] = (parent, steps, min(steps, step + 1))
            share = self._done(LONG_PHASE) if LONG_PHASE in self._phases else 0.0
            if share > self._share:
                self._share = share
                self._on_progress(share)
        except BaseException as error:  # noqa: BLE001
            self._caught = error
        return self._caught is None

    def _phase_finish(self, phase: str) -> None:
        self._phases.pop(phase, None)

    def _done(self, phase: str) -> float:
        """Share of a phase that is done; what runs inside it is a share of one step."""
        _, steps, done = self._phases[phase]
        inner = [name for name, (parent, _, _) in self._phases.items() if parent == phase]
        return min(1.0, (done + (self._done(inner[-1]) if inner else 0.0)) / steps)


def _implement(interface: Any, **methods: Callable[..., Any]) -> Any:
    """An object of a C++ interface with these methods; which class it is is known only here."""
    made = type(interface.__name__, (interface,), {n: staticmethod(m) for n, m in methods.items()})
    return made()
