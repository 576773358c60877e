"""A backend that computes nothing worth having, the same way every time, with faults on order.

Its vectors depend on every id and its position and on nothing else, so a test can tell whose
vector it got; a fault strikes the sentences that hold a marked id.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from kosine.backend import CPU_BATCH_TOKENS, closed_error
from kosine.clock import Clock, SystemClock
from kosine.packed import Float32, Packed, Pooled

__all__ = ["FakeBackend", "FakeCrash", "Fault", "linear_cost", "rectangle_cost"]

MAX_POSITIONS = 8_192


class Fault(enum.Enum):
    """What happens to a batch that holds a marked id."""

    RAISE = "raise"  # an exception for the whole batch
    NAN = "nan"  # the sentence's row is NaN
    SHAPE = "shape"  # one row too few for the whole batch
    CRASH = "crash"  # a BaseException, as if the thread were killed
    DELAY = "delay"  # `delay_s` more on the clock


class FakeCrash(BaseException):
    """Kills the thread that runs the backend."""


def linear_cost(per_token_s: float, per_batch_s: float = 0.0) -> Callable[[Packed], float]:
    """A packed engine: seconds grow with the real tokens."""
    return lambda batch: per_token_s * batch.num_tokens + per_batch_s


def rectangle_cost(per_token_s: float, per_batch_s: float = 0.0) -> Callable[[Packed], float]:
    """A padded engine: every sentence costs as much as the longest."""
    return lambda batch: per_token_s * len(batch) * int(batch.lengths.max()) + per_batch_s


class FakeBackend:
    """Deterministic unit vectors out of ids.

    Args:
        dim: Length of the vectors.
        cost: Seconds that a batch takes on `clock`; None for none.
        faults: What happens to batches that hold an id.
        delay_s: Length of a `Fault.DELAY`.
        clock: Where `cost` and delays are slept.

    Attributes:
        batches: For each batch run so far, its (sentences, tokens).
    """

    name = "fake"
    dtype = "float32"
    device = "cpu"
    threads = 1
    batch_tokens = CPU_BATCH_TOKENS

    def __init__(
        self,
        dim: int = 8,
        *,
        cost: Callable[[Packed], float] | None = None,
        faults: Mapping[int, Fault] | None = None,
        delay_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self.dim = dim
        self.batches: list[tuple[int, int]] = []
        self.keep_batches = True
        self._closed = False
        self._cost = cost
        self._faults = dict(faults or {})
        self._delay_s = delay_s
        self._clock = clock or SystemClock()
        generator = np.random.default_rng(20_240_229)
        self._positions = generator.integers(1, 2**62, MAX_POSITIONS, dtype=np.uint64) | np.uint64(
            1
        )
        self._columns = generator.integers(1, 2**62, dim, dtype=np.uint64) | np.uint64(1)

    def run(self, batch: Packed) -> Pooled:
        """Encode; see `kosine.backend.Backend`."""
        if self._closed:
            raise closed_error()
        if self.keep_batches:
            self.batches.append((len(batch), batch.num_tokens))
        if self._cost is not None:
            self._clock.sleep(self._cost(batch))
        vectors = self.vectors(batch)
        if self._faults:
            vectors = self._strike(batch, vectors)
        return Pooled(vectors, np.ones(len(vectors), np.float32))

    def close(self) -> None:
        """See `kosine.backend.Backend`."""
        self._closed = True

    def vectors(self, batch: Packed) -> Float32:
        """(B, dim) float32 unit rows, without cost or faults."""
        starts = batch.starts[:-1]
        position = np.arange(batch.num_tokens) - np.repeat(starts, batch.lengths)
        mixed = (batch.ids.astype(np.uint64) + np.uint64(1)) * self._positions[position]
        # Multiplied again after folding the high half down: the low bits must matter too.
        mixed ^= mixed >> np.uint64(31)
        hashes: NDArray[np.uint64] = np.add.reduceat(mixed, starts)
        spread = hashes[:, None] * self._columns
        rows = (spread >> np.uint64(40)).astype(np.float32) - np.float32(2**23)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
        vectors: Float32 = rows / np.maximum(norms, np.float32(1.0))
        return vectors

    def _strike(self, batch: Packed, vectors: Float32) -> Float32:
        for marked, fault in self._faults.items():
            hits = np.flatnonzero(batch.ids == marked)
            if not hits.size:
                continue
            rows = np.unique(np.searchsorted(batch.starts, hits, side="right") - 1)
            if fault is Fault.RAISE:
                raise RuntimeError(f"{len(rows)} marked sentences")
            if fault is Fault.CRASH:
                raise FakeCrash(f"{len(rows)} marked sentences")
            if fault is Fault.DELAY:
                self._clock.sleep(self._delay_s)
            elif fault is Fault.NAN:
                vectors[rows] = np.nan
            else:
                vectors = vectors[:-1]
        return vectors
