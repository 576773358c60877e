"""A stand-in for the native engine, on any machine and in any dtype that it is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from kosine.backends.onnx.cpu import OnnxBackend
from kosine.bundle import Bundle
from kosine.errors import BackendError, BackendUnavailable
from kosine.packed import Packed, Pooled


class StandIn:
    """The bundle's float32 graph under the name "native", faults on order.

    Attributes:
        made: (name, dtype) of each that was made, and `closed` of each that was closed.
        absent: Dtypes that this machine lacks.
        broken: Dtypes in which `run` raises.
        wrong: Dtypes in which rows from `wrong_from_row` on come out negated.
        bent: Dtypes in which the first number of each row is a little off: vectors inside the
            gate of bfloat16 and outside that of float32.
    """

    made: list[tuple[str, str]] = []  # noqa: RUF012
    closed: list[tuple[str, str]] = []  # noqa: RUF012
    absent: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()
    bent: frozenset[str] = frozenset()
    wrong_from_row = 0
    name = "native"
    device = "cpu"

    def __init__(self, bundle: Bundle, *, dtype: str, **_: Any) -> None:
        if dtype in self.absent:
            raise BackendUnavailable(f"no {dtype} here")
        self.made.append((self.name, dtype))
        self.dtype = dtype
        self._inner = OnnxBackend(bundle, threads=1)
        self.dim, self.threads = self._inner.dim, self._inner.threads
        self.batch_tokens = self._inner.batch_tokens

    def run(self, batch: Packed) -> Pooled:
        if self.dtype in self.broken:
            raise BackendError(f"{self.dtype} broke")
        pooled = self._inner.run(batch)
        if self.dtype in self.wrong:
            pooled.vectors[self.wrong_from_row :, :] *= -1
        if self.dtype in self.bent:
            pooled.vectors[:, 0] += 3e-3
            pooled.vectors[:] /= (pooled.vectors**2).sum(axis=1, keepdims=True) ** 0.5
        return pooled

    def close(self) -> None:
        self.closed.append((self.name, self.dtype))
        self._inner.close()


def install(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """A fresh stand-in behind the name "native"."""
    kind = type("StandIn", (StandIn,), {"made": [], "closed": []})
    monkeypatch.setattr("kosine.backends.native.NativeBackend", kind)
    return kind
