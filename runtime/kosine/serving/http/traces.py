"""Spans for OpenTelemetry, where it is installed and set up, as `opentelemetry-instrument` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module

from kosine.serving.http.app import Call

__all__ = ["tracer"]


def tracer() -> Callable[[Call, str, int, float], None] | None:
    """What writes a span for each answered request, below the caller's own; None without
    OpenTelemetry. A span has the route, the status, the model and counts, and no text."""
    try:
        trace = import_module("opentelemetry.trace")
        propagate = import_module("opentelemetry.propagate")
    except ImportError:
        return None
    spans = trace.get_tracer("kosine")

    def observe(call: Call, route: str, status: int, seconds: float) -> None:
        carrier = {
            name: value.decode("latin-1")
            for name in ("traceparent", "tracestate")
            if (value := call.headers.get(name.encode())) is not None
        }
        ended = time.time_ns()
        span = spans.start_span(
            route,
            context=propagate.extract(carrier),
            kind=trace.SpanKind.SERVER,
            start_time=ended - int(seconds * 1e9),
            attributes={
                "http.route": route,
                "http.response.status_code": status,
                "gen_ai.request.model": call.model,
                "gen_ai.usage.input_tokens": call.tokens,
                "kosine.texts": call.texts,
            },
        )
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(ended)

    return observe
