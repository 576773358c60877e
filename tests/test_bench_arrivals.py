"""Open-loop arrivals, on a clock that only the test moves."""

from __future__ import annotations

import numpy as np
import pytest

from kosine_bench.measuring.arrivals import num_requests, poisson_times, serve


class Clock:
    """Time passes by sleeping and by encoding: `seconds` a batch."""

    def __init__(self, seconds: float) -> None:
        self.now = 100.0
        self.seconds = seconds
        self.batches: list[list[str]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + 1e-3

    def encode(self, texts: list[str]) -> None:
        self.batches.append(texts)
        self.now += self.seconds


def test_what_waits_is_served_together_and_waiting_counts() -> None:
    clock = Clock(1.0)
    latencies, batches = serve(
        clock.encode, list("abcd"), [0.0, 0.2, 0.4, 5.0], 8, clock=clock, sleep=clock.sleep
    )
    assert clock.batches == [["a"], ["b", "c"], ["d"]]
    assert batches == 3
    assert latencies == pytest.approx([1.0, 1.8, 1.6, 1.0], abs=2e-3)


def test_a_batch_takes_no_more_than_the_most() -> None:
    clock = Clock(1.0)
    latencies, _ = serve(
        clock.encode, list("abcde"), np.zeros(5), 2, clock=clock, sleep=clock.sleep
    )
    assert clock.batches == [["a", "b"], ["c", "d"], ["e"]]
    assert latencies == pytest.approx([1, 1, 2, 2, 3])


def test_an_overloaded_server_shows_the_queue_it_built() -> None:
    clock = Clock(1.0)
    times = [i * 0.1 for i in range(50)]
    latencies, _ = serve(clock.encode, ["x"] * 50, times, 1, clock=clock, sleep=clock.sleep)
    assert latencies[-1] == pytest.approx(50 - 4.9, abs=1e-6)


def test_poisson_times_have_the_rate_and_the_seed() -> None:
    times = poisson_times(50.0, 20_000, seed=4)
    gaps = np.diff(times)
    assert (gaps > 0).all()
    assert 1 / gaps.mean() == pytest.approx(50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert (times == poisson_times(50.0, 20_000, seed=4)).all()
    assert (times != poisson_times(50.0, 20_000, seed=5)).any()


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (1_000.0, 600),  # The most there may be.
        (50.0, 200),  # All that arrive in the seconds.
        (10.0, 100),  # As many as are wanted, in longer.
        (2.0, 40),  # As many as arrive in the longest time.
        (0.1, 8),  # The least, however long that takes.
    ],
)
def test_a_slow_contestant_is_waited_for_within_bounds(rate: float, expected: int) -> None:
    assert num_requests(rate, 4.0, 100, 20.0, 600) == expected
    assert num_requests(rate, 4.0, 0, 0.0, 600) == min(max(int(4 * rate), 8), 600)
