"""Embed a file of any size in bounded memory: one text a line in, float32 rows out.

    python stream_file.py BUNDLE TEXTS.txt VECTORS.f32

Reads ahead of the encoder by a few thousand lines, so that tokenising, encoding and writing
overlap, and writes the rows in the order of the lines.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import islice
from pathlib import Path

import kosine
from kosine import Batcher

LINES_PER_REQUEST = 64
REQUESTS_AHEAD = 32


def main(bundle: str, texts: str, vectors: str) -> None:
    encoder = kosine.load(bundle)
    limits = {"max_queue_tokens": LINES_PER_REQUEST * REQUESTS_AHEAD * encoder.max_tokens}
    with (
        Batcher(encoder, **limits) as batcher,
        Path(texts).open(encoding="utf-8", newline="\n") as lines,
        Path(vectors).open("wb") as out,
    ):
        ahead = deque()
        while chunk := [line.removesuffix("\n") for line in islice(lines, LINES_PER_REQUEST)]:
            ahead.append(batcher.submit(chunk))
            if len(ahead) >= REQUESTS_AHEAD:
                out.write(ahead.popleft().result().tobytes())
        for future in ahead:
            out.write(future.result().tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:4])
