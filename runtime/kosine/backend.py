"""What a backend is: packed tokens in, unit vectors and their norms out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kosine.errors import BackendError
from kosine.packed import Packed, Pooled

__all__ = ["CPU_BATCH_TOKENS", "Backend", "Capabilities", "closed_error"]

CPU_BATCH_TOKENS = 2048  # what suits an engine on a CPU: more tokens in a call gain nothing there


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
        name: "native", "cuda", "onnx", "tensorrt" or "fake".
        dtype: What the computation runs in, for example "float32".
        device: Where it runs: "cpu" or "cuda:N".
        threads: CPU threads of one call, at least 1. The encoder tokenises on as many; on a GPU
            that is all they are for.
        batch_tokens: Tokens in one call that suit it; the encoder cuts batches to that, unless
            its caller says otherwise.
    """

    dim: int
    name: str
    dtype: str
    device: str
    threads: int
    batch_tokens: int

    def run(self, batch: Packed) -> Pooled:
        """Encode a batch of at least one sentence; row i belongs to sentence i.

        Ids and lengths are checked by the encoder before; a backend may rely on
        `0 <= id < vocab_size` and `1 <= length <= max_tokens`.

        Raises:
            BackendError: It failed, or was closed.
        """
        ...

    def close(self) -> None:
        """Give back the memory and the threads of the engine; again is no error.

        Calls after this are a BackendError. A call under way ends in its right vectors, or in
        that error where a part of it had not begun.
        """
        ...


def closed_error() -> BackendError:
    """What `Backend.run` raises after `Backend.close`."""
    return BackendError("this encoder was closed", remedy="load it again")
