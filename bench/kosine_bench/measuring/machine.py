"""What the figures were measured on and with, with nothing in it that names a host or a path."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from kosine_bench import paths
from kosine_bench.measuring.gpu import Gpu

__all__ = ["commit", "describe", "slug"]

# The instruction sets that matter to matrix products, oldest first.
ISA_FLAGS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def describe(threads: int, gpu: Gpu | None = None) -> dict[str, Any]:
    """CPU model, cores, instruction sets, memory, operating system, Python; `gpu` if it ran."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cpus": len(_affinity()),
        "threads": threads,
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "python": platform.python_version(),
        **({"gpu": gpu.describe()} if gpu else {}),
    }


def slug(machine: dict[str, Any]) -> str:
    """A short name for file names, such as `amd-epyc-2cpu` or, of a GPU's run, `nvidia-h200`."""
    if "gpu" in machine:
        return _plain(machine["gpu"]["name"]) or "gpu"
    cpu = re.sub(r"\((r|tm)\)|processor|cpu|@.*", " ", str(machine["cpu"]).lower())
    return f"{_plain(cpu) or 'machine'}-{machine['cpus']}cpu"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether files differ from it; empty outside a checkout."""
    root = paths.checkout()
    if root is None:
        return {}
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return {"commit": revision, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text("utf-8").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_gib() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return 0.0
