"""kosine: text in, unit-length sentence vectors and cosine scores out.

import kosine

encoder = kosine.load("ko.kosine")
vectors = encoder.encode(["한 문장", "다른 문장"])    # (2, dim) float32, unit rows
encoder.similarity(vectors, vectors)                 # (2, 2) cosine
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kosine import errors
from kosine.encoder import Encoder
from kosine.errors import KosineError
from kosine.loading import load
from kosine.packed import Packed, Pooled
from kosine.scoring import TopK, cosine, top_k

if TYPE_CHECKING:
    from kosine.mining import community_detection, paraphrase_mining, semantic_search
    from kosine.serving.batcher import Batcher

    __version__: str

__all__ = [
    "Batcher",
    "Encoder",
    "KosineError",
    "Packed",
    "Pooled",
    "TopK",
    "community_detection",
    "cosine",
    "errors",
    "load",
    "paraphrase_mining",
    "semantic_search",
    "top_k",
]
MINING = ("community_detection", "paraphrase_mining", "semantic_search")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def __getattr__(name: str) -> Any:
    # The batcher brings asyncio along, the version a parser of packages' metadata: only those who
    # use them pay for the import.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("kosine")
        except PackageNotFoundError:  # run from a source tree that was never installed
            return "0+unknown"
    if name == "Batcher":
        from kosine.serving.batcher import Batcher

        return Batcher
    if name in MINING:
        from kosine import mining

        return getattr(mining, name)
    raise AttributeError(f"module 'kosine' has no attribute {name!r}")
