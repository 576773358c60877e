"""The batching policy: literal tables, and what must hold for any lengths at all."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosine.backend import CPU_BATCH_TOKENS
from kosine.backends.rows.plan import WIDTHS, RowPlan, _cut_by_length, _Price, plan_rows
from kosine.batching import split_batches

LENGTHS = st.lists(st.integers(1, 512), max_size=80)
FIXED = (16, 64, 512)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "batches"),
    [
        ([], 10, []),
        ([7], 10, [[0]]),
        ([11], 10, [[0]]),  # over the budget: alone
        ([5, 3, 9, 2], 10, [[2], [0, 1, 3]]),
        ([4, 4, 4, 4], 8, [[0, 1], [2, 3]]),  # equal lengths keep their order
        ([1, 2, 3], 6, [[2, 1, 0]]),
        ([1, 2, 3], 5, [[2, 1], [0]]),
        ([50, 1, 50], 50, [[0], [2], [1]]),
        ([20, 20, 1], 10, [[0], [1], [2]]),
        ([3, 3, 3], 1, [[0], [1], [2]]),
    ],
)
def test_split_batches_table(lengths, max_tokens, batches):
    assert [batch.tolist() for batch in split_batches(lengths, max_tokens)] == batches


@given(LENGTHS, st.integers(1, 2048))
def test_split_batches_gives_each_index_once_within_the_budget(lengths, max_tokens):
    batches = split_batches(lengths, max_tokens)
    flat = [int(i) for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(lengths)))
    sizes = [[lengths[i] for i in batch] for batch in batches]
    assert all(len(batch) == 1 or sum(batch) <= max_tokens for batch in sizes)
    in_order = [size for batch in sizes for size in batch]
    assert in_order == sorted(lengths, reverse=True)
    # No batch was closed while the next sentence still fitted.
    for batch, following in pairwise(sizes):
        assert sum(batch) + following[0] > max_tokens


# lengths, options, then (rows, width) of each rectangle and (row, offset) by sentence
PLANS = [
    ([], {}, [], {}),
    ([10], {}, [(1, 10)], {0: (0, 0)}),
    ([4, 4], {}, [(2, 4)], {0: (0, 0), 1: (1, 0)}),
    ([10], {"widths": (16,), "fixed_widths": True}, [(1, 16)], {0: (0, 0)}),
    (
        [4, 4, 4, 4],
        {"widths": (16,), "fixed_widths": True},
        [(1, 16)],
        {0: (0, 0), 1: (0, 4), 2: (0, 8), 3: (0, 12)},
    ),
    ([16, 1], {"widths": (16,), "fixed_widths": True}, [(2, 16)], {0: (0, 0), 1: (1, 0)}),
    (
        [10, 6, 9, 7],
        {"widths": (16,), "fixed_widths": True},
        [(2, 16)],
        {0: (0, 0), 1: (0, 10), 2: (1, 0), 3: (1, 9)},
    ),
    # 7 goes to the fuller of two rows that would take it.
    (
        [9, 5, 8, 3],
        {"widths": (16,), "fixed_widths": True},
        [(2, 16)],
        {0: (0, 0), 2: (1, 0), 1: (0, 9), 3: (1, 8)},
    ),
    # A rectangle that is not fixed is cut to its fullest row.
    (
        [6, 6, 6, 6, 12],
        {"widths": (32,), "run_cost": 10_000, "width_cost": 0.0},
        [(3, 12)],
        {4: (0, 0), 0: (1, 0), 1: (1, 6), 2: (2, 0), 3: (2, 6)},
    ),
]


@pytest.mark.parametrize(("lengths", "options", "rectangles", "places"), PLANS)
def test_plan_rows_table(lengths, options, rectangles, places):
    plans = plan_rows(lengths, **options)
    assert [(plan.num_rows, plan.width) for plan in plans] == rectangles
    found = {
        int(i): (int(plan.row[at]), int(plan.offset[at]))
        for plan in plans
        for at, i in enumerate(plan.indices)
    }
    assert found == places


def test_one_long_sentence_does_not_widen_the_short_ones():
    # 1 x 512 and 64 x 8 cost 1748 tokens; one rectangle of 2 x 512 costs 2169.
    plans = plan_rows([512, *[8] * 64])
    assert [(plan.num_rows, plan.width) for plan in plans] == [(1, 512), (64, 8)]
    together = plan_rows([512, *[8] * 64], run_cost=100_000)
    assert [(plan.num_rows, plan.width) for plan in together] == [(2, 512)]


def test_a_dear_width_is_avoided():
    narrow = plan_rows([30] * 16, width_cost=0.05)
    wide = plan_rows([30] * 17, widths=(512,), fixed_widths=True)
    assert [plan.width for plan in narrow] == [30]
    assert [(plan.num_rows, plan.width) for plan in wide] == [(1, 512)]


def test_a_sentence_wider_than_every_width_gets_its_own_width():
    plans = plan_rows([700, 5], widths=(16, 512), fixed_widths=True)
    assert {plan.width for plan in plans} == {700, 16}


def test_sentences_of_like_length_have_rows_of_their_own():
    plans = plan_rows([*[21] * 15, *[20] * 34, *[18] * 37])
    assert [(plan.num_rows, plan.width) for plan in plans] == [(15, 21), (34, 20), (37, 18)]
    # Where a run costs more than the filler that it saves, they share one rectangle.
    (plan,) = plan_rows([*[21] * 15, *[20] * 34, *[18] * 37], run_cost=1_000, max_tokens=None)
    assert (plan.num_rows, plan.width) == (86, 21)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    st.sampled_from([0.0, 0.002, 0.05]),
    st.sampled_from([0, 10, 200]),
    st.sampled_from([None, 50]),
)
def test_no_cut_by_length_is_cheaper(lengths, width_cost, run_cost, max_tokens):
    descending = np.array(sorted(lengths, reverse=True))

    def cost(begin, end):
        width = int(descending[begin])
        tokens = (end - begin) * width
        runs = 1 if max_tokens is None else -(-tokens // max_tokens)
        return tokens * (1 + width_cost * width) + runs * run_cost

    steps = (1 + np.flatnonzero(np.diff(descending))).tolist()
    every = (
        [0, *cuts, len(descending)]
        for count in range(len(steps) + 1)
        for cuts in combinations(steps, count)
    )
    least = min(sum(cost(a, b) for a, b in pairwise(edges)) for edges in every)
    options = {"width_cost": width_cost, "run_cost": run_cost, "max_tokens": max_tokens}
    found = _cut_by_length(descending, _Price(**options))
    edges = [0, *found[0], len(descending)]
    assert found[1] == pytest.approx(least)
    assert sum(cost(a, b) for a, b in pairwise(edges)) == pytest.approx(least)


@settings(deadline=None)
@given(LENGTHS, st.booleans(), st.integers(1, 2_000))
def test_rectangles_have_at_most_max_tokens_or_one_row(lengths, fixed, max_tokens):
    widths = FIXED if fixed else WIDTHS
    plans = plan_rows(lengths, widths=widths, fixed_widths=fixed, max_tokens=max_tokens)
    check_plans(plans, lengths)
    assert all(plan.num_tokens <= max_tokens or plan.num_rows == 1 for plan in plans)


@settings(deadline=None)
@given(
    LENGTHS,
    st.booleans(),
    st.sampled_from([0.0, 0.002, 0.05]),
    st.sampled_from([0, 96, 5000]),
    st.sampled_from([None, 64, 1_024]),
)
def test_every_token_has_a_place_of_its_own(lengths, fixed, width_cost, run_cost, max_tokens):
    widths = FIXED if fixed else WIDTHS
    plans = plan_rows(
        lengths,
        widths=widths,
        fixed_widths=fixed,
        width_cost=width_cost,
        run_cost=run_cost,
        max_tokens=max_tokens,
    )
    check_plans(plans, lengths)
    if fixed:
        assert all(plan.width in FIXED for plan in plans)


@settings(deadline=None)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=60))
def test_a_rectangle_is_never_wider_than_its_fullest_row(lengths):
    for plan in plan_rows(lengths):
        filled = np.zeros(plan.num_rows, int)
        np.add.at(filled, plan.row, [lengths[i] for i in plan.indices])
        assert filled.max() == plan.width
        assert filled.min() > 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("batch_size", "share"), [(16, 0.96), (32, 0.97), (128, 0.98)])
def test_almost_nothing_is_padding(seed, batch_size, share):
    """Sentence lengths as in Korean STS: log-normal, 16 tokens on average, a long tail."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(2.68, 0.46, 2048)), 4, 110).astype(int)
    assert fill_share(lengths, batch_size) >= share


