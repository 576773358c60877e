"""Calls into native code that the end of the interpreter waits for.

A thread that is in native code while the interpreter ends is killed when it asks for the GIL to
come back. Killed among frames of C++ or Rust it takes the process along (SIGABRT, exit status
134). So calls under way are waited for at exit, when all but daemon threads have ended, and a
thread that begins another one ends there, as it was about to anyway.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

__all__ = ["EXIT_GATE", "ExitGate", "awaited_at_exit"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
# How often the end of the process looks whether the last call has ended.
POLL_S = 0.001


class ExitGate:
    """Counts the calls under way; closed, it lets the thread that closed it in, and no other.

    Without a lock, as each call of a service passes here twice: appending to a list and taking its
    last item are one step for all threads, and a signal handler may come in between.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all calls: in a forked child their threads are not there to leave."""
        self._calls: list[None] = []
        self._closed_by: int | None = None

    def enter(self) -> None:
        """Begin a call.

        Raises:
            SystemExit: The process is ending; it ends this thread without a word.
        """
        # Counted first: whoever closes the gate either sees this call or is seen by it.
        self._calls.append(None)
        if self._closed_by is not None and self._closed_by != threading.get_ident():
            self._calls.pop()
            raise SystemExit

    def leave(self) -> None:
        """End a call."""
        self._calls.pop()

    def close(self) -> None:
        """Let no other thread in, and wait until all calls under way have ended."""
        self._closed_by = threading.get_ident()
        while self._calls:
            time.sleep(POLL_S)


EXIT_GATE = ExitGate()
atexit.register(EXIT_GATE.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=EXIT_GATE.reset)


def awaited_at_exit(call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """For functions that let the GIL go in C++ or Rust: each call goes through `EXIT_GATE`."""

    @wraps(call)
    def awaited(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        EXIT_GATE.enter()
        try:
            return call(*args, **kwargs)
        finally:
            EXIT_GATE.leave()

    return awaited
