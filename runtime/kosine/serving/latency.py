"""How long a batch takes: a straight line fitted to the recent ones."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["LatencyModel"]


class LatencyModel:
    """`seconds = per_token_s * tokens + per_batch_s`, by least squares with both at least 0.

    Args:
        window: How many batches are remembered. An old machine state leaves with them.

    Attributes:
        per_token_s: Seconds per token; 0 before the first batch.
        per_batch_s: Seconds per batch; 0 before the first batch.
        spread_s: Standard deviation of the batches around the line.
    """

    def __init__(self, window: int = 50) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=window)
        self.per_token_s = self.per_batch_s = self.spread_s = 0.0

    def __bool__(self) -> bool:
        """Whether anything was measured yet."""
        return bool(self._recent)

    def observe(self, tokens: int, seconds: float) -> None:
        """Remember that a batch of `tokens` took `seconds`."""
        recent = self._recent
        recent.append((tokens, seconds))
        count = len(recent)
        # Sums of the tokens n and seconds s of the batches, and of their products.
        n = s = nn = ns = ss = 0.0
        for tokens, seconds in recent:
            n, s = n + tokens, s + seconds
            nn, ns, ss = nn + tokens * tokens, ns + tokens * seconds, ss + seconds * seconds
        spread = nn - n * n / count
        slope, offset = (s / n if n else 0.0), 0.0
        # Sizes that hardly differ say nothing about the slope.
        if spread > 1e-4 * nn:
            slope = max(0.0, (ns - n * s / count) / spread)
            offset = (s - slope * n) / count
            if offset < 0.0:
                slope, offset = s / n, 0.0
        self.per_token_s, self.per_batch_s = slope, offset
        squares = ss + slope * slope * nn + offset * offset * count
        squares += 2 * (slope * offset * n - slope * ns - offset * s)
        self.spread_s = math.sqrt(max(0.0, squares / count))

    def predict(self, tokens: float) -> float:
        """Seconds that one batch of `tokens` takes; 0 before the first batch."""
        return self.per_token_s * tokens + self.per_batch_s

    def drain(self, tokens: float, batch_tokens: int) -> float:
        """Seconds that `tokens` take in batches of at most `batch_tokens`."""
        if tokens <= 0:
            return 0.0
        batches = -(-tokens // batch_tokens)
        return self.per_token_s * tokens + self.per_batch_s * batches

    def drain_at_most(self, tokens: float, batch_tokens: int) -> float:
        """`drain`, with two standard deviations to spare: what deadlines are judged by."""
        if tokens <= 0:
            return 0.0
        batches = -(-tokens // batch_tokens)
        return self.drain(tokens, batch_tokens) + 2.0 * self.spread_s * math.sqrt(batches)
