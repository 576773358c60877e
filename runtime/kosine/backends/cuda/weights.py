"""An encoder's arrays on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.backends.cuda.device import KernelDevice
from kosine.errors import BackendError
from kosine.positions import rotary_frequencies
from kosine_kernels.steps import Attention, Dense, Embed, FeedForward, Linear, Norm, Rotary, Step

__all__ = ["OnGpu", "Weights", "to_half"]

LOG2_E = math.log2(math.e)  # the kernels' exponentials are of 2


@dataclass(frozen=True, slots=True)
class OnGpu:
    """A linear layer: the address of its weight, turned to (columns, inner), and of its bias,
    0 where there is none.
    """

    weight: int
    bias: int
    inner: int
    columns: int


class Weights:
    """What `steps` need, copied to the GPU once.

    Tables and layers' products are of `dtype`; norms, angles, biases of scores and Dense modules
    float32. A gate's columns follow those of `up`, in one product.

    Attributes:
        linear: By name.
        at: Addresses of all else, by name; 0 for what is not there.

    Raises:
        BackendError: A weight does not fit the dtype, or the GPU has too little memory.
    """

    def __init__(
        self,
        gpu: KernelDevice,
        steps: Sequence[Step],
        tensors: Mapping[str, NDArray[np.float32]],
        dtype: str,
    ) -> None:
        self._gpu = gpu
        self._tensors = tensors
        self._dtype = dtype
        self.linear: dict[str, OnGpu] = {}
        self.at: dict[str, int] = {"": 0}
        for step in steps:
            self._take(step)
        del self._tensors

    def angles(self, rotary: Rotary, head_size: int) -> tuple[int, int]:
        """Addresses of (rows, head_size / 2) float32 cosines and sines."""
        names = [f"{part} {rotary} {head_size}" for part in ("cosines", "sines")]
        if names[0] not in self.at:
            frequencies = rotary_frequencies(rotary.theta, head_size, rotary.divisor)
            places = np.arange(rotary.rows, dtype=np.float32)[:, None]
            angles = (places * frequencies).astype(np.float64)
            for name, of in zip(names, (np.cos, np.sin), strict=True):
                self.at[name] = self._copy(of(angles).astype(np.float32))
        return self.at[names[0]], self.at[names[1]]

    def _take(self, step: Step) -> None:
        match step:
            case Embed():
                for name in (step.word, step.position, step.token_type):
                    if name is not None:
                        self.at[name] = self._copy(self._half(f"{name}.weight"))
            case Norm():
                self._take_norm(step)
            case Linear():
                self._take_linear(step.name)
            case Attention():
                self._take_linear(step.qkv, bias=step.bias)
                self._take_linear(step.output, bias=step.bias)
                for norm in (step.query_norm, step.key_norm, step.norm):
                    self._take_norm(norm)
                if step.rotary is not None:
                    self.angles(step.rotary, step.head_size)
                if step.distances is not None:
                    self._take_distances(step.distances.name, step.distances.buckets)
            case FeedForward():
                self._take_linear(step.up, step.gate, bias=step.bias)
                self._take_linear(step.down, bias=step.bias)
                self._take_norm(step.norm)
            case Dense():
                self._take_linear(step.name, bias=step.bias, half=False)
            case _:
                pass

    def _take_norm(self, norm: Norm | None) -> None:
        if norm is None:
            return
        for part in ("weight", "bias") if norm.bias else ("weight",):
            name = f"{norm.name}.{part}"
            self.at[name] = self._copy(self._tensors[name])

    def _take_distances(self, name: str, buckets: Sequence[int]) -> None:
        if name not in self.at:
            self.at[name] = self._copy(self._tensors[f"{name}.weight"] * np.float32(LOG2_E))
            self.at[f"{name}.buckets"] = self._copy(np.asarray(buckets, np.int32))

    def _take_linear(
        self, name: str, gate: str | None = None, *, bias: bool = True, half: bool = True
    ) -> None:
        names = [each for each in (name, gate) if each is not None]
        read = self._half if half else self._tensors.__getitem__
        weight = np.concatenate([read(f"{each}.weight").T for each in names])
        columns, inner = weight.shape
        offset = 0
        if bias and f"{name}.bias" in self._tensors:
            offset = self._copy(np.concatenate([read(f"{each}.bias") for each in names]))
        self.linear[name] = OnGpu(self._copy(weight), offset, inner, columns)

    def _half(self, name: str) -> NDArray[Any]:
        return to_half(self._tensors[name], self._dtype, name)

    def _copy(self, array: NDArray[Any]) -> int:
        address = self._gpu.allocate(array.nbytes)
        self._gpu.copy_in(address, array)
        return address


def to_half(array: NDArray[np.float32], dtype: str, name: str) -> NDArray[Any]:
    """float16, or bfloat16 as uint16, rounded to the nearest.

    Raises:
        BackendError: float16 cannot hold a number of the array.
    """
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise BackendError(
                f"float16 would overflow: |x| reaches {np.abs(array).max():.0f} in {name[:60]!r}",
                limit=f"{np.finfo(np.float16).max:.0f}, float16's largest number",
                remedy="use dtype='bfloat16'",
            )
        return half
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded.astype(np.uint16))
