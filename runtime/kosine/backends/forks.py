"""What a forked child must do first: the other threads and the GPU did not come along."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable

from kosine.errors import BackendUnavailable

__all__ = ["check_process", "never_destroy", "watch_forks"]


def watch_forks(forked: Callable[[], None]) -> None:
    """Call a bound method in every child that is forked while its object lives.

    It is called right after the fork, with no other thread there: locks that one may have held
    are to be made anew.
    """
    _watching.add(weakref.WeakMethod(forked, _watching.discard))


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


_watching: set[weakref.WeakMethod[Callable[[], None]]] = set()


def _after_fork() -> None:
    for method in list(_watching):
        forked = method()
        if forked is not None:
            forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
