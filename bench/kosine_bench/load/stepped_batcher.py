"""A batcher on a fake clock whose steps one thread takes: its policy without its threads.

The one module of the benchmark that reaches behind `Batcher`'s public methods.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from kosine import Batcher
from kosine.testing import FakeClock, FakeEncoder

__all__ = ["SteppedBatcher"]


class SteppedBatcher:
    """Args as of `Batcher`; nothing happens but in the caller's thread.

    Args:
        encoder: What tokenises and runs.
        clock: The time that the policy goes by; whoever runs a batch moves it.
        options: Passed on to `Batcher`.
    """

    def __init__(self, encoder: FakeEncoder, clock: FakeClock, **options: Any) -> None:
        self._clock = clock
        self._batcher = Batcher(encoder, clock=clock, **options)
        self._pipeline = self._batcher._pipeline
        # The batcher's own threads are never started.
        self._batcher._workers._notify = str  # type: ignore[method-assign, assignment]

    @property
    def queue_tokens(self) -> int:
        """Tokens that are waiting or running."""
        return self._pipeline.schedule.tokens

    def submit(self, text: str, deadline: float | None = None) -> Future[Any]:
        """As `Batcher.submit`."""
        return self._batcher.submit(text, deadline=deadline)

    def expire(self) -> None:
        """Fail what is past its deadline."""
        self._pipeline.expire_step()

    def next_batch_at(self) -> float:
        """When the next batch is due, in the clock's seconds; infinite where nothing waits.

        Tokenising is quicker than running: whatever has arrived is ready when a batch ends.
        """
        while self._pipeline.prepare_step("preparer"):
            pass
        return self._pipeline.schedule.run_at(self._clock.now())

    def run_batch(self) -> None:
        """Cut the next batch, run it and answer."""
        self._pipeline.run_step()

    def close(self) -> None:
        self._batcher.close()
