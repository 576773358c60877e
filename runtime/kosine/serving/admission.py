"""What a call brings to the batcher's door: its texts, their tokens, and why it is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import numpy as np

from kosine.errors import BackendError, InputError, KosineError, QueueFull, UnknownPrompt
from kosine.serving.queue import Limits, Refusal
from kosine.serving.stages import Prepared, StagedEncoder
from kosine.texts import as_str, as_texts, check_characters

__all__ = ["is_short", "is_whole", "make_limits", "read_texts", "refusal_error", "to_tokens"]

# An event loop has more tokenised than this beside it.
ON_LOOP_TEXTS: Final = 16
ON_LOOP_CHARS: Final = 1_024


def make_limits(max_wait_ms: float, ageing_s: float, **bounds: int) -> Limits:
    """The batcher's bounds and budget, checked; `bounds` are its arguments that count things.

    Raises:
        InputError: A bound or a time that makes no sense.
    """
    for name, value in bounds.items():
        if not is_whole(value) or value < 1:
            raise InputError(f"{name}={value!r}", limit="at least 1", remedy=f"raise {name}")
    if not 0.0 <= max_wait_ms < math.inf:
        raise InputError(f"max_wait_ms={max_wait_ms!r}", limit="0 or more milliseconds")
    if not 0.0 < ageing_s < math.inf:
        raise InputError(f"ageing_s={ageing_s!r}", limit="more than 0 seconds")
    counted = {name.removeprefix("max_"): value for name, value in bounds.items()}
    return Limits(wait_s=max_wait_ms / 1e3, ageing_s=ageing_s, **counted)


def read_texts(value: str | Iterable[str]) -> tuple[list[str], list[int], bool]:
    """The texts that a caller passed, their UTF-8 bytes, and whether it was one text alone.

    Raises:
        TextError: Something in there is no text.
    """
    if type(value) is str:  # as most requests to a service are
        return [value], [check_characters(value, "text 0")], True
    given, single, _ = as_texts(value, "texts")
    texts = [as_str(text, f"text {i}") for i, text in enumerate(given)]
    return texts, [check_characters(text, f"text {i}") for i, text in enumerate(texts)], single


def to_tokens(
    encoder: StagedEncoder,
    texts: list[str],
    separate: bool,
    prompt_name: str | None,
    prompt: str | None,
) -> tuple[Prepared | None, dict[int, Exception]]:
    """The texts, tokenised, without those that cannot be, and the errors of these by position.

    Only texts that are answered separately fail apart; otherwise the error is raised.
    """
    failed: dict[int, Exception] = {}
    try:
        prepared = encoder.prepare(texts, prompt_name=prompt_name, prompt=prompt)
        return _counted(prepared, texts), failed
    except UnknownPrompt:
        raise
    except Exception:
        if not separate:
            raise
    prepare = partial(encoder.prepare, prompt_name=prompt_name, prompt=prompt)
    parts = [range(len(texts))]
    while parts:
        part = parts.pop()
        try:
            prepare(texts[part.start : part.stop])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is some text's
            middle = (part.start + part.stop) // 2
            if len(part) > 1:
                parts += [range(middle, part.stop), range(part.start, middle)]
            else:
                failed[part.start] = error
    good = [text for i, text in enumerate(texts) if i not in failed]
    return (_counted(prepare(good), good) if good else None), failed


def _counted(prepared: Prepared, texts: Sequence[str]) -> Prepared:
    if len(prepared.batch) != len(texts):
        raise BackendError(
            f"the encoder prepared {len(prepared.batch)} texts", limit=f"expected {len(texts)}"
        )
    return prepared


def refusal_error(refusal: Refusal) -> KosineError:
    """What the caller gets: QueueFull, or InputError if it could never fit."""
    what, value, limit, retry_after = refusal
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


def is_whole(value: object) -> bool:
    """Whether it is an int, NumPy's included; booleans are not."""
    return type(value) is int or isinstance(value, np.integer)


def is_short(texts: str | Sequence[str]) -> bool:
    """Whether tokenising takes no longer than handing it to another thread would."""
    if isinstance(texts, str):
        return len(texts) <= ON_LOOP_CHARS
    if not isinstance(texts, (list, tuple)) or len(texts) > ON_LOOP_TEXTS:
        return False
    return sum(len(text) for text in texts if isinstance(text, str)) <= ON_LOOP_CHARS
