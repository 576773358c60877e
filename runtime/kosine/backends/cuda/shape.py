"""What a graph is captured for, and how a batch is laid out for it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kosine.packed import Int32, Packed

__all__ = ["MAX_SENTENCES", "Shape", "cut", "shape_of", "token_steps"]

MAX_SENTENCES = 2_048  # in one graph
SENTENCE_STEPS = (1, 8, 64, 256, 512, 1_024, MAX_SENTENCES)
# Rows of q that one program of attention takes: the least that tensor cores multiply, what pays
# where sentences are longer, and what pays where they are long.
TILES = (16, 64, 128)
SHORT, LONG = 40, 256  # tokens of a sentence, on average


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a captured computation. Smaller batches are run in larger shapes.

    Attributes:
        tokens: Rows of activations.
        sentences: Rows of vectors.
        tile: Rows of q that a program of attention takes.
    """

    tokens: int
    sentences: int
    tile: int

    @property
    def tiles(self) -> int:
        """The most tiles that so many tokens of so many sentences can need."""
        return self.tokens // self.tile + self.sentences

    @property
    def places(self) -> Mapping[str, tuple[int, int]]:
        """Where each input is in the buffer that is uploaded: (begin, length), in numbers of int32.

        Each begins at a multiple of 16 bytes.
        """
        return _places(self)

    @property
    def numbers(self) -> int:
        """Length of that buffer."""
        begin, length = self.places["tile_begin"]
        return begin + -(-length // 4) * 4

    def fill(self, buffer: Int32, batch: Packed, positions: Int32) -> None:
        """Write a batch into `buffer`, (numbers,) int32.

        Rows behind its tokens are of token 0; sentences behind its last are empty; tiles behind
        the last are of sentence -1.
        """
        at = {name: buffer[a : a + n] for name, (a, n) in self.places.items()}
        count, tokens = len(batch), batch.num_tokens
        at["ids"][:tokens] = batch.ids
        at["ids"][tokens:] = 0
        at["positions"][:tokens] = positions
        at["positions"][tokens:] = 0
        at["starts"][: count + 1] = batch.starts
        at["starts"][count + 1 :] = tokens
        at["skip"][:count] = 0 if batch.skip is None else batch.skip
        at["skip"][count:] = 0
        tiles = -(-batch.lengths // self.tile)
        ends = np.cumsum(tiles)
        number = int(ends[-1])
        if number == count:  # a tile each
            at["tile_sentence"][:number] = np.arange(count, dtype=np.int32)
            at["tile_begin"][:number] = batch.starts[:-1]
        else:
            sentence = np.repeat(np.arange(count, dtype=np.int32), tiles)
            within = np.arange(number, dtype=np.int32) - (ends - tiles)[sentence]
            at["tile_sentence"][:number] = sentence
            at["tile_begin"][:number] = batch.starts[sentence] + self.tile * within
        at["tile_sentence"][number:] = -1
        at["tile_begin"][number:] = 0


@lru_cache(1_024)
def _places(shape: Shape) -> Mapping[str, tuple[int, int]]:
    lengths = {
        "ids": shape.tokens,
        "positions": shape.tokens,
        "starts": shape.sentences + 1,
        "skip": shape.sentences,
        "tile_sentence": shape.tiles,
        "tile_begin": shape.tiles,
    }
    places, end = {}, 0
    for name, length in lengths.items():
        places[name] = (end, length)
        end += -(-length // 4) * 4
    return places


def token_steps(most: int) -> tuple[int, ...]:
    """The token counts that graphs are captured for, up to `most`: at most an eighth is wasted
    above 128, and products' rows are multiples of 16.
    """
    steps: list[int] = []
    at = 16
    while at < most:
        steps.append(at)
        at += max(16, 1 << max(0, (at.bit_length() - 4)))
    return (*steps, most)


def shape_of(lengths: Int32, steps: tuple[int, ...]) -> Shape:
    """The least shape for sentences of these lengths."""
    tokens, count = int(lengths.sum()), len(lengths)
    mean = tokens / count
    tile = TILES[0] if mean <= SHORT else TILES[1] if mean <= LONG else TILES[2]
    return Shape(
        steps[bisect_left(steps, tokens)],
        SENTENCE_STEPS[bisect_left(SENTENCE_STEPS, count)],
        tile,
    )


def cut(starts: Int32, max_tokens: int) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of the sentences of each piece: at most `max_tokens` tokens and
    MAX_SENTENCES sentences, of which each alone fits.
    """
    begin, count = 0, len(starts) - 1
    if starts[-1] <= max_tokens and count <= MAX_SENTENCES:
        yield 0, count
        return
    while begin < count:
        end = int(np.searchsorted(starts, starts[begin] + max_tokens, "right")) - 1
        end = min(max(end, begin + 1), begin + MAX_SENTENCES, count)
        yield begin, end
        begin = end
