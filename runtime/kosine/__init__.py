"""kosine: text in, unit-length sentence vectors and cosine scores out.

import kosine

encoder = kosine.load("ko.kosine")
vectors = encoder.encode(["한 문장", "다른 문장"])    # (2, dim) float32, unit rows
encoder.similarity(vectors, vectors)                 # (2, 2) cosine
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from kosine import errors
from kosine.encoder import Encoder, load
from kosine.errors import KosineError
from kosine.packed import Packed, Pooled
from kosine.scoring import TopK, cosine, top_k

if TYPE_CHECKING:
    from kosine.serving.batcher import Batcher

__all__ = [
    "Batcher",
    "Encoder",
    "KosineError",
    "Packed",
    "Pooled",
    "TopK",
    "cosine",
    "errors",
    "load",
    "top_k",
]

try:
    __version__ = version("kosine")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    # The batcher brings asyncio along: only those who use it pay for its import.
    if name == "Batcher":
        from kosine.serving.batcher import Batcher

        return Batcher
    raise AttributeError(f"module 'kosine' has no attribute {name!r}")
