"""Numbers for Prometheus: the service's own, and those of each model's batcher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kosine.batcher_stats import prometheus_collector
from kosine.serving.http.app import Call, Endpoint, Service
from kosine.serving.http.wire import Reply

__all__ = ["Metrics"]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts requests; labels are routes, statuses and models' names, never what was sent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "kosine_http_requests",
            "Requests answered; 499 are those whose client went away.",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "kosine_http_request_seconds",
            "Duration of requests.",
            ["route"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        # Looking a child up by its labels takes longer than counting.
        self._children: dict[tuple[str, int], tuple[Any, Any]] = {}

    def observe(self, _: Call, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        found = self._children.get((route, status))
        if found is None:
            found = (self._requests.labels(route, status), self._seconds.labels(route))
            self._children[route, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def watch(self, service: Service) -> None:
        """Export a service's models and the requests that it has in progress."""
        gauge = Gauge(
            "kosine_http_requests_in_progress", "Unanswered requests.", registry=self._registry
        )
        gauge.set_function(lambda: service.in_progress)
        self._registry.register(_PerModel(service))

    @property
    def endpoint(self) -> Endpoint:
        async def handle(_: Call, body: None) -> Reply:  # noqa: ARG001
            media = b"text/plain; version=0.0.4; charset=utf-8"
            return Reply(generate_latest(self._registry), media=media)

        return Endpoint("GET", "/metrics", handle, "Numbers for Prometheus")


class _PerModel:
    """The batchers' numbers, with the model's name as a label."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Any]:
        merged: dict[str, Any] = {}
        for name, model in self._service.models.by_name.items():
            for family in prometheus_collector(model.batcher).collect():
                samples = [
                    sample._replace(labels={"model": name, **sample.labels})
                    for sample in family.samples
                ]
                if family.name in merged:
                    merged[family.name].samples += samples
                else:
                    family.samples = samples
                    merged[family.name] = family
        yield from merged.values()
