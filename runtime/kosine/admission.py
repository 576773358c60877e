"""The batcher's door: what a text weighs, and how a refusal is put into words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kosine.errors import InputError, KosineError, QueueFull, TextError
from kosine.schedule import Refusal

__all__ = ["refusal_error", "utf8_sizes"]


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
