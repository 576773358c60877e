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

__all__ = ["BACKENDS", "DTYPES", "make_backend"]

BACKENDS = {
    "native": "kosine.backends.native:NativeBackend",
    "onnx": "kosine.backends.onnx:OnnxBackend",
}
# What each runs in; "auto" is the first. bfloat16 moves vectors by up to 1e-4 in cosine: it is
# asked for by name.
DTYPES = {
    "native": ("float32", "bfloat16"),
    "onnx": ("float32", "float16"),
}
ALL_DTYPES = ("float32", "bfloat16", "float16", "w8a16", "int8")
# Fastest first. A backend that is not there, or that fails the bundle's canary, is passed over.
AUTO_ORDER = ("native", "onnx")

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

    With "auto" each candidate replays the bundle's canary before it is taken, and the choice is
    logged. A backend or dtype that is named is made or refused, never replaced.
    `canary=False` leaves the replay to the caller.
    """
    check_option("backend", backend, ("auto", *BACKENDS))
    check_option("dtype", dtype, ("auto", *ALL_DTYPES))
    if backend != "auto":
        return _make(bundle, backend, dtype, device, threads, spin)
    errors: list[KosineError] = []
    for name in AUTO_ORDER:
        try:
            made = _make(bundle, name, dtype, device, threads, spin)
            if canary:
                check_canary(bundle, made)
        except KosineError as error:
            errors.append(error)
            logger.info("backend %s passed over: %s", name, error)
            continue
        logger.info("backend %s, dtype %s chosen", made.name, made.dtype)
        return made
    # Wrong vectors are the worst news; otherwise the one that runs anywhere says it best.
    raise next((error for error in errors if isinstance(error, ParityError)), errors[-1])


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
    if dtype == "auto":
        dtype = DTYPES[name][0]
    elif dtype not in DTYPES[name]:
        raise UnknownOption(
            f"backend {name!r} has no dtype {dtype!r}",
            limit=f"it runs in {', '.join(DTYPES[name])}",
            remedy="choose one of these, or another backend",
        )
    module, _, attribute = BACKENDS[name].partition(":")
    factory: Callable[..., Any] = getattr(import_module(module), attribute)
    made: Backend = factory(bundle, dtype=dtype, device=device, threads=threads, spin=spin)
    return made
