"""Names of devices: "auto", "cpu", "cuda", "cuda:N"."""

from __future__ import annotations

import re

from kosine.errors import BackendUnavailable

__all__ = ["cuda_index", "first_line", "is_cuda"]


def is_cuda(device: str) -> bool:
    """Whether `device` names a GPU; "auto" names none."""
    return device.startswith("cuda")


def cuda_index(device: str, backend: str) -> int:
    """The number of the GPU that `device` names; "cuda" and "auto" are the first.

    Raises:
        BackendUnavailable: `device` is not a GPU's name.
    """
    if device in ("auto", "cuda"):
        return 0
    match = re.fullmatch(r"cuda:(\d{1,3})", device, re.ASCII)
    if match is None:
        raise BackendUnavailable(
            f"backend {backend!r} cannot run on device {device[:40]!r}",
            limit="cuda or cuda:N, N from 0",
            remedy="name a GPU, for example --device cuda:0",
        )
    return int(match[1])


def first_line(error: object) -> str:
    """What an engine says, short enough for one line."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n", 1)[0][:200]
