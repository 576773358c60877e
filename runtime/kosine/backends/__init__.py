"""The engines, one class each, imported when they are asked for.

A backend is made as `Class(bundle, dtype=..., device=..., threads=..., spin=...)` and then is a
`kosine.backend.Backend`. What a class cannot do on this machine it refuses with
`BackendUnavailable`, `MissingTarget` or `MissingExtra`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

from kosine.backend import Backend
from kosine.bundle import Bundle
from kosine.canary import check_canary
from kosine.errors import KosineError, ParityError, UnknownOption

__all__ = ["AUTO", "BACKENDS", "DTYPES", "make_backend"]

BACKENDS = {
    "native": "kosine.backends.native:NativeBackend",
    "onnx": "kosine.backends.onnx_devices:make_onnx",
    "tensorrt": "kosine.backends.tensorrt:TensorRTBackend",
}
# What each runs in.
DTYPES = {
    "native": ("float32", "bfloat16"),
    "onnx": ("float32", "float16"),
    "tensorrt": ("float16",),
}
ALL_DTYPES = ("float32", "bfloat16", "float16", "w8a16", "int8")
# What "auto" tries, by kind of device, fastest first. One that is not there, or that fails the
# bundle's canary, is passed over.
AUTO: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {"native": ("bfloat16", "float32"), "onnx": ("float32",)},
    "cuda": {"tensorrt": ("float16",), "onnx": ("float16", "float32")},
}

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
    choice is logged. A backend or dtype that is named is made or refused, never replaced.
    `canary=False` leaves the replay to the caller, except in bfloat16 or float16 that nobody
    asked for by name: that is taken only where it passes the whole canary.
    """
    check_option("backend", backend, ("auto", *BACKENDS))
    check_option("dtype", dtype, ("auto", *ALL_DTYPES))
    candidates = _candidates(backend, dtype, device)
    if "auto" not in (backend, dtype) or len(candidates) == 1:
        return _make(bundle, *candidates[0], device, threads, spin)
    errors: list[KosineError] = []
    for name, kind in candidates:
        try:
            made = _make(bundle, name, kind, device, threads, spin)
            if dtype == "auto" and kind != "float32":
                check_canary(bundle, made, texts=None)
            elif canary and backend == "auto":
                check_canary(bundle, made)
        except KosineError as error:
            errors.append(error)
            logger.info("backend %s in %s passed over: %s", name, kind, error)
            continue
        logger.info("backend %s, dtype %s chosen", made.name, made.dtype)
        return made
    # Wrong vectors are the worst news; otherwise the one that runs anywhere says it best.
    raise next((error for error in errors if isinstance(error, ParityError)), errors[-1])


def _candidates(backend: str, dtype: str, device: str) -> list[tuple[str, str]]:
    """(backend, dtype) to try in turn; at least one."""
    gpu = device.startswith("cuda") or backend == "tensorrt"
    tried = AUTO["cuda" if gpu else "cpu"]
    names = [*tried] if backend == "auto" else [backend]
    return [
        (name, kind)
        for name in names
        # A backend that cannot run on this kind of device says so itself.
        for kind in (tried.get(name, DTYPES[name][:1]) if dtype == "auto" else (dtype,))
    ]


def check_option(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UnknownOption unless `value` is one of `known`."""
    if value not in known:
        raise UnknownOption(
            f"unknown {what} {value!r}",
            limit=f"known: {', '.join(known)}",
            remedy=f"choose one of these for {what}",
        )


def _make(
    bundle: Bundle, name: str, dtype: str, device: str, threads: int | None, spin: bool
) -> Backend:
    if dtype not in DTYPES[name]:
        raise UnknownOption(
            f"backend {name!r} has no dtype {dtype!r}",
            limit=f"it runs in {', '.join(DTYPES[name])}",
            remedy="choose one of these, or another backend",
        )
    module, _, attribute = BACKENDS[name].partition(":")
    factory: Callable[..., Any] = getattr(import_module(module), attribute)
    made: Backend = factory(bundle, dtype=dtype, device=device, threads=threads, spin=spin)
    return made
