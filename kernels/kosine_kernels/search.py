"""The best rows of a corpus for each query, in C++: no matrix of scores is ever held.

Only what the native module brings: where it is missing, callers do it in numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine_kernels.engine import Float32, forced_level, isa_levels, native_module

__all__ = ["available", "top_distances", "top_products"]

Found = tuple[NDArray[np.int64], Float32]


def available() -> bool:
    """Whether this build and this machine have it."""
    return bool(isa_levels())


def top_products(
    queries: Float32,
    corpus: NDArray[Any],
    k: int,
    *,
    normalise: bool = False,
    bits: bool = False,
    shift: Float32 | None = None,
    scale: Float32 | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> Found:
    """The k largest dot products for each query, best first.

    Ties go to the lower index, NaN comes last. The GIL is released meanwhile. A score depends on
    its query, its row, the ISA level, and whether there are more than eight queries.

    Args:
        queries: (q, d) float32, C-contiguous.
        corpus: (n, d) float32, or int8 or uint8, which stand for `shift + corpus * scale`; or
            (n, ceil(d / 8)) uint8 of `bits`, the highest first, which stand for +1 and -1.
            C-contiguous; it may be a memory map.
        k: 1 to n.
        normalise: Divide a row's scores by its length; those of a row of zeros are 0.
        bits: What uint8 is.
        shift, scale: (d,) float32, for int8 and uint8.
        threads: Most threads.
        isa: As for `Engine`.

    Returns:
        Indices (q, k) int64 and scores (q, k) float32.

    Raises:
        Unavailable: No native module, or no such ISA level.
        ValueError, TypeError: Arrays that do not fit.
    """
    search, level = native_module().search, forced_level(isa)
    indices, scores = _room(len(queries), k)
    search.products(queries, corpus, bits, shift, scale, normalise, threads, level, indices, scores)
    return indices, scores


def top_distances(
    queries: NDArray[np.uint8],
    corpus: NDArray[np.uint8],
    k: int,
    *,
    threads: int = 1,
    isa: str | None = None,
) -> Found:
    """The k least Hamming distances for each query, the least first; ties go to the lower index.

    Args:
        queries, corpus: (q, w) and (n, w) uint8, C-contiguous.
        k, threads, isa: As for `top_products`.

    Returns:
        Indices (q, k) int64, and distances in bits, negated, (q, k) float32.

    Raises:
        Unavailable, ValueError, TypeError: As `top_products`.
    """
    search, level = native_module().search, forced_level(isa)
    indices, scores = _room(len(queries), k)
    search.distances(queries, corpus, threads, level, indices, scores)
    return indices, scores


def _room(queries: int, k: int) -> Found:
    return np.empty((queries, k), np.int64), np.empty((queries, k), np.float32)
