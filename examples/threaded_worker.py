"""A pool of worker threads that share one encoder: pairs of texts in, cosine scores out.

    python threaded_worker.py BUNDLE < pairs.tsv

Each thread handles a line at a time and simply waits for its vectors; the batcher gathers what
the threads ask for into batches.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import kosine
from kosine import Batcher


def score(batcher: Batcher, line: str) -> float:
    """Cosine of the two texts of a line: both vectors have length 1."""
    left, right = batcher.submit(line.split("\t")).result()
    return float(left @ right)


def main(bundle: str) -> None:
    lines = sys.stdin.read().splitlines()
    with Batcher(kosine.load(bundle)) as batcher, ThreadPoolExecutor(16) as threads:
        for cosine in threads.map(partial(score, batcher), lines):
            sys.stdout.write(f"{cosine:.4f}\n")


if __name__ == "__main__":
    main(sys.argv[1])
