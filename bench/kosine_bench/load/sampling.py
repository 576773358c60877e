"""How much is measured of latency under load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["CLIMB", "FULL", "MOST_LOAD", "QUICK", "Sampling"]

CLIMB: Final = 0.1
MOST_LOAD: Final = 3.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much is measured.

    Attributes:
        loads: Offered loads, as parts of each way's own capacity, ascending. Beyond 1 the queue
            grows for as long as it is measured; padded batching may still hold out there, since
            its batches only become as wasteful as at capacity once they are full.
        seconds: Of arrivals, at least, per point and pass. Padded batching beyond its capacity
            holds for some seconds before the first full rectangle comes and the queue never ends
            again; a pass has to outlast that.
        requests: At least, per point, over all passes.
        passes: Over all points.
        simulated: Passes of the simulation beside it, which cost little. A percentile of one
            pass is mostly the draw of its arrivals.
    """

    loads: Sequence[float] = (0.05, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1)
    seconds: float = 40.0
    requests: int = 500
    passes: int = 3
    simulated: int = 15

    def count(self, rate_rps: float) -> int:
        """Requests of one pass over a point."""
        return math.ceil(max(self.requests / self.passes, rate_rps * self.seconds))

    def total_s(self, capacities: Mapping[str, float]) -> float:
        """Seconds that all passes over all points take."""
        rates = [load * rate for load in self.loads for rate in capacities.values()]
        return self.passes * sum(self.count(rate) / rate for rate in rates)


FULL: Final = Sampling()
QUICK: Final = Sampling((0.05, 0.5, 0.7, 0.9), seconds=4.0, requests=60, passes=1, simulated=3)
