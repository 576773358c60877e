"""The batcher's door: what a text weighs, and how a refusal is put into words."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from kosine.errors import InputError, KosineError, QueueFull, TextError
from kosine.schedule import Refusal

__all__ = ["cut", "refusal_error", "utf8_sizes"]


def utf8_sizes(texts: Sequence[str]) -> list[int]:
    """UTF-8 bytes of each text.

    Raises:
        TextError: Something is not a str, or holds a lone surrogate.
    """
    try:
        if "".join(texts).isascii():
            return [len(text) for text in texts]
        return [len(text.encode()) for text in texts]
    except (TypeError, UnicodeEncodeError):
        for position, text in enumerate(texts):
            _check_text(text, position)
        raise


def cut(
    sizes: Sequence[int], overhead: int, max_tokens: int, room: int, max_texts: int
) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts in which the texts of one call are queued, in order.

    Args:
        sizes: UTF-8 bytes of each text.
        overhead: Tokens that each text has besides its own, at most.
        max_tokens: The encoder's limit per text.
        room: Tokens per part, by the upper estimate; a text over it is a part of its own.
        max_texts: Texts per part.
    """
    start, count = 0, len(sizes)
    # Most calls are settled by sums alone, which cost a tenth of what follows.
    while start < count:
        stop = min(count, start + max_texts)
        if sum(sizes[start:stop]) + overhead * (stop - start) > room:
            break
        yield start, stop
        start = stop
    if start < count and overhead + max(sizes) > max_tokens:
        sizes, overhead = [min(overhead + size, max_tokens) for size in sizes], 0
    ends = list(accumulate(sizes, initial=0)) if start < count else []
    while start < count:
        # With the overhead of all texts before it, what a part may end at is one number.
        full = ends[start] + overhead * start + room
        stop = min(count, start + max_texts)
        if ends[stop] + overhead * stop > full:
            fitting = range(start + 1, stop)
            stop = start + bisect_right(fitting, full, key=lambda at: ends[at] + overhead * at)
            stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _check_text(text: object, position: int) -> None:
    if not isinstance(text, str):
        raise TextError(
            f"text {position} is {type(text).__name__}", limit="str", remedy="decode it first"
        ) from None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"text {position} has a lone surrogate at {error.start}",
            limit="valid Unicode",
            remedy="decode the source with errors='replace'",
        ) from None


def refusal_error(refusal: Refusal) -> KosineError:
    """What the caller gets: QueueFull, or InputError if it could never fit."""
    what, value, limit, retry_after = refusal[:4]
    if what == "deadline":
        return QueueFull(
            f"the result is predicted in {value:.3f} s",
            limit=f"the deadline is in {limit:.3f} s",
            remedy=f"try again in {retry_after:.3f} s, or allow more time",
            retry_after=retry_after,
        )
    if retry_after == math.inf:
        return InputError(
            f"the call has {value:,.0f} {what}",
            limit=f"the whole queue holds {limit:,.0f}",
            remedy=f"send it in parts, or raise max_queue_{what}",
        )
    return QueueFull(
        f"the queue would hold {value:,.0f} {what}",
        limit=f"max_queue_{what}={limit:,.0f}",
        remedy=f"try again in {retry_after:.3f} s",
        retry_after=retry_after,
    )
