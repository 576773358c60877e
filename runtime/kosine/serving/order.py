"""The orders in which calls wait: those of one priority, and those that have a deadline."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from itertools import count

from kosine.serving.request import Call

__all__ = ["Deadlines", "Level"]

# The heap is rebuilt when settled calls outnumber the others and this.
SWEEP_AT = 64


class Level:
    """The calls of one priority that wait, in order, and their tokens."""

    __slots__ = ("calls", "tokens")

    def __init__(self) -> None:
        self.calls: OrderedDict[Call, None] = OrderedDict()
        self.tokens = 0

    def first(self) -> Call:
        return next(iter(self.calls))


class Deadlines:
    """The deadlines of calls with an open future."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        # It orders them. Entries of other calls are passed over.
        self._heap: list[tuple[float, int, Call]] = []
        self._serial = count()

    def watch(self, call: Call) -> None:
        """A call came in."""
        if len(self._heap) > SWEEP_AT + 2 * len(self._calls):
            self.rebuild()
        self._calls.add(call)
        heapq.heappush(self._heap, (call.deadline, next(self._serial), call))

    def forget(self, call: Call) -> None:
        """No future of a call is open any more."""
        self._calls.discard(call)

    def passed(self, now: float) -> list[Call]:
        """Take out the calls whose deadline has passed; some of them may have been forgotten."""
        late: list[Call] = []
        while self._heap and self._heap[0][0] <= now:
            late.append(heapq.heappop(self._heap)[2])
        return late

    def earliest(self) -> float:
        """The earliest deadline; infinite if there is none."""
        while self._heap and self._heap[0][2] not in self._calls:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def rebuild(self) -> None:
        """Order the calls anew: a killed thread may have left a half-done step."""
        self._heap = [(call.deadline, next(self._serial), call) for call in self._calls]
        heapq.heapify(self._heap)
