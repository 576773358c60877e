"""The latency-against-load measurement, on a fake encoder whose cost is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kosine.packed import Packed
from kosine.testing import FakeBackend, FakeEncoder, linear_cost, rectangle_cost
from kosine_bench import paths
from kosine_bench.load.chart import level_table, plot
from kosine_bench.load.curve import curve
from kosine_bench.load.curve import status as verdict
from kosine_bench.load.encoders import PaddedEncoder
from kosine_bench.load.equal_p99 import P99_LEVELS, advantage, interval, load_at_p99, resampled_p99
from kosine_bench.load.generator import kept_deadline, mixed_texts, summary
from kosine_bench.load.sampling import Sampling
from kosine_bench.load.simulation import capacity_tps, simulate
from kosine_bench.load.without_overhead import (
    TIMED_TOKENS,
    batch_of,
    measure_batches,
    without_overhead,
)

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "load"


def test_padding_makes_rectangles():
    backend = FakeBackend()
    encoder = PaddedEncoder(FakeEncoder(backend))
    batch = encoder.prepare(["a", "abc", "abcdefg"]).batch
    encoder.compute(batch)
    assert backend.batches == [(3, 3 * 8)]


def test_texts_are_spread_over_the_lengths():
    encoder = FakeEncoder()
    lengths = np.array(encoder.count_tokens(mixed_texts(encoder, 2_000, seed=0)))
    assert lengths.min() <= 8
    assert lengths.max() >= 60
    assert 15 < lengths.mean() < 19


@pytest.mark.parametrize(
    ("p99", "carried"),
    [(0.5, None), (1.0, 10.0), (2.0, 15.0), (4.0, 20.0), (8.0, 25.0), (64.0, None)],
)
def test_load_at_equal_p99_is_interpolated_in_its_logarithm(p99, carried):
    assert load_at_p99([10.0, 20.0, 30.0], [1.0, 4.0, 16.0], p99) == pytest.approx(carried)


def test_the_heaviest_load_within_the_p99_counts():
    """One point of bad luck on the way up neither ends a curve nor lengthens it."""
    assert load_at_p99([10.0, 20.0, 30.0, 40.0], [1.0, 4.0, 1.0, 16.0], 4.0) == 35.0
    assert load_at_p99([10.0, 20.0], [3.0, 4.0], 2.0) is None
    assert load_at_p99([10.0, 20.0], [1.0, 2.0], 2.0) is None


def test_the_advantage_is_given_at_fixed_levels_within_what_was_measured():
    generator = np.random.default_rng(0)
    points, resampled = [], []
    for way, times in (("packed", 3.0), ("padded", 1.0)):
        for rate in (10.0, 20.0, 40.0, 80.0):
            latencies = generator.exponential(rate / 80, 4_000)
            passes = np.split(latencies, 2)
            again = resampled_p99(passes, generator)
            p99 = float(np.median([np.percentile(each, 99) for each in passes]))
            low, high = interval(again)
            assert low < p99 < high
            points.append({"way": way, "offered_rps": times * rate, "p99_s": p99})
            resampled.append(again)
    rows = advantage(points, resampled, P99_LEVELS)
    assert [row["p99_s"] for row in rows] == list(P99_LEVELS)
    inside = [row for row in rows if "ratio" in row]
    assert [row["p99_s"] for row in inside] == [1.0, 1.5, 2.0, 3.0]
    for row in inside:
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
        assert row["interval"][0] < 3.0 < row["interval"][1]
    outside = rows[0]
    assert outside["packed_rps"] is outside["padded_rps"] is None


def test_neighbours_are_resampled_together():
    """One bad stretch of twenty is drawn or not drawn as a whole: the p99 is less certain."""
    generator = np.random.default_rng(0)
    calm = np.ones(2_000)
    calm[:40] = 9.0
    stretch = resampled_p99([calm], generator)
    spread = resampled_p99([generator.permutation(calm)], generator)
    assert (stretch < 5.0).mean() > 0.25
    assert (spread < 5.0).mean() < 0.05


def test_one_stalled_pass_does_not_move_a_point():
    generator = np.random.default_rng(0)
    passes = [generator.exponential(1.0, 1_000) for _ in range(5)]

    def point(latencies):
        counts = {"requests": 1_000, "rejected": 1, "late": 2, "arrivals_s": 10.0, "seconds": 11.0}
        return summary([{"latencies_s": each, **counts} for each in latencies])

    calm, stalled = point(passes), point([*passes[:4], passes[4] + 100.0])
    assert stalled["p99_s_of_passes"][4] > 100.0 > stalled["p99_s"]
    assert stalled["p99_s"] == pytest.approx(calm["p99_s"], rel=0.2)
    assert stalled["p99_s"] == sorted(stalled["p99_s_of_passes"])[2]
    assert (calm["requests"], calm["rejected"], calm["late"]) == (5_000, 5, 10)
    assert calm["offered_rps"] == 100.0
    again = resampled_p99([*passes[:4], passes[4] + 100.0], generator)
    assert (again < 100.0).mean() > 0.9  # the stalled one is the median where it is drawn thrice


def test_a_pass_without_answers_has_no_finite_percentile():
    counts = {"requests": 5, "rejected": 5, "late": 0, "arrivals_s": 1.0, "seconds": 1.0}
    assert summary([{"latencies_s": np.array([]), **counts}])["p99_s"] == float("inf")


def test_a_point_has_enough_requests_and_seconds():
    sampling = Sampling(loads=(0.1, 1.0), seconds=20.0, requests=500, passes=2)
    assert sampling.count(2.0) == 250
    assert sampling.count(100.0) == 2_000
    assert sampling.total_s({"packed": 100.0}) == pytest.approx(2 * (250 / 10.0 + 20.0))


def test_the_whole_measurement(tmp_path, capsys):
    backend = FakeBackend(cost=linear_cost(5e-5, 5e-4))
    backend.name = "fake"
    sampling = Sampling((0.1, 0.7), seconds=0.4, requests=100, passes=2, simulated=3)
    # Where other work disturbs the measurement of capacity, twice what it says is no overload, and
    # one way may lose more than the other.
    for _ in range(3):
        report = curve(FakeEncoder(backend), sampling)
        overload, capacity = report["at_200_percent"], report["capacity_rps"]
        in_step = capacity["packed"] > 1.4 * capacity["padded"]
        if in_step and overload["rejected"] + overload["late"] > 0:
            break
    assert "minutes" in capsys.readouterr().err
    print({key: value for key, value in report.items() if key != "points"})
    assert in_step, capacity
    assert report["padded_full_batch_s"] > report["full_batch_s"]
    for way in ("packed", "padded"):
        loads = [point["load"] for point in report["points"] if point["way"] == way]
        assert loads[:2] == list(sampling.loads)
        assert loads == sorted(loads)
        # Each way was driven until it could not keep the highest level, or very far.
        last = max((p for p in report["points"] if p["way"] == way), key=lambda p: p["load"])
        assert last["p99_s"] >= P99_LEVELS[-1] * report["full_batch_s"] or last["load"] >= 3.0
    for point in report["points"]:
        assert point["requests"] >= 100
        assert point["p99_interval_s"][0] <= point["p99_s"] <= point["p99_interval_s"][1]
    assert overload["rejected"] + overload["late"] > 0
    assert len(report["packed_over_padded_at_equal_p99"]) == len(P99_LEVELS)
    bar = report["at_70_percent"]["bar_s"]
    assert report["packed_over_padded_at_the_bar"]["p99_s"] == pytest.approx(bar, abs=1e-4)
    levels = report["without_overhead"]["levels"]
    asked = [row["p99_s"] for row in report["packed_over_padded_at_equal_p99"]]
    assert [row["p99_s"] for row in levels[:-1]] == asked
    assert levels[-1]["p99_s"] == report["packed_over_padded_at_the_bar"]["p99_s"]
    for smaller in report["without_overhead_at_smaller_budgets"].values():
        assert [row["p99_s"] for row in smaller] == [row["p99_s"] for row in levels]
    assert json.loads(json.dumps(report)) == report
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot(report, tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


@pytest.mark.parametrize(
    ("at_the_bar", "at_the_level", "possible", "status"),
    [
        (2.1, 2.1, 2.2, 0),
        (1.99, 2.1, 2.2, 1),
        (None, 2.1, 2.2, 1),
        (2.1, 1.8, 1.9, 0),
        (2.1, 1.8, 2.0, 1),
        (2.1, None, 2.2, 1),
        (2.1, 1.8, None, 0),
    ],
)
def test_twice_the_load_is_asked_for_at_the_bar_and_where_it_is_possible(
    at_the_bar, at_the_level, possible, status
):
    def row(p99_s, ratio):
        return {"p99_s": p99_s} | ({} if ratio is None else {"ratio": ratio})

    report = {
        "at_70_percent": {"within": True},
        "at_200_percent": {"accepted_p99_within": True},
        "packed_over_padded_at_the_bar": row(0.4, at_the_bar),
        "packed_over_padded_at_equal_p99": [row(0.05, at_the_level)],
        "without_overhead": {"levels": [row(0.05, possible), row(0.4, 2.2)]},
    }
    assert verdict(report) == status
    for late in ("at_70_percent", "at_200_percent"):
        assert verdict(report | {late: {"within": False, "accepted_p99_within": False}}) == 1


@pytest.mark.parametrize(
    ("p99_s", "late", "in_time"), [(0.7, 0, True), (0.7, 5, True), (0.7, 6, False), (0.8, 0, False)]
)
def test_who_is_failed_at_the_deadline_is_not_in_time(p99_s, late, in_time):
    assert kept_deadline(p99_s, 0.75, accepted=500, late=late) == in_time


def test_a_batch_of_so_many_tokens():
    texts = Packed.of([[1, 2, 3], [4, 5]])
    assert [ids.tolist() for ids in rows_of(batch_of(12, texts))] == [
        [1, 2, 3],
        [4, 5],
        [1, 2, 3],
        [4, 5],
        [1, 2],
    ]
    assert [ids.tolist() for ids in rows_of(batch_of(2, texts))] == [[1, 2]]
    assert [ids.tolist() for ids in rows_of(batch_of(5, texts))] == [[1, 2, 3], [4, 5]]


def rows_of(batch):
    return np.split(batch.ids, batch.starts[1:-1])


def test_batches_are_timed_by_their_tokens():
    clocked = FakeBackend(cost=linear_cost(2e-5, 1e-3))
    texts = FakeEncoder().prepare(["x" * n for n in (5, 17, 60)]).batch
    seconds = measure_batches(FakeEncoder(clocked), texts)
    assert len(seconds) == len(TIMED_TOKENS)
    assert (seconds >= 1e-3 + 2e-5 * np.array(TIMED_TOKENS)).all()


def test_without_overhead_rectangles_carry_as_much_where_nothing_waits():
    """Equal lengths: packing has nothing to gain. Unequal: the more, the longer the queue."""
    seconds = 1e-3 + 1.6e-4 * np.array(TIMED_TOKENS)
    sampling = Sampling((0.3, 0.6, 0.8, 0.9, 1.0), seconds=4.0, requests=100, passes=1, simulated=3)
    same = without_overhead([17] * 500, seconds, 2_048, sampling, 0, [0.05, 0.5])
    for row in same["levels"]:
        assert row["ratio"] == pytest.approx(1.0)
    mixed = np.random.default_rng(3).gamma(2.0, 8.0, 500).clip(5, 63).astype(int).tolist()
    found = without_overhead(mixed, seconds, 2_048, sampling, 0, [0.04, 0.2, 1.0])
    ratios = [row["ratio"] for row in found["levels"]]
    print("packed over padded without overhead, p99 of 40, 200 and 1000 ms:", ratios)
    assert 1.3 < ratios[0] < ratios[1] < ratios[2]
    assert found == without_overhead(mixed, seconds, 2_048, sampling, 0, [0.04, 0.2, 1.0])


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_run_can_still_be_drawn(path, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot(json.loads(path.read_text("utf-8")), tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_the_page_has_the_table_of_the_newest_run():
    newest = max(RESULTS.glob("*.json"))
    text = (Path(__file__).parents[1] / paths.PAGE).read_text("utf-8")
    assert newest.name in text
    assert level_table(json.loads(newest.read_text("utf-8"))) in text


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
