"""Time as an argument: the system's monotonic clock, and one that tests move by hand."""

from __future__ import annotations

import threading
import time
from typing import Protocol, runtime_checkable

__all__ = ["Clock", "FakeClock", "SystemClock"]


@runtime_checkable
class Clock(Protocol):
    """Where the batcher reads the time and waits. Seconds; only differences have a meaning."""

    def now(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread until `seconds` have passed on this clock."""
        ...

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait on a held condition until notified, or `timeout` seconds pass on this clock.

        May return early for no reason, as `Condition.wait` may: callers loop.
        """
        ...


class SystemClock:
    """`time.monotonic`."""

    def __init__(self) -> None:
        # An instance attribute that holds the C function: one frame less on the submit path.
        self.now = time.monotonic

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        condition.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))


class FakeClock:
    """A clock that stands still until `advance` moves it. Any number of threads may wait.

    Args:
        start: The first reading, in seconds.
    """

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start
        self._lock = threading.Lock()
        self._waiting: list[threading.Condition] = []

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        target = self._now + seconds
        condition = threading.Condition()
        with condition:
            while self._now < target:
                self.wait(condition, target - self._now)

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        target = None if timeout is None else self._now + timeout
        with self._lock:
            if target is not None and self._now >= target:
                return
            self._waiting.append(condition)
        # The caller holds `condition`, and `advance` needs it to notify: no wake-up is lost.
        try:
            condition.wait()
        finally:
            with self._lock:
                self._waiting.remove(condition)

    def advance(self, seconds: float) -> None:
        """Move the clock forward and wake everyone who waits on it."""
        if seconds < 0:
            raise ValueError(f"seconds={seconds}; a clock never goes back; pass 0 or more")
        with self._lock:
            self._now += seconds
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()
