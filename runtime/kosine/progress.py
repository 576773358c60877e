"""A progress bar on a terminal, where tqdm is there to draw it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(total: int | None, show: bool | None, long: int, done: int = 0) -> Iterator[Any]:
    """Yield something with `update(n)`, or None where nothing is to be shown.

    Args:
        total: Texts to come, where that is known.
        show: True, False, or None for "where stderr is a terminal and there are over `long`".
        long: See `show`.
        done: Of `total`, before now: they count for no rate.
    """
    if show is None:
        show = sys.stderr.isatty() and (total is None or total > long)
    if not show:
        yield None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:  # tokenizers brings it along, but does not promise to
        yield None
        return
    with tqdm(total=total, unit="text", initial=done) as bar:
        yield bar
