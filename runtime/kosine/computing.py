"""Packed sentences through a backend: in calls that suit it, and no number that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from kosine.backend import Backend
from kosine.batching import split_batches
from kosine.errors import BackendError, NonFiniteVector
from kosine.packed import Float32, Packed, Pooled

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["calls", "compute_finite", "compute_in_batches", "not_finite_error", "one_ahead"]

Item = TypeVar("Item")
Made = TypeVar("Made")


def compute_finite(backend: Backend, batch: Packed, dim: int) -> Pooled:
    """One call of the backend, and further ones only for rows that come out NaN or infinite.

    Raises:
        NonFiniteVector: `indices` are the rows that came out NaN or infinite.
        BackendError: Vectors of another shape than (sentences, dim).
    """
    pooled = backend.run(batch)
    if pooled.vectors.shape != (len(batch), dim):
        raise BackendError(
            f"backend {backend.name!r} returned vectors {pooled.vectors.shape}",
            limit=f"expected {(len(batch), dim)}",
            remedy="report this backend",
        )
    vectors, norms = pooled.vectors, pooled.norms
    bad = _not_finite(vectors, norms)
    if bad and len(batch) > 1:
        # Sentences that share a row of a rectangle share its NaN (0 * NaN is NaN): alone,
        # only the guilty one gives it again.
        vectors, norms = vectors.copy(), norms.copy()
        for row in bad:
            alone = backend.run(batch.take([row]))
            vectors[row], norms[row] = alone.vectors[0], alone.norms[0]
        bad = _not_finite(vectors, norms)
        pooled = Pooled(vectors, norms)
    if bad:
        raise not_finite_error(bad, pooled)
    return pooled


def compute_in_batches(
    compute: Callable[[Packed], Pooled],
    batch: Packed,
    dim: int,
    max_tokens: int,
    max_texts: int | None,
    done: Callable[[int], object],
) -> Pooled:
    """Any number of sentences, in calls of `compute` with at most `max_tokens` and `max_texts`.

    Args:
        compute: `compute_finite` on some backend.
        batch: The sentences; (B,).
        dim: Length of the vectors.
        max_tokens: Of a call; a longer sentence goes alone.
        max_texts: Of a call; None for any number.
        done: Told after each call how many sentences it had.

    Raises:
        NonFiniteVector: After all calls, with every row that came out NaN or infinite.
    """
    vectors = np.empty((len(batch), dim), np.float32)
    norms = np.empty(len(batch), np.float32)
    bad: list[int] = []
    for indices in calls(batch, max_tokens, max_texts):
        # A batch that fits goes as it is: backends need no particular order.
        whole = len(indices) == len(batch) and max_texts is None
        try:
            pooled = compute(batch if whole else batch.take(indices))
        except NonFiniteVector as error:
            pooled = cast(Pooled, error.pooled)
            bad += [int(row) if whole else int(indices[row]) for row in error.indices]
        target = slice(None) if whole else indices
        vectors[target], norms[target] = pooled.vectors, pooled.norms
        done(len(indices))
    if bad:
        raise not_finite_error(tuple(sorted(bad)), Pooled(vectors, norms))
    return Pooled(vectors, norms)


def calls(batch: Packed, max_tokens: int, max_texts: int | None) -> Iterator[NDArray[np.intp]]:
    """Which sentences go together, with at most `max_tokens` and `max_texts` in a call."""
    for indices in split_batches(batch.lengths, max_tokens):
        step = max_texts or len(indices)
        for begin in range(0, len(indices), step):
            yield indices[begin : begin + step]


def _not_finite(vectors: Float32, norms: Float32) -> tuple[int, ...]:
    finite = np.isfinite(norms) & np.isfinite(vectors).all(axis=1)
    return tuple(np.flatnonzero(~finite).tolist())


def not_finite_error(bad: tuple[int, ...], pooled: Pooled) -> NonFiniteVector:
    """Of the rows `bad`."""
    return NonFiniteVector(
        f"{len(bad)} of {len(pooled.norms)} vectors came out NaN or infinite (first: {bad[0]})",
        indices=bad,
        pooled=pooled,
        limit="finite numbers",
        remedy="run `kosine verify` on the bundle, or choose dtype='float32'",
    )


def one_ahead(
    make: Callable[[Item], Made], items: Iterable[Item], *, threaded: bool
) -> Iterator[Made]:
    """`map(make, items)`; threaded, the next one is made while its user is busy with this one.

    Items are read in the caller's thread, one more than was asked for; `make` runs in another,
    one at a time and in order, and raises where its value would have come. An item that is alone
    is made without a thread.
    """
    iterator = iter(items)
    for first in iterator:
        second = next(iterator, None) if threaded else None
        if second is None:
            yield make(first)
            continue
        from concurrent.futures import ThreadPoolExecutor  # 3 ms of every import otherwise

        with ThreadPoolExecutor(1, thread_name_prefix="kosine-ahead") as pool:
            waiting: Future[Made] = pool.submit(make, first)
            coming: Item | None = second
            while coming is not None:
                after = pool.submit(make, coming)
                yield waiting.result()
                waiting, coming = after, next(iterator, None)
            yield waiting.result()
