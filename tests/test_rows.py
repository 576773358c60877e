"""Packed rows: every token where the plan says, and nothing else anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosine.backends.rows.fill import fill_rows
from kosine.backends.rows.plan import plan_rows
from kosine.packed import Packed
from kosine.positions import position_ids
from kosine.spec import Positions

PAD = 1
SENTENCES = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=40), min_size=1, max_size=20)


def filled(sentences, skip=None, rule="roberta", **options):
    batch = Packed.of(sentences, skip)
    positions = position_ids(batch.ids, batch.starts, Positions(rule, 64, PAD))
    for plan in plan_rows(batch.lengths, **options):
        yield plan, fill_rows(batch, positions, plan, PAD), positions, batch


@settings(deadline=None)
@given(SENTENCES, st.booleans(), st.data())
def test_every_token_is_exactly_where_the_plan_says(sentences, fixed, data):
    skip = None
    if data.draw(st.booleans()):
        skips = st.lists(st.integers(0, 45), min_size=len(sentences), max_size=len(sentences))
        skip = np.array(data.draw(skips), np.int32)
    options = {"widths": (16, 48), "fixed_widths": True} if fixed else {}
    for plan, rows, positions, batch in filled(sentences, skip, **options):
        shape = (plan.num_rows, plan.width)
        ids = np.full(shape, PAD)
        places = np.zeros(shape, int)
        segments = np.zeros(shape, int)
        pooled = np.zeros(shape, int)
        for at, i in enumerate(plan.indices):
            own = slice(plan.offset[at], plan.offset[at] + len(sentences[i]))
            row, slot = plan.row[at], plan.slot[at]
            ids[row, own] = sentences[i]
            places[row, own] = positions[batch.starts[i] : batch.starts[i + 1]]
            segments[row, own] = slot + 1
            left_out = 0 if skip is None else int(skip[i])
            pooled[row, plan.offset[at] + left_out : own.stop] = slot + 1
            assert rows.sentence_index[at] == row * plan.num_slots + slot
            head = left_out if left_out < len(sentences[i]) else 0
            assert rows.token_index[at] == row * plan.width + plan.offset[at] + head
        for name, expected in (
            ("input_ids", ids),
            ("position_ids", places),
            ("segment_ids", segments),
            ("pool_ids", pooled),
        ):
            found = getattr(rows, name)
            assert found.dtype == np.int64
            np.testing.assert_array_equal(found, expected, err_msg=name)
        assert rows.slots.tolist() == list(range(1, plan.num_slots + 1))
        assert len(set(rows.sentence_index.tolist())) == len(plan.indices)


def test_filler_is_segment_zero_pad_and_position_zero():
    ((plan, rows, _, _),) = filled([[7, 8, 9]], widths=(8,), fixed_widths=True)
    assert plan.width == 8
    assert rows.input_ids.tolist() == [[7, 8, 9, *[PAD] * 5]]
    assert rows.position_ids.tolist() == [[2, 3, 4, 0, 0, 0, 0, 0]]
    assert rows.segment_ids.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert rows.pool_ids.tolist() == rows.segment_ids.tolist()


@pytest.mark.parametrize(
    ("skip", "pool", "token"),
    [
        (0, [[1, 1, 1, 1]], 0),
        (2, [[0, 0, 1, 1]], 2),
        (3, [[0, 0, 0, 1]], 3),
        (4, [[0, 0, 0, 0]], 0),  # nothing left to pool: cls falls back to the first token
        (9, [[0, 0, 0, 0]], 0),
    ],
)
def test_pooling_leaves_the_prompt_out(skip, pool, token):
    ((_, rows, _, _),) = filled([[5, 6, 7, 8]], np.array([skip], np.int32))
    assert rows.pool_ids.tolist() == pool
    assert rows.segment_ids.tolist() == [[1, 1, 1, 1]]
    assert rows.token_index.tolist() == [token]
