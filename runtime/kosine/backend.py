"""What a backend is: packed tokens in, unit vectors and their norms out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kosine.packed import Packed, Pooled

__all__ = ["Backend", "Capabilities"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend's module states before any engine is made.

    Attributes:
        dtypes: All that it computes in.
        auto: By kind of device that it runs on, "cpu" or "cuda": the dtypes that "auto" tries
            there, fastest first.
    """

    dtypes: tuple[str, ...]
    auto: Mapping[str, tuple[str, ...]]


@runtime_checkable
class Backend(Protocol):
    """The one interface that engines implement. Calls may come from several threads.

    Attributes:
        dim: Length of the vectors.
        name: "onnx", "native", "tensorrt" or "fake".
        dtype: What the computation runs in, for example "float32".

    A backend that wants larger calls than a CPU does says so in an attribute `batch_tokens`.
    """

    dim: int
    name: str
    dtype: str

    def run(self, batch: Packed) -> Pooled:
        """Encode a batch of at least one sentence; row i belongs to sentence i.

        Ids and lengths are checked by the encoder before; a backend may rely on
        `0 <= id < vocab_size` and `1 <= length <= max_tokens`.
        """
        ...
