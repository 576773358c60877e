"""From raw samples to figures."""

from __future__ import annotations

from typing import Any

import pytest

from kosine_bench.measuring.models import SIZES, ModelSize, flops_per_text, weight_bytes
from kosine_bench.measuring.summary import limit_seconds, ratio, summarise, summarise_load

SMALL = ModelSize("small", 100, 10, 1, 1, 20, 66)  # 4 * 100 + 2 * 200 = 800 linear weights
CEILINGS = {
    "matrix": {"float32": {"flops": 1e6}},
    "memory": {"bytes_per_second": 3.2e6},
}


def samples(seconds: list[float], cpu: float = 0.5) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "sentences": 50,
        "tokens": 600,
        "computed_tokens": 800,
    }


def test_medians_over_rounds_and_their_spread() -> None:
    rounds = [samples([1.0, 1.0]), samples([2.0, 2.0], cpu=1.0), samples([0.5, 0.5])]
    summary = summarise("burst", rounds, limit=0.5)
    assert summary["tokens_per_second"] == 300
    assert summary["tokens_per_second_spread"] == [150, 600]
    assert summary["sentences_per_second"] == 25
    assert summary["cpu_seconds_per_1000"] == 10
    assert summary["cpu_seconds_per_1000_spread"] == [10, 20]
    assert summary["padding_share"] == 0.25
    assert summary["limit_share"] == 0.25
    assert summary["p50_ms"] == 1000
    assert summary["p50_ms_spread"] == [500, 2000]


def test_percentiles_are_over_all_calls_of_all_rounds() -> None:
    rounds = [
        samples([i / 1000 for i in range(1, 51)]),
        samples([i / 1000 for i in range(51, 102)]),
    ]
    summary = summarise("single", rounds, limit=None)
    assert summary["p50_ms"] == pytest.approx(51)
    assert summary["p95_ms"] == pytest.approx(96)
    assert summary["p99_ms"] == pytest.approx(100)
    assert summary["limit_share"] is None


def test_bulk_has_no_percentiles() -> None:
    assert "p50_ms" not in summarise("bulk", [samples([3.0])], limit=None)


def test_a_ratio_pairs_rounds_so_that_a_slow_spell_cancels() -> None:
    ours = [samples([1.0]), samples([10.0]), samples([1.1])]
    theirs = [samples([2.0]), samples([20.0]), samples([2.2])]
    found = ratio(ours, theirs)
    assert found["ratio"] == pytest.approx(2.0)
    assert found["spread"] == pytest.approx([2.0, 2.0])


def test_a_ratio_below_one_means_slower_and_missing_rounds_are_left_out() -> None:
    found = ratio([samples([4.0])], [samples([1.0]), samples([9.0])])
    assert found["ratio"] == pytest.approx(0.25)


def test_a_ratio_is_per_token_where_one_side_had_fewer_texts() -> None:
    found = ratio([samples([1.0])], [{**samples([1.0]), "tokens": 300}])
    assert found["ratio"] == pytest.approx(2.0)


def test_the_limit_is_arithmetic_or_reading_weights_whichever_is_slower() -> None:
    reading = 800 * 4 / 3.2e6
    short = flops_per_text(SMALL, 1) / 1e6
    long = flops_per_text(SMALL, 60) / 1e6
    assert short < reading * 2 < long
    assert limit_seconds(SMALL, "float32", [[60]], CEILINGS) == pytest.approx(long)
    tiny = {**CEILINGS, "memory": {"bytes_per_second": 1e5}}
    assert limit_seconds(SMALL, "float32", [[1], [1]], tiny) == pytest.approx(2 * 3200 / 1e5)


def test_the_limit_of_an_unmeasured_precision_is_unknown() -> None:
    assert limit_seconds(SMALL, "int8", [[5]], CEILINGS) is None


def test_base_needs_what_is_known_of_it() -> None:
    base = SIZES["base"]
    assert base.linear_weights == 84_934_656
    assert flops_per_text(base, 17) / 17 == pytest.approx(0.170e9, rel=0.01)
    assert weight_bytes(base, "bfloat16") == 2 * 84_934_656


def test_load_points_pool_their_rounds() -> None:
    rounds = [
        {"points": [{"share": 0.5, "rate": 10.0, "latencies": [0.010, 0.020]}]},
        {"points": [{"share": 0.5, "rate": 12.0, "latencies": [0.030]}]},
    ]
    (row,) = summarise_load(rounds)
    assert (row["share"], row["rate"], row["requests"]) == (0.5, 11.0, 3)
    assert row["p50_ms"] == pytest.approx(20)
