"""The orders in which calls wait: those of one priority, and those that have a deadline."""

from __future__ import annotations

import math
from collections import OrderedDict

from kosine.serving.request import Call

__all__ = ["Deadlines", "Level"]


class Level:
    """The calls of one priority that wait, in order, and their tokens."""

    __slots__ = ("calls", "tokens")

    def __init__(self) -> None:
        self.calls: OrderedDict[Call, None] = OrderedDict()
        self.tokens = 0

    def first(self) -> Call:
        return next(iter(self.calls))


class Deadlines:
    """The calls with a deadline and an open future.

    Looked through once for each time that the earliest goes, not once for each call.
    """

    def __init__(self) -> None:
        self._calls: dict[Call, None] = {}
        self._earliest: float | None = math.inf  # None where it has to be looked up

    def watch(self, call: Call) -> None:
        """A call came in."""
        self._calls[call] = None
        if self._earliest is not None and call.deadline < self._earliest:
            self._earliest = call.deadline

    def forget(self, call: Call) -> None:
        """No future of a call is open any more."""
        self._calls.pop(call, None)
        if call.deadline == self._earliest:
            self._earliest = None

    def passed(self, now: float) -> list[Call]:
        """The calls whose deadline has passed; they stay until they are forgotten."""
        if self.earliest() > now:
            return []
        return [call for call in self._calls if call.deadline <= now]

    def earliest(self) -> float:
        """The earliest deadline; infinite if there is none."""
        if self._earliest is None:
            self._earliest = min([call.deadline for call in self._calls], default=math.inf)
        return self._earliest
