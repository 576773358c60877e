"""The latency-against-load measurement, on a fake encoder whose cost is known."""

from __future__ import annotations

import numpy as np
import pytest

from kosine.testing import FakeBackend, FakeEncoder, linear_cost, rectangle_cost
from kosine_bench import load
from kosine_bench.simulation import capacity_tps, simulate


def test_padding_makes_rectangles():
    backend = FakeBackend()
    encoder = load.PaddedEncoder(FakeEncoder(backend))
    batch = encoder.prepare(["a", "abc", "abcdefg"]).batch
    encoder.run(batch)
    assert backend.batches == [(3, 3 * 8)]


def test_texts_are_spread_over_the_lengths():
    encoder = FakeEncoder()
    lengths = np.array(encoder.count_tokens(load.mixed_texts(encoder, 2_000, seed=0)))
    assert lengths.min() <= 8
    assert lengths.max() >= 60
    assert 15 < lengths.mean() < 19


@pytest.mark.parametrize(
    ("p99", "carried"), [(0.5, 0.0), (1.0, 10.0), (2.0, 15.0), (3.0, 20.0), (9.0, 20.0)]
)
def test_load_at_equal_p99_is_interpolated(p99, carried):
    points = [
        {"way": "packed", "offered_rps": 10.0, "p99_s": 1.0},
        {"way": "packed", "offered_rps": 20.0, "p99_s": 3.0},
        {"way": "padded", "offered_rps": 99.0, "p99_s": 0.1},
    ]
    assert load.load_at_p99(points, "packed", p99) == carried


def test_the_whole_measurement(tmp_path):
    backend = FakeBackend(cost=linear_cost(5e-5, 5e-4))
    backend.name = "fake"
    report = load.curve(FakeEncoder(backend), (0.1, 0.7), seconds=0.5)
    print({key: value for key, value in report.items() if key != "points"})
    assert report["capacity_rps"]["packed"] > 1.4 * report["capacity_rps"]["padded"]
    assert {point["way"] for point in report["points"]} == {"packed", "padded"}
    assert report["at_200_percent"]["rejected"] + report["at_200_percent"]["late"] > 0
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    load.plot(report, tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_packed_carries_twice_the_load_of_rectangles():
    """Simulated, so exact: the same policy, budget and arrivals, two costs."""
    lengths = np.random.default_rng(3).gamma(2.0, 7.0, 6_000).clip(4, 62).astype(int)
    texts = ["x" * int(n) for n in lengths]
    per_token, per_batch, budget = 5e-5, 1e-3, 2_048
    packed = linear_cost(per_token, per_batch)
    padded = rectangle_cost(per_token, per_batch)
    capacity = capacity_tps(texts, packed, budget)

    def carried(cost, p99_bar):
        loads = [part * 0.05 for part in range(1, 20)]
        kept = 0.0
        for part in loads:
            outcome = simulate(texts[:2_000], part * capacity, cost, max_batch_tokens=budget)
            if outcome.rejected or outcome.percentile_s(99) > p99_bar:
                break
            kept = part
        return kept

    ratio = carried(packed, 0.1) / carried(padded, 0.1)
    print(f"at p99 <= 100 ms packed carries {ratio:.2f} x the load of padded")
    assert ratio >= 2.0
