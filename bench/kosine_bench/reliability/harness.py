"""What the experiments share: a fake backend, patience, threads beside a block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kosine.testing import FakeBackend

__all__ = ["PATIENCE_S", "Figures", "in_threads", "lean_backend"]

Figures = dict[str, Any]
PATIENCE_S = 60.0


def lean_backend(**options: Any) -> FakeBackend:
    """A fake backend that does not keep a list of its batches."""
    backend = FakeBackend(**options)
    backend.keep_batches = False
    return backend


@contextmanager
def in_threads(work: Callable[[int], None], count: int) -> Iterator[None]:
    """Run `work(number)` in threads beside the block; errors surface at its end."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
