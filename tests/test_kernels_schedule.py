"""How a batch is dealt out to threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native_machine import (
    AMX_INT8_TABLES,
    AMX_TABLES,
    AMX_W8A16_TABLES,
    each_table,
    kernels,
    needs_native,
    tables,
)


@needs_native
class TestSchedule:
    def schedule(self, lengths, threads, dtype="float32", isa="avx2"):
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return kernels().schedule(dtype, isa, starts, threads)

    @pytest.mark.parametrize(
        ("lengths", "threads", "expected"),
        [
            ([16], 1, (False, [[0]])),
            ([16], 2, (True, [[0]])),
            ([40, 40], 2, (True, [[0, 1]])),  # few rows: share the weights
            ([70, 70], 2, (False, [[0], [1]])),
            ([30, 50, 40, 40], 2, (False, [[1, 0], [2, 3]])),  # longest first
            ([66, 74, 70, 70], 2, (False, [[1], [2], [3], [0]])),  # more than the cache holds
            ([200, 20, 20], 2, (True, [[0, 1, 2]])),  # no even cut
            # Uneven chunks, and both threads come out even.
            ([120, 90, 90, 120, 100, 100], 2, (False, [[0], [3], [4], [5], [1], [2]])),
            ([200, 200, 200], 2, (True, [[0], [1], [2]])),  # one would wait for the other
            ([512, 512], 1, (False, [[0], [1], [], []])),
        ],
    )
    def test_table(self, lengths, threads, expected):
        together, chunks = self.schedule(lengths, threads)
        assert (together, chunks) == (expected[0], [chunk for chunk in expected[1] if chunk])

    @tables((*AMX_TABLES, *AMX_W8A16_TABLES, *AMX_INT8_TABLES))
    @pytest.mark.parametrize(
        ("lengths", "threads", "expected"),
        [
            ([70, 70], 2, (True, [[0, 1]])),  # faster arithmetic waits longer for the weights
            ([130, 130], 2, (False, [[0], [1]])),
            ([512, 512], 1, (False, [[0], [1]])),
        ],
    )
    def test_table_with_tiles(self, lengths, threads, expected, dtype, isa):
        assert self.schedule(lengths, threads, dtype, isa) == expected

    @each_table()
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(1, 16))
    def test_each_sentence_is_in_one_chunk_and_chunks_are_bounded(
        self, dtype, isa, lengths, threads
    ):
        together, chunks = self.schedule(lengths, threads, dtype, isa)
        assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
        assert all(chunks)
        assert threads > 1 or not together
        rows = 512 if isa.startswith("amx") else 126
        limit = (2 * rows if together else rows) + 512
        assert all(sum(lengths[i] for i in chunk) <= limit for chunk in chunks)
