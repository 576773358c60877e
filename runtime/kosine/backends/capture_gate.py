"""Who may talk to CUDA while a graph is captured.

ONNX Runtime captures in CUDA's global mode: an allocation or a synchronous copy that any other
thread makes meanwhile fails, and breaks the capture. So captures of that kind run alone, and
everything else that kosine asks of a GPU runs side by side.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["GATE", "CaptureGate"]


class CaptureGate:
    """Many sharers, or one that is alone. Whoever waits to be alone goes before new sharers.

    A thread that is inside passes at once: an encoder may be collected as garbage, and free its
    memory, in the middle of another one's call.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget who is inside: in a forked child they are not there to leave."""
        self._changed = threading.Condition(threading.RLock())
        self._inside = threading.local()
        self._sharers = 0
        self._waiting = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        if getattr(self._inside, "yes", False):
            yield
            return
        with self._changed:
            while self._alone or self._waiting:
                self._changed.wait()
            self._sharers += 1
        self._inside.yes = True
        try:
            yield
        finally:
            self._inside.yes = False
            with self._changed:
                self._sharers -= 1
                if not self._sharers:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Not for a thread that is inside already."""
        with self._changed:
            self._waiting += 1
            while self._alone or self._sharers:
                self._changed.wait()
            self._waiting -= 1
            self._alone = True
        self._inside.yes = True
        try:
            yield
        finally:
            self._inside.yes = False
            with self._changed:
                self._alone = False
                self._changed.notify_all()


GATE = CaptureGate()  # one for the process, as CUDA's capture mode is
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=GATE.reset)
