"""What the figures were measured on and with, with nothing in it that names a host or a path."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosine_bench import paths

__all__ = ["Gpu", "commit", "describe", "slug", "visible_gpu"]

# The instruction sets that matter to matrix products, oldest first.
ISA_FLAGS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
# The CUDA driver's own library, asked so that no PyTorch is needed in the asking process.
CUDA_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS = 75, 76, 16


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first CUDA device. `driver` is the newest CUDA version that the driver serves."""

    name: str
    capability: str
    multiprocessors: int
    memory_gib: float
    driver: str

    def describe(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "name": self.name,
            "compute_capability": self.capability,
            "multiprocessors": self.multiprocessors,
            "memory_gib": self.memory_gib,
            "cuda_driver": self.driver,
        }


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


def visible_gpu() -> Gpu | None:
    """The first CUDA device that this process may use, or None."""
    driver = _cuda_driver()
    if driver is None or driver.cuInit(0):
        return None
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    device = ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name = ctypes.create_string_buffer(128)
    memory, version = ctypes.c_size_t(), ctypes.c_int()
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    driver.cuDriverGetVersion(ctypes.byref(version))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    return Gpu(
        name=name.value.decode("utf-8", "replace"),
        capability=f"{attribute(CAPABILITY_MAJOR)}.{attribute(CAPABILITY_MINOR)}",
        multiprocessors=attribute(MULTIPROCESSORS),
        memory_gib=round(memory.value / 2**30, 1),
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _cuda_driver() -> Any:
    for name in CUDA_LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
