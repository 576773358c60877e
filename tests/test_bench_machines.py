"""The simulation of several machines: against the batcher on one, and against sums by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conftest import ROOT
from kosine.testing import FakeBackend, FakeEncoder
from kosine_bench.load import machines
from kosine_bench.load.simulation import simulate
from kosine_bench.measuring.arrivals import poisson_times

RESULT = ROOT / "bench/results/machines/2026-11-21-amd-epyc-2-cpus.json"


def seconds(tokens: int) -> float:
    return 0.002 + 0.0002 * tokens


def test_by_hand() -> None:
    """Two machines, batches of at most 4 tokens, a second a token."""
    found = machines.latencies(
        [0.0, 0.0, 0.5, 0.5], [2, 2, 2, 2], 2, lambda tokens: float(tokens), batch_tokens=4
    )
    np.testing.assert_allclose(found, [2.0, 2.0, 3.5, 3.5])
    # One machine takes both that wait in one batch, up to its budget; a long text goes alone.
    found = machines.latencies(
        [0.0, 0.5, 0.5, 0.5], [1, 2, 2, 9], 1, lambda tokens: float(tokens), batch_tokens=4
    )
    np.testing.assert_allclose(found, [1.0, 4.5, 4.5, 13.5])


def test_the_fewest_is_asked_first() -> None:
    times, tokens = [0.0, 0.1, 0.2], [10, 1, 1]
    turn = machines.latencies(times, tokens, 2, lambda t: float(t), batch_tokens=99)
    fewest = machines.latencies(
        times, tokens, 2, lambda t: float(t), batch_tokens=99, front="fewest"
    )
    assert turn[2] > 10
    assert fewest[2] < 10 or fewest[2] == pytest.approx(turn[2])


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_one_machine_is_the_batcher(share: float) -> None:
    """The same arrivals through `kosine.Batcher` on a fake clock give the same latencies."""
    texts = [" ".join(["a"] * (1 + number % 20)) for number in range(600)]
    tokens = FakeEncoder(FakeBackend(dim=2)).count_tokens(texts)
    capacity = 256 / seconds(256)
    outcome = simulate(
        texts,
        share * capacity,
        lambda batch: seconds(batch.num_tokens),
        max_batch_tokens=256,
        max_queue_tokens=1 << 20,
    )
    rate = share * capacity * len(texts) / sum(tokens)
    times = poisson_times(rate, len(texts), 0).tolist()
    found = machines.latencies(times, list(tokens), 1, seconds, batch_tokens=256)
    np.testing.assert_allclose(np.sort(found), np.sort(outcome.latencies_s), rtol=1e-6)


def test_more_machines_at_the_same_share_wait_less() -> None:
    made = json.loads(RESULT.read_text("utf-8"))
    turn = [each for each in made["curves"] if each["front"] == "in turn"]
    high = [each["p99_s"][-1] for each in turn]
    assert high == sorted(high, reverse=True)


def test_the_committed_figures_are_what_it_computes() -> None:
    made = json.loads(RESULT.read_text("utf-8"))
    result = json.loads((RESULT.parent.parent / "load" / made["result"]).read_text("utf-8"))
    again = machines.report(result, arrivals=2_000)
    assert again["capacity_of_one"] == pytest.approx(made["capacity_of_one"], rel=0.02)
    for few, many in zip(again["curves"], made["curves"], strict=True):
        assert few["machines"] == many["machines"]
        # The middle of the curve, where 2,000 arrivals are enough.
        assert few["p99_s"][4] == pytest.approx(many["p99_s"][4], rel=0.35)


def test_the_page_shows_the_committed_figures() -> None:
    made = json.loads(RESULT.read_text("utf-8"))
    assert machines.table(made) in (ROOT / "docs/scale.md").read_text("utf-8")
