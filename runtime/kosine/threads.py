"""How many threads this process may really use, and sharing work out among them."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["share", "usable_cpus"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def share(work: Callable[[Piece], Result], pieces: Sequence[Piece], threads: int) -> list[Result]:
    """`work` of each piece, in order, on the caller's thread and at most `threads` - 1 more.

    The threads live for this call only: nothing is left for a fork or for the end of the
    process. Where no thread can be started, the caller does all of it.

    Raises:
        Whatever `work` raises first; the pieces after it are left undone.
    """
    results: list[Any] = [None] * len(pieces)
    todo = deque(enumerate(pieces))
    errors: list[BaseException] = []

    def run() -> None:
        while True:
            try:
                place, piece = todo.popleft()
            except IndexError:
                return
            try:
                results[place] = work(piece)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                errors.append(error)
                todo.clear()

    helpers = []
    try:
        for _ in range(min(threads, len(pieces)) - 1):
            helper = threading.Thread(target=run, name="kosine-share", daemon=False)
            try:
                helper.start()
            except RuntimeError:  # a limit on threads, or the interpreter is ending
                break
            helpers.append(helper)
        run()
    finally:
        todo.clear()
        for helper in helpers:
            helper.join()
    if errors:
        raise errors[0]
    return results


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
