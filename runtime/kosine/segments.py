"""Runs of texts: what a batch is made of, and how their tokens become one packed batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from kosine.job import Job
from kosine.packed import Packed

__all__ = ["Segment", "Source", "join", "single_texts", "source"]


class Segment(NamedTuple):
    """Texts [start, stop) of a job."""

    job: Job
    start: int
    stop: int


class Source(NamedTuple):
    """Sentences [start, stop) of a packed batch."""

    packed: Packed
    start: int
    stop: int


def source(segment: Segment) -> Source:
    """Where the tokens of a segment are."""
    job, start, stop = segment
    assert job.packed is not None, "only tokenised jobs are run"
    return Source(job.packed, job.base + start, job.base + stop)


def single_texts(segments: Iterable[Segment]) -> list[Segment]:
    """The same texts, one segment each."""
    return [
        Segment(job, index, index + 1)
        for job, start, stop in segments
        for index in range(start, stop)
    ]


def join(sources: Sequence[Source]) -> Packed:
    """One batch of many slices; slices that follow one another are copied in one go."""
    merged: list[Source] = []
    for packed, start, stop in sources:
        if merged and merged[-1].packed is packed and merged[-1].stop == start:
            merged[-1] = Source(packed, merged[-1].start, stop)
        else:
            merged.append(Source(packed, start, stop))
    if len(merged) == 1:
        packed, start, stop = merged[0]
        if start == 0 and stop == len(packed):
            return packed
        # The tokens stay where they are: a chunk cut into batches is never copied.
        bounds = packed.starts[start : stop + 1]
        skip = None if packed.skip is None else packed.skip[start:stop]
        return Packed(packed.ids[bounds[0] : bounds[-1]], bounds - bounds[0], skip)
    ids = np.concatenate([p.ids[p.starts[a] : p.starts[b]] for p, a, b in merged])
    lengths = np.concatenate([np.diff(p.starts[a : b + 1]) for p, a, b in merged])
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    if all(p.skip is None for p, _, _ in merged):
        return Packed(ids, starts)
    skips = [np.zeros(b - a, np.int32) if p.skip is None else p.skip[a:b] for p, a, b in merged]
    return Packed(ids, starts, np.concatenate(skips))
