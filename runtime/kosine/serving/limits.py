"""What the queue may hold, and what a call is told that goes beyond it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kosine.errors import InputError, KosineError, QueueFull

__all__ = ["Limits", "Refusal", "is_number", "is_whole"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the queue may hold and how batches are cut. Seconds, tokens, UTF-8 bytes."""

    batch_tokens: int = 2_048
    wait_s: float = 0.0
    queue_tokens: int = 65_536
    queue_requests: int = 8_192
    queue_bytes: int = 16 << 20
    ageing_s: float = 1.0

    @classmethod
    def of(cls, max_wait_ms: float, ageing_s: float, **bounds: int) -> Limits:
        """From a batcher's arguments, checked; `bounds` are those that count things.

        Raises:
            InputError: A bound or a time that makes no sense.
        """
        for name, value in bounds.items():
            if not is_whole(value) or value < 1:
                raise InputError(f"{name}={value!r}", limit="at least 1", remedy=f"raise {name}")
        if not is_number(max_wait_ms) or not 0.0 <= max_wait_ms < math.inf:
            raise InputError(
                f"max_wait_ms={max_wait_ms!r}",
                limit="0 or more milliseconds",
                remedy="leave it out for 0",
            )
        if not is_number(ageing_s) or not 0.0 < ageing_s < math.inf:
            raise InputError(
                f"ageing_s={ageing_s!r}", limit="more than 0 seconds", remedy="leave it out for 1"
            )
        # As Python's own: what is computed from a float32 of NumPy's is one too, and no lock waits
        # for that long.
        counted = {name.removeprefix("max_"): int(value) for name, value in bounds.items()}
        return cls(wait_s=float(max_wait_ms) / 1e3, ageing_s=float(ageing_s), **counted)


class Refusal(NamedTuple):
    """Why a call was not admitted.

    Attributes:
        what: "tokens", "requests", "bytes" or "deadline".
        value: What the queue would have held; for a deadline, the predicted wait in seconds.
        limit: The bound; for a deadline, the time that was left.
        retry_after: Seconds until there should be room; infinite where there never can be.
    """

    what: str
    value: float
    limit: float
    retry_after: float

    def error(self) -> KosineError:
        """What the caller gets: QueueFull, or InputError if it could never fit."""
        what, value, limit, retry_after = self
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


def is_number(value: object) -> bool:
    """Whether it is an int or a float, NumPy's included; booleans are not."""
    return is_whole(value) or isinstance(value, (float, np.floating))


def is_whole(value: object) -> bool:
    """Whether it is an int, NumPy's included; booleans are not."""
    return type(value) is int or isinstance(value, np.integer)
