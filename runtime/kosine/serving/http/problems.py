"""What is answered when a request cannot be: one `Problem`, told in each interface's own shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from kosine.errors import (
    BatcherError,
    DeadlineExceeded,
    InputError,
    KosineError,
    QueueFull,
    TextTooLong,
)

__all__ = ["KINDS", "SHAPES", "Problem", "Shape", "problem_of", "told"]

Shape = Callable[["Problem"], tuple[int, dict[str, Any]]]


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        kind: A key of `KINDS`.
        message: What is told, with the limit and the remedy; never a text.
        param: The field of the request that is at fault.
        code: For programs; the kind by default, where that says more than the status.
        retry_after: Seconds after which it may go better.
        close: The connection cannot be used further.
        allow: Methods that the route takes.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        close: bool = False,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code or (None if kind in ("invalid", "empty") else kind)
        self.retry_after = retry_after
        self.close = close
        self.allow = allow

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        found = []
        if self.retry_after is not None:
            seconds = max(1, math.ceil(self.retry_after))
            found.append((b"retry-after", str(seconds).encode()))
        if self.kind == "invalid_api_key":
            found.append((b"www-authenticate", b"Bearer"))
        if self.allow is not None:
            found.append((b"allow", self.allow.encode()))
        if self.close:
            found.append((b"connection", b"close"))
        return found


# kind: status, OpenAI's type, TEI's error_type
KINDS: Final = {
    "invalid": (400, "invalid_request_error", "Validation"),
    "empty": (400, "invalid_request_error", "Empty"),
    "invalid_api_key": (401, "invalid_request_error", "Unauthorized"),
    "not_found": (404, "invalid_request_error", "NotFound"),
    "method_not_allowed": (405, "invalid_request_error", "Validation"),
    "reload_failed": (409, "invalid_request_error", "Conflict"),
    "body_too_large": (413, "invalid_request_error", "Validation"),
    "unsupported_media_type": (415, "invalid_request_error", "Validation"),
    "overloaded": (429, "rate_limit_error", "Overloaded"),
    "backend": (500, "server_error", "Backend"),
    "internal": (500, "server_error", "Internal"),
    "unavailable": (503, "server_error", "Unhealthy"),
    "deadline_exceeded": (504, "server_error", "Timeout"),
}


def problem_of(error: Exception) -> Problem:
    """The problem that an error of kosine's is."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, QueueFull):
        return Problem("overloaded", str(error), retry_after=error.retry_after)
    if isinstance(error, DeadlineExceeded | TimeoutError):
        return Problem("deadline_exceeded", "the deadline passed; allow more time, or retry later")
    if isinstance(error, TextTooLong):
        return Problem("invalid", str(error), param="input", code="context_length_exceeded")
    if isinstance(error, InputError):
        return Problem("invalid", str(error))
    if isinstance(error, BatcherError):
        return Problem("unavailable", "the model is being restarted; retry", retry_after=1.0)
    if isinstance(error, KosineError):
        # What an engine says of itself (paths, versions) is the operator's: it is in the log.
        return Problem("backend", f"the model failed on this input ({type(error).__name__})")
    return Problem("internal", "the service failed; its log says more, under the request's id")


def openai_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    status, kind, _ = KINDS[problem.kind]
    error = {
        "message": problem.message,
        "type": kind,
        "param": problem.param,
        "code": problem.code,
    }
    return status, {"error": error}


def tei_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    status, _, kind = KINDS[problem.kind]
    if problem.kind == "invalid":
        status = 422
    return status, {"error": problem.message, "error_type": kind}


def cohere_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    return KINDS[problem.kind][0], {"message": problem.message}


SHAPES: Final[dict[str, Shape]] = {
    "openai": openai_shape,
    "tei": tei_shape,
    "cohere": cohere_shape,
}


def told(problem: Problem, shape: str) -> tuple[int, bytes]:
    """The status and the JSON of an answer."""
    status, value = SHAPES[shape](problem)
    return status, msgspec.json.encode(value)
