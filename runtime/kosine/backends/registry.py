"""The engines, one class each, imported when they are asked for.

A backend is made as `Class(bundle, dtype=..., device=..., threads=..., spin=...)` and then is a
`kosine.backend.Backend`. What a class cannot do on this machine it refuses with
`BackendUnavailable`, `MissingTarget` or `MissingExtra`. Its module states `CAPABILITIES`, and
`probe(bundle, dtype)` raises the same errors as far as they show without making an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

from kosine.backend import Backend, Capabilities
from kosine.backends.device import check_threads, explain, is_cuda
from kosine.bundle import Bundle
from kosine.bundle.canary import check_canary
from kosine.errors import BackendError, InputError, KosineError, ParityError, UnknownOption

__all__ = ["BACKENDS", "DTYPES", "candidates", "capabilities", "make_backend", "probe"]

# In the order in which "auto" tries them.
BACKENDS = {
    "native": "kosine.backends.native:NativeBackend",
    "cuda": "kosine.backends.cuda.backend:CudaBackend",
    "tensorrt": "kosine.backends.tensorrt.backend:TensorRTBackend",
    "onnx": "kosine.backends.onnx.devices:make_onnx",
}
# What the engines run in, all of them together.
DTYPES = ("float32", "bfloat16", "float16", "w8a16", "int8")

logger = logging.getLogger("kosine")


def make_backend(
    bundle: Bundle,
    *,
    backend: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    spin: bool = False,
    canary: bool = True,
) -> Backend:
    """The engine that runs `bundle`.

    With backend "auto" each candidate replays the bundle's canary before it is taken, and the
    choice is logged; one that gives wrong vectors is passed over with a warning. A backend or
    dtype that is named is made or refused, never replaced. `canary=False` leaves the replay to
    the caller, except in bfloat16 or float16 that nobody asked for by name: that is taken only
    where it passes the whole canary.
    """
    tried = candidates(backend, dtype, device)
    check_threads(threads)
    if backend != "auto" and len(tried) == 1:
        return _make(bundle, *tried[0], device, threads, spin)
    errors: list[KosineError] = []
    for name, kind in tried:
        made: Backend | None = None
        try:
            made = _make(bundle, name, kind, device, threads, spin)
            if dtype == "auto" and kind != "float32":
                check_canary(bundle, made, texts=None)
            elif canary and backend == "auto":
                check_canary(bundle, made)
        except InputError:  # what was asked for, or KOSINE_ISA: no other engine will do better
            raise
        except KosineError as error:
            if made is not None:  # one engine at a time is in memory
                made.close()
            errors.append(error)
            logger.info("backend %s in %s passed over: %s", name, kind, error)
            continue
        for missed in errors:
            if isinstance(missed, ParityError):
                logger.warning("%s; %s/%s is taken instead", missed, made.name, made.dtype)
        logger.info("backend %s, dtype %s chosen", made.name, made.dtype)
        return made
    # Wrong vectors are the worst news; otherwise the one that runs anywhere says it best, or on a
    # GPU the one that runs every bundle.
    rest = errors[0 if is_cuda(device) else -1]
    raise next((error for error in errors if isinstance(error, ParityError)), rest)


def candidates(backend: str, dtype: str, device: str) -> list[tuple[str, str]]:
    """(backend, dtype) to try in turn, for options as `make_backend` takes them; at least one.

    Raises:
        UnknownOption: There is no such backend or dtype, or no such backend has the dtype.
    """
    _check_option("backend", backend, ("auto", *BACKENDS))
    _check_option("dtype", dtype, ("auto", *DTYPES))
    if not isinstance(device, str):
        raise UnknownOption(
            f"device is {str(device)[:40]!r}, a {type(device).__name__}",
            limit="auto, cpu, cuda or cuda:N",
            remedy="name it as a str",
        )
    names = [*BACKENDS] if backend == "auto" else [backend]
    known = {name: capabilities(name) for name in names}
    kind = "cuda" if is_cuda(device) else "cpu"
    if backend == "auto":
        known = {name: able for name, able in known.items() if kind in able.auto}
    elif device == "auto" and kind not in known[backend].auto:
        kind = next(iter(known[backend].auto))
    found = [
        (name, each)
        for name, able in known.items()
        # A backend that cannot run on this kind of device says so itself.
        for each in (able.auto.get(kind, able.dtypes[:1]) if dtype == "auto" else able.dtypes)
        if dtype in ("auto", each)
    ]
    if not found:
        who = f"device {device[:40]!r}" if backend == "auto" else f"backend {backend!r}"
        runs = "; ".join(f"{name} runs in {', '.join(able.dtypes)}" for name, able in known.items())
        raise UnknownOption(
            f"{who} has no dtype {dtype!r}",
            limit=runs,
            remedy="choose one of these, or another backend or device",
        )
    return found


def capabilities(backend: str) -> Capabilities:
    """What the module of a backend states."""
    stated: Capabilities = _module(backend).CAPABILITIES
    return stated


def probe(bundle: Bundle, backend: str, dtype: str) -> None:
    """Raise the KosineError that making the engine would, as far as it shows without that."""
    _module(backend).probe(bundle, dtype)


def _check_option(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UnknownOption(
            f"unknown {what} {value!r}",
            limit=f"known: {', '.join(known)}",
            remedy=f"choose one of these for {what}",
        )


def _module(backend: str) -> Any:
    return import_module(BACKENDS[backend].partition(":")[0])


def _make(
    bundle: Bundle, name: str, dtype: str, device: str, threads: int | None, spin: bool
) -> Backend:
    factory: Callable[..., Any] = getattr(_module(name), BACKENDS[name].partition(":")[2])
    try:
        made: Backend = factory(bundle, dtype=dtype, device=device, threads=threads, spin=spin)
    except KosineError:
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        what, remedy = explain(error, "try another backend")
        raise BackendError(f"backend {name!r} cannot load: {what}", remedy=remedy) from error
    bundle.release()
    return made
