"""What one call put into the queue: its texts, what they cost, and who waits for them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kosine.batch_future import BatchFuture
from kosine.packed import Float32, Packed

if TYPE_CHECKING:
    from kosine.ageing_queue import AgeingQueue

__all__ = ["NO_PROMPT", "Job", "Prompt"]

Prompt = tuple[str | None, str | None]
NO_PROMPT: Prompt = (None, None)
_NO_TEXTS: list[str] = []


class Job:
    """One `submit` (one future for all texts) or a part of one `submit_many` (a future each).

    Texts leave the queue from the front: `taken` of them are in a batch or done. `tokens`,
    `nbytes` and `requests` are what the rest occupies in the queue.

    Args:
        texts: The texts; the list is the job's own.
        sizes: UTF-8 bytes of each text.
        overhead: Tokens that each text has besides its own (special tokens, prompt), at most.
        max_tokens: The encoder's limit per text.
    """

    # Defaults in the class: most jobs are one text that nothing special happens to, and store
    # only what differs.
    grouped = False
    single = False
    prompt: Prompt = NO_PROMPT
    truncate_dim: int | None = None
    priority = 0
    deadline = math.inf
    taken = 0
    requests = 1
    arrived = queued = 0.0
    offsets: list[int] | None = None
    base = 0
    packed: Packed | None = None
    place: AgeingQueue | None = None
    settled: bytearray | None = None
    rows: Float32 | None = None
    future: BatchFuture | None = None
    futures: Sequence[BatchFuture] = ()
    owner: Callable[[Job, int], bool] | None = None

    def __init__(
        self, texts: list[str], sizes: Sequence[int], overhead: int, max_tokens: int
    ) -> None:
        self.texts = texts
        self.sizes = sizes
        self.overhead = overhead
        self.max_tokens = max_tokens
        self.count = self.remaining = count = len(texts)
        if count == 1:
            size = sizes[0]
            self.nbytes = size
            size += overhead
            self.tokens = size if size < max_tokens else max_tokens
        else:
            self.nbytes = sum(sizes)
            self.tokens = (
                overhead * count + self.nbytes
                if overhead + max(sizes) <= max_tokens
                else sum(min(overhead + size, max_tokens) for size in sizes)
            )

    def cancel(self, index: int) -> bool:
        """Cancel the future of text `index`, or the whole job; False if it is too late."""
        owner = self.owner
        return owner is not None and owner(self, index)

    def adopt(self, packed: Packed, offsets: list[int], base: int) -> int:
        """Take over the exact token counts; how much the charge changed.

        Args:
            packed: The tokenised texts of this job and perhaps of others.
            offsets: `packed.starts` as a list.
            base: The position of this job's first text in `packed`.
        """
        before = self.tokens
        self.packed, self.offsets, self.base = packed, offsets, base
        if self.settled is None:
            self.tokens = offsets[base + self.count] - offsets[base]
        else:
            self.tokens = sum(
                offsets[base + i + 1] - offsets[base + i] for i in self.pending(0, self.count)
            )
        return self.tokens - before

    def text_tokens(self, index: int) -> int:
        """Tokens of one text: exact once tokenised, an upper estimate before."""
        if self.offsets is not None:
            return self.offsets[self.base + index + 1] - self.offsets[self.base + index]
        return min(self.overhead + self.sizes[index], self.max_tokens)

    def span_tokens(self, start: int, stop: int) -> int:
        """Tokens of the texts [start, stop), once tokenised."""
        offsets, base = self.offsets, self.base
        assert offsets is not None, "only a tokenised job is asked"
        return offsets[base + stop] - offsets[base + start]

    def fit(self, start: int, room: int) -> int:
        """Where a run of texts from `start` with at most `room` tokens ends."""
        offsets = self.offsets
        assert offsets is not None, "only a tokenised job is asked"
        low = self.base + start
        high = self.base + self.count + 1
        return bisect_right(offsets, offsets[low] + room, low, high) - 1 - self.base

    def skip_settled(self) -> int:
        """Step over texts at the front that nobody waits for; the next one's position."""
        settled = self.settled
        if settled is not None:
            following = settled.find(0, self.taken)
            self.taken = self.count if following < 0 else following
        return self.taken

    def settle(self, start: int, stop: int) -> int:
        """Count texts [start, stop) as answered; how many were not before."""
        settled = self.settled
        if settled is None:
            if stop - start == self.remaining:
                # The usual way out: everything at once.
                self.remaining = 0
                return stop - start
            self.settled = settled = bytearray(self.count)
        fresh = settled.count(0, start, stop)
        settled[start:stop] = b"\1" * (stop - start)
        self.remaining -= fresh
        return fresh

    def pending(self, start: int, stop: int) -> Sequence[int]:
        """Which of the texts [start, stop) are still waited for."""
        if self.remaining == 0:
            return ()
        settled = self.settled
        if settled is None:
            return range(start, stop)
        return [i for i in range(start, stop) if not settled[i]]

    def pending_runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The same, as (start, stop) of each unbroken run."""
        settled = self.settled
        if settled is None or not settled.count(1, start, stop):
            return [(start, stop)]
        runs = []
        while (start := settled.find(0, start, stop)) >= 0:
            end = settled.find(1, start, stop)
            end = stop if end < 0 else end
            runs.append((start, end))
            start = end
        return runs

    def release(self) -> None:
        """Let go of everything large: the texts, the tokens and the futures."""
        self.remaining = 0
        self.texts = _NO_TEXTS
        self.sizes = ()
        self.future = self.owner = None
        if self.packed is not None:
            self.packed = self.offsets = None
        if self.count > 1:
            self.rows = None
            self.futures = ()
