"""A batch with no padding: every sentence's tokens end to end, and where each one starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Float32",
    "Int32",
    "Matrix",
    "Output",
    "Packed",
    "Pooled",
    "TokenWeights",
    "Vector",
]

Int32: TypeAlias = NDArray[np.int32]
Float32: TypeAlias = NDArray[np.float32]
Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32]]
Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Output: TypeAlias = Literal["dense", "sparse", "multi"]
TokenWeights: TypeAlias = dict[int, float]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """B sentences of T tokens in all.

    Attributes:
        ids: (T,) int32 token ids, special tokens included.
        starts: (B + 1,) int32 offsets into `ids` (the field's `cu_seqlens`): sentence i is
            `ids[starts[i]:starts[i + 1]]`; `starts[0] == 0` and `starts[B] == T`.
        skip: (B,) int32 leading tokens of each sentence that pooling leaves out (a prompt
            under `include_prompt: false`), or None when there are none anywhere.
    """

    ids: Int32
    starts: Int32
    skip: Int32 | None = None

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int] | Int32], skip: Int32 | None = None) -> Packed:
        """Lay token-id sequences end to end."""
        starts = np.zeros(len(sentences) + 1, np.int32)
        np.cumsum([len(ids) for ids in sentences], out=starts[1:])
        arrays = [ids for ids in sentences if isinstance(ids, np.ndarray)]
        if arrays and len(arrays) == len(sentences):
            return cls(np.concatenate(arrays, dtype=np.int32), starts, skip)
        ids = np.fromiter(chain.from_iterable(sentences), np.int32, int(starts[-1]))
        return cls(ids, starts, skip)

    def __len__(self) -> int:
        """How many sentences."""
        return len(self.starts) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Int32:
        """(B,) int32 tokens of each sentence."""
        return np.diff(self.starts)

    def take(self, indices: Sequence[int] | NDArray[np.intp]) -> Packed:
        """The sentences at `indices`, in that order, as a batch of their own."""
        chosen = np.asarray(indices, np.intp)
        skip = None if self.skip is None else self.skip[chosen]
        starts = np.zeros(len(chosen) + 1, np.int32)
        lengths = self.lengths[chosen]
        np.cumsum(lengths, out=starts[1:])
        # Where each token is: a loop over sentences would take longer than a GPU for them.
        places = np.repeat(self.starts[chosen] - starts[:-1], lengths)
        places += np.arange(len(places), dtype=np.int32)
        return Packed(self.ids[places], starts, skip)


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """What a backend returns for a `Packed` of B sentences, in its order.

    Attributes:
        vectors: (B, dim) float32 rows of length 1.
        norms: (B,) float32 lengths of the pooled rows before normalising.
    """

    vectors: Float32
    norms: Float32
