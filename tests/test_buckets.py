"""Fixed shapes: every sentence in one piece, every piece within its profile, few shapes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosine.backends.onnx.cuda import MAX_RUN_TOKENS, gpu_profiles
from kosine.backends.rows.buckets import fill_piece, input_shape, pieces, row_counts, split_rows
from kosine.backends.rows.fill import Rows
from kosine.backends.rows.plan import plan_rows
from kosine.bundle.plans import PlanProfile
from kosine.errors import BackendError
from kosine.packed import Packed
from kosine.positions import position_ids
from kosine.spec import Positions

PAD = 1
PROFILES = (
    PlanProfile(16, 1, 1, 1, 1),
    PlanProfile(16, 1, 2, 5, 3),
    PlanProfile(48, 2, 2, 4, 4),
)
LENGTHS = st.lists(st.integers(1, 48), min_size=1, max_size=60)


def test_row_counts_grow_by_at_most_a_half():
    assert row_counts(1, 16) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert row_counts(1, 5) == [1, 2, 3, 4, 5]
    assert row_counts(3, 40) == [3, 4, 6, 8, 12, 16, 24, 32, 40]
    assert row_counts(1, 1) == [1]
    counts = row_counts(1, 512)
    assert all(b <= 2 * a and (a == 1 or b <= 1.5 * a) for a, b in pairwise(counts))


@settings(deadline=None)
@given(LENGTHS, st.booleans())
def test_every_sentence_is_in_one_piece_that_its_profile_takes(lengths, tight):
    found = pieces(np.array(lengths, np.int32), PROFILES, tight=tight)
    seen = np.concatenate([piece.plan.indices for piece in found])
    assert sorted(seen.tolist()) == list(range(len(lengths)))
    for piece in found:
        plan, shape = piece.plan, piece.shape
        profile = PROFILES[shape.profile]
        assert shape.width == plan.width == profile.width
        assert plan.num_rows <= shape.rows
        assert shape.rows in row_counts(profile.min_rows, profile.max_rows)
        assert plan.num_slots <= shape.slots == profile.max_slots
        assert len(plan.indices) <= shape.sentences <= shape.rows * shape.slots
        if not tight:
            assert shape.sentences == shape.rows * shape.slots


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 6), st.integers(1, 4))
def test_a_split_keeps_sentences_whole_and_apart(lengths, max_rows, max_slots):
    (plan,) = plan_rows(lengths, widths=(48,), fixed_widths=True)
    parts = split_rows(plan, max_rows, max_slots)
    sizes = dict(enumerate(lengths))
    assert sorted(np.concatenate([p.indices for p in parts]).tolist()) == list(range(len(lengths)))
    for part in parts:
        assert part.num_rows <= max_rows
        assert part.num_slots <= max_slots
        assert sorted(set(part.row.tolist())) == list(range(part.num_rows))
        taken = np.zeros((part.num_rows, part.width), int)
        for i, row, offset, slot in zip(
            part.indices, part.row, part.offset, part.slot, strict=True
        ):
            assert offset + sizes[i] <= part.width
            taken[row, offset : offset + sizes[i]] += 1
            same = part.slot[part.row == row]
            assert sorted(same.tolist()) == list(range(len(same)))
            assert slot < max_slots
        assert taken.max() == 1


@settings(deadline=None)
@given(LENGTHS, st.booleans(), st.booleans())
def test_a_filled_piece_has_its_shape_and_its_sentences_first(lengths, tight, prompts):
    sentences = [np.arange(100 * i + 2, 100 * i + 2 + n) for i, n in enumerate(lengths)]
    skip = np.ones(len(lengths), np.int32) if prompts else None
    batch = Packed.of(sentences, skip)
    positions = position_ids(batch.ids, batch.starts, Positions("absolute", 64, PAD))
    for piece in pieces(batch.lengths, PROFILES, tight=tight):
        rows, shape = fill_piece(batch, positions, piece, PAD), piece.shape
        for name in Rows.__slots__:
            values = getattr(rows, name)
            assert values.dtype == np.int64
            assert values.shape == input_shape(name, shape)
        flat = rows.input_ids.reshape(-1)
        for at, i in enumerate(piece.plan.indices):
            row, slot = divmod(int(rows.sentence_index[at]), shape.slots)
            own = rows.segment_ids[row] == slot + 1
            np.testing.assert_array_equal(rows.input_ids[row][own], sentences[i])
            left_out = 1 if prompts and lengths[i] > 1 else 0
            assert flat[rows.token_index[at]] == sentences[i][left_out]
        filler = rows.segment_ids == 0
        assert (rows.input_ids[filler] == PAD).all()
        assert (rows.pool_ids[filler] == 0).all()
        assert (~filler).sum() == sum(lengths[i] for i in piece.plan.indices)


def test_one_text_alone_takes_the_profile_of_one_row():
    (alone,) = pieces(np.array([9], np.int32), PROFILES)
    assert (alone.shape.profile, alone.shape.rows, alone.shape.sentences) == (0, 1, 1)
    (two,) = pieces(np.array([9, 5], np.int32), PROFILES)
    assert (two.shape.profile, two.shape.rows, two.shape.slots) == (1, 1, 3)


def test_a_text_wider_than_every_profile_is_a_typed_error():
    with pytest.raises(BackendError, match="a text has 49 tokens; the widest profile holds 48"):
        pieces(np.array([3, 49], np.int32), PROFILES)


@pytest.mark.parametrize("max_tokens", [8, 32, 100, 128, 512, 514])
def test_profiles_of_a_gpu_reach_the_longest_text(max_tokens):
    profiles = gpu_profiles(max_tokens)
    widths = [profile.width for profile in profiles]
    assert widths == sorted(set(widths))
    assert max_tokens <= widths[-1] < max_tokens + 8
    for profile in profiles:
        assert profile.width * profile.max_rows <= MAX_RUN_TOKENS
        assert 1 <= profile.max_slots <= profile.width


def test_mixed_traffic_has_few_shapes():
    random = np.random.default_rng(0)
    shapes = set()
    for _ in range(300):
        lengths = np.minimum(random.geometric(0.05, random.integers(1, 200)) + 2, 128)
        shapes |= {p.shape for p in pieces(lengths.astype(np.int32), gpu_profiles(128), tight=True)}
    print(f"{len(shapes)} shapes in 300 batches")
    assert len(shapes) <= 64
