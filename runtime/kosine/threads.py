"""How many threads this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_cpus"]


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs under both the affinity mask and the cgroup's quota (versions 2 and 1), at least 1.

    A quota is rounded down: one thread too many is throttled for whole scheduler periods, which
    costs far more latency than it brings throughput.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota_v2(folder) for folder in _own_folders(cgroup)]
    quotas.append(_quota_v1(cgroup / "cpu"))
    return max(1, math.floor(min(cpus, *quotas)))


def _own_folders(cgroup: Path) -> list[Path]:
    """The process's own group and every group above it: the tightest limit counts."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [cgroup]
    own = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), "/")
    folder = cgroup / own.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(cgroup))]


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf
