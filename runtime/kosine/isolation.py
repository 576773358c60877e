"""When a batch fails: find the guilty texts by halving, so that the others are answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kosine.errors import NonFiniteVector
from kosine.packed import Packed, Pooled
from kosine.segments import Segment

__all__ = ["Bench", "isolate"]


class Bench(Protocol):
    """What isolating needs from whoever runs and answers batches."""

    def checked_run(self, packed: Packed) -> Pooled: ...
    def answer(self, segments: Sequence[Segment], pooled: Pooled) -> None: ...
    def fail_segment(self, segment: Segment, error: BaseException) -> None: ...
    def awaited(self, segment: Segment) -> bool: ...
    def count_bisection(self) -> None: ...


def isolate(bench: Bench, texts: list[Segment], packed: Packed, error: Exception) -> None:
    """Answer the innocent texts of a batch that failed, and fail the guilty.

    One guilty text among n costs at most 2 log2(n) further runs. An error that names its rows
    (`NonFiniteVector.indices`) costs one; none if it brings the other rows along as `pooled`.

    Args:
        bench: Runs, answers, fails.
        texts: One segment per text of the batch.
        packed: Their tokens.
        error: What the batch failed with.
    """
    failed: list[tuple[list[Segment], Packed, Exception]] = [(texts, packed, error)]
    while failed:
        texts, packed, error = failed.pop()
        named = _named_rows(error, len(texts))
        parts: list[Sequence[int]]
        if named:
            for row in named:
                bench.fail_segment(texts[row], _own_error(error, texts[row]))
            innocent = [row for row in range(len(texts)) if row not in named]
            pooled = error.pooled if isinstance(error, NonFiniteVector) else None
            if innocent and isinstance(pooled, Pooled) and len(pooled.norms) == len(texts):
                kept = Pooled(pooled.vectors[innocent], pooled.norms[innocent])
                bench.answer([texts[row] for row in innocent], kept)
                continue
            parts = [innocent]
        elif len(texts) == 1:
            bench.fail_segment(texts[0], error)
            continue
        else:
            bench.count_bisection()
            middle = len(texts) // 2
            parts = [range(middle), range(middle, len(texts))]
        for part in parts:
            rows = [row for row in part if bench.awaited(texts[row])]
            if not rows:
                continue
            segments = [texts[row] for row in rows]
            tokens = packed.take(rows)
            try:
                pooled = bench.checked_run(tokens)
            except Exception as again:  # noqa: BLE001 - whatever it is, it is some text's
                failed.append((segments, tokens, again))
            else:
                bench.answer(segments, pooled)


def _named_rows(error: Exception, count: int) -> frozenset[int]:
    """Rows that the error itself names; empty if it names none, or nonsense."""
    if not isinstance(error, NonFiniteVector):
        return frozenset()
    rows = frozenset(error.indices)
    return rows if all(0 <= row < count for row in rows) else frozenset()


def _own_error(error: Exception, segment: Segment) -> Exception:
    """The same error, with the text's position in its own request instead of in the batch."""
    index = 0 if segment.job.grouped else segment.start
    own = NonFiniteVector(
        f"the vector of text {index} is not finite",
        indices=(index,),
        limit="every vector has finite values and a length",
        remedy="leave the text out, or run it in float32",
    )
    own.__cause__ = error
    return own
