"""`prometheus_collector` and the statistics by their first address; see `kosine.serving.stats`."""

from __future__ import annotations

from kosine.serving.stats import BatcherStats, HistogramSnapshot, prometheus_collector

__all__ = ["BatcherStats", "HistogramSnapshot", "prometheus_collector"]
