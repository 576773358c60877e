"""A queue by arrival and priority in which nobody starves, and the dead do not pile up."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Final

from kosine.job import Job

__all__ = ["SWEEP_AT", "AgeingQueue"]

# Dead entries are swept out of a queue when they outnumber the living and this.
SWEEP_AT: Final = 64


class AgeingQueue:
    """First come, first served, where a level of priority is worth `ageing_s` seconds."""

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._first: deque[Job] = deque()
        self._levels: dict[int, deque[Job]] = {0: self._first}
        self._dead = 0

    def __bool__(self) -> bool:
        return self.head() is not None

    def __iter__(self) -> Iterator[Job]:
        return (job for level in self._levels.values() for job in level if job.remaining)

    def push(self, job: Job) -> None:
        level = self._levels.get(job.priority)
        if level is None:
            level = self._levels[job.priority] = deque()
        job.place = self
        if not level or level[-1].queued <= job.queued:
            level.append(job)
            return
        later = []
        while level and level[-1].queued > job.queued:
            later.append(level.pop())
        level.append(job)
        level.extend(reversed(later))

    def head(self) -> Job | None:
        """Who is next; None if nobody waits."""
        if len(self._levels) == 1:
            level = self._first
            while level:
                if level[0].remaining:
                    return level[0]
                level.popleft()
                self._dead -= 1
            return None
        best = None
        best_key = math.inf
        empty = []
        for priority, level in self._levels.items():
            while level and not level[0].remaining:
                level.popleft()
                self._dead -= 1
            if not level:
                empty.append(priority)
                continue
            key = level[0].queued - priority * self._ageing_s
            if key < best_key:
                best, best_key = level[0], key
        for priority in empty:
            # Level 0 stays: it is the only one that most queues ever have.
            if priority:
                del self._levels[priority]
        return best

    def pop(self, head: Job) -> None:
        """Remove the job that `head` has just returned."""
        self._levels[head.priority].popleft()
        head.place = None

    def bury(self) -> None:
        """One of the jobs in here is no longer waited for."""
        self._dead += 1
        if self._dead <= SWEEP_AT or self._dead * 2 <= sum(map(len, self._levels.values())):
            return
        self._dead = 0
        for level in self._levels.values():
            living = [job for job in level if job.remaining]
            level.clear()
            level.extend(living)

    def heads(self) -> Iterator[Job]:
        """The first living job of every level."""
        self.head()
        return (level[0] for level in self._levels.values() if level)
