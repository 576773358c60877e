"""`top_k` in C++, where kosine has its native module."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.exit_gate import awaited_at_exit
from kosine.packed import Float32
from kosine.threads import usable_cpus

__all__ = ["top_distances", "top_products", "usable"]

ALONE = 1 << 20  # products of two numbers that take as long as two starts of a thread
Found = tuple[NDArray[np.int64], Float32]


def usable() -> bool:
    """Whether it can be had, on this machine and at the level that `KOSINE_ISA` allows."""
    return _usable(os.environ.get("KOSINE_ISA", ""))


@awaited_at_exit
def top_products(
    queries: Float32,
    corpus: NDArray[Any],
    k: int,
    normalise: bool,
    bits: bool,
    shift: Float32 | None,
    scale: Float32 | None,
) -> Found:
    """See `kosine_kernels.search.top_products`."""
    from kosine_kernels import search

    return search.top_products(
        queries,
        corpus,
        k,
        normalise=normalise,
        bits=bits,
        shift=shift,
        scale=scale,
        threads=_threads(queries.size * len(corpus)),
    )


@awaited_at_exit
def top_distances(queries: NDArray[np.uint8], corpus: NDArray[np.uint8], k: int) -> Found:
    """See `kosine_kernels.search.top_distances`."""
    from kosine_kernels import search

    return search.top_distances(queries, corpus, k, threads=_threads(queries.size * len(corpus)))


@cache
def _usable(level: str) -> bool:
    from kosine_kernels.engine import Unavailable, select_isa

    try:
        select_isa("float32", level)
    except (Unavailable, ValueError):  # an engine says so; scores can be had without one
        return False
    return True


def _threads(products: int) -> int:
    return _cpus() if products > ALONE else 1


@cache  # asking takes as long as some million products
def _cpus() -> int:
    return usable_cpus()
