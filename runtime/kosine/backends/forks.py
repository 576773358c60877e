"""What becomes of engines in a forked child: their threads and their GPU did not come along."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

from kosine.errors import BackendUnavailable

__all__ = ["Forkable", "check_process", "never_destroy", "watch_forks"]


class Forkable(Protocol):
    """An object that must know that it is in a child now."""

    def forked(self) -> None:
        """Called in the child, right after the fork, with no other thread there."""
        ...


def watch_forks(engine: Forkable) -> None:
    """Call `engine.forked()` in every child that is forked while `engine` lives."""
    _live.add(engine)


def never_destroy(*parts: object) -> None:
    """Keep objects for ever: destroying them would wait for threads that are not there."""
    for part in parts:
        if part is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))


def check_process(owner: int) -> None:
    """Raise BackendUnavailable unless this is process `owner`: CUDA does not survive a fork."""
    if owner != os.getpid():
        raise BackendUnavailable(
            f"this encoder was loaded on a GPU in process {owner} and inherited by {os.getpid()}",
            limit="CUDA does not survive a fork",
            remedy="load the encoder in the child, and nothing on a GPU before the fork",
        )


_live: weakref.WeakSet[Forkable] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_live):
        engine.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