def test_almost_nothing_is_padding_on_korsts(shared, sample):
    lines = shared("data/korsts-dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts = [text for line in lines for text in line.split("\t")[5:7]]
    lengths = np.array(sample.count_tokens(texts))
    padded = sum(len(part) * part.max() for part in np.split(lengths, range(32, len(lengths), 32)))
    assert lengths.sum() / padded < 0.6  # what the same batches are worth as rectangles
    assert fill_share(lengths, 32) >= 0.95
    computed = sum(
        plan.num_tokens
        for indices in split_batches(lengths, CPU_BATCH_TOKENS)
        for plan in plan_rows(lengths[indices])
    )
    assert lengths.sum() / computed >= 0.99


def fill_share(lengths, batch_size):
    computed = sum(
        plan.num_tokens
        for begin in range(0, len(lengths), batch_size)
        for plan in plan_rows(lengths[begin : begin + batch_size])
    )
    return lengths.sum() / computed


def check_plans(plans: list[RowPlan], lengths: list[int]) -> None:
    seen = sorted(int(i) for plan in plans for i in plan.indices)
    assert seen == list(range(len(lengths)))
    for plan in plans:
        taken = np.zeros((plan.num_rows, plan.width), int)
        slots: dict[int, list[tuple[int, int]]] = {}
        for i, row, offset, slot in zip(
            plan.indices, plan.row, plan.offset, plan.slot, strict=True
        ):
            assert 0 <= row < plan.num_rows
            assert offset >= 0
            assert offset + lengths[i] <= plan.width
            taken[row, offset : offset + lengths[i]] += 1
            slots.setdefault(int(row), []).append((int(slot), int(offset)))
        assert taken.max() == 1
        for places in slots.values():
            places.sort()
            assert [slot for slot, _ in places] == list(range(len(places)))
            offsets = [offset for _, offset in places]
            assert offsets == sorted(offsets)
        assert plan.num_slots == max(len(places) for places in slots.values())
        assert plan.num_tokens == taken.size
