"""Which GPU is visible, asked of the CUDA driver itself: no PyTorch in the asking process."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "visible"]

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
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


def visible() -> Gpu | None:
    """The first CUDA device that this process may use, or None."""
    driver = _driver()
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


def _driver() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
