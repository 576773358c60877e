"""Log lines, plain or JSON. What a request held is in none of them."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import Any

import msgspec

__all__ = ["set_up"]


class PlainFormatter(logging.Formatter):
    """kosine: GET /health/ready status=200 ms=0.1 ..."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {k}={v}" for k, v in getattr(record, "fields", {}).items())
        return f"kosine: {' '.join(record.getMessage().splitlines())}{fields}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        value: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return msgspec.json.encode(value).decode()


def set_up(kind: str, requests: bool = True) -> None:
    """Log to stderr.

    Args:
        kind: "text" or "json".
        requests: A line for every request, too.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if kind == "json" else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("kosine").setLevel(logging.INFO)
    logging.getLogger("kosine.http").setLevel(logging.INFO if requests else logging.WARNING)
    # What it says of a request may quote it.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
