"""Vectors of texts that have been answered, in bounded memory and without the texts."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Final, NamedTuple

from kosine.errors import InputError
from kosine.packed import Float32
from kosine.serving.limits import is_whole

__all__ = ["Key", "VectorCache"]

ENTRY_BYTES: Final = 450  # what Python's objects take beside the numbers of a vector


class Key(NamedTuple):
    """What an answer depends on. The digest stands for the prompt and the text: two of them that
    share 256 bits of BLAKE2b are not known."""

    digest: bytes
    truncate_dim: int | None
    normalize_embeddings: bool

    @classmethod
    def of(
        cls,
        text: str,
        prompt_name: str | None,
        prompt: str | None,
        truncate_dim: int | None,
        normalize_embeddings: bool,
    ) -> Key:
        # A NUL is in no text and in no prompt that is ever answered.
        head = f"{prompt_name!r}\0" if prompt is None else f"\0{prompt}"
        digest = blake2b(f"{head}\0{text}".encode("utf-8", "surrogatepass"), digest_size=32)
        dim = None if truncate_dim is None else int(truncate_dim)
        return cls(digest.digest(), dim, bool(normalize_embeddings))


class VectorCache:
    """The last vectors that were used. Its caller holds a lock.

    Args:
        most_bytes: For vectors and what keeps them together; 0 keeps none.

    Attributes:
        nbytes: What it takes now.

    Raises:
        InputError: Less than 0, or no whole number.
    """

    def __init__(self, most_bytes: int) -> None:
        if not is_whole(most_bytes) or most_bytes < 0:
            raise InputError(
                f"cache_bytes={most_bytes!r}",
                limit="a whole number of bytes, 0 for no cache",
                remedy="pass one, for example cache_bytes=64 << 20",
            )
        self._most = int(most_bytes)
        self._vectors: OrderedDict[Key, Float32] = OrderedDict()
        self.nbytes = 0

    def __bool__(self) -> bool:
        return self._most > 0

    def find(self, key: Key) -> Float32 | None:
        """A copy of the vector (d,): the caller may do with it what it likes."""
        vector = self._vectors.get(key)
        if vector is None:
            return None
        self._vectors.move_to_end(key)
        return vector.copy()

    def keep(self, key: Key, vector: Float32) -> None:
        """Keep a copy; what was used longest ago makes room."""
        size = vector.nbytes + ENTRY_BYTES
        if key in self._vectors or size > self._most:
            return
        self._vectors[key] = vector.copy()
        self.nbytes += size
        while self.nbytes > self._most:
            self.nbytes -= self._vectors.popitem(last=False)[1].nbytes + ENTRY_BYTES
