"""A batcher's numbers, for Prometheus too."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final, Protocol

from kosine.errors import MissingExtra
from kosine.serving.stats import BatcherStats, HistogramSnapshot

__all__ = ["BatcherStats", "HistogramSnapshot", "prometheus_collector"]

GAUGES: Final = {
    "queue_requests": "Requests that wait.",
    "queue_tokens": "Tokens that wait.",
    "queue_bytes": "Bytes of text that wait.",
    "running_tokens": "Tokens in the running batch.",
    "cache_bytes": "What the cache of vectors takes.",
}
TOTALS: Final = {
    "batches": "Batches run.",
    "batch_tokens": "Tokens run.",
    "batch_texts": "Texts run.",
    "bisections": "Failed batches that were split.",
    "truncated": "Texts cut at the encoder's limit.",
    "unknown": "Unknown tokens.",
    "worker_crashes": "Worker threads that died and were replaced.",
    "submitted": "Requests admitted.",
    "cache_hits": "Texts that the cache knew.",
    "cache_misses": "Texts that the cache did not know.",
}
ENDS: Final = ("completed", "failed", "cancelled", "expired", "shed")


class HasStats(Protocol):
    """A `kosine.Batcher`, or whatever else counts as it does."""

    def stats(self) -> BatcherStats: ...


def prometheus_collector(batcher: HasStats, prefix: str = "kosine_batcher") -> Any:
    """A custom collector for `prometheus_client`: `REGISTRY.register(prometheus_collector(b))`.

    Args:
        batcher: Whose numbers are exported, read at each scrape.
        prefix: What the metrics' names start with.

    Raises:
        MissingExtra: prometheus-client is not installed.
    """
    try:
        families = import_module("prometheus_client.core")
    except ImportError as error:
        raise MissingExtra(
            "prometheus-client is not installed", remedy="pip install prometheus-client"
        ) from error

    class Collector:
        def collect(self) -> Iterator[Any]:
            stats = batcher.stats()
            for name, text in GAUGES.items():
                yield families.GaugeMetricFamily(
                    f"{prefix}_{name}", text, value=getattr(stats, name)
                )
            for name, text in TOTALS.items():
                yield families.CounterMetricFamily(
                    f"{prefix}_{name}", text, value=getattr(stats, name)
                )
            ended = families.CounterMetricFamily(
                f"{prefix}_ended", "Requests by outcome.", labels=["how"]
            )
            for name in ENDS:
                ended.add_metric([name], getattr(stats, name))
            yield ended
            rejected = families.CounterMetricFamily(
                f"{prefix}_rejected", "Refused calls.", labels=["why"]
            )
            for why, number in stats.rejected.items():
                rejected.add_metric([why], number)
            yield rejected
            stages = families.HistogramMetricFamily(
                f"{prefix}_stage_seconds", "Duration of each stage.", labels=["stage"]
            )
            for stage, histogram in stats.stages.items():
                buckets = [(str(bound), number) for bound, number in histogram.buckets.items()]
                buckets.append(("+Inf", histogram.count))
                stages.add_metric([stage], buckets=buckets, sum_value=histogram.total_s)
            yield stages

    return Collector()
