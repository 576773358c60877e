"""The batcher under mixed faults for minutes, in real time; `make soak` does it for hours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kosine.testing import FakeBackend
from kosine_bench.reliability import soak

SOAK_SECONDS = float(os.environ.get("KOSINE_SOAK_SECONDS", "180"))

linux_only = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory and descriptors are read from /proc"
)


@pytest.mark.slow
@linux_only
def test_soak():
    """Mixed faults for `KOSINE_SOAK_SECONDS` (180): nothing unexplained, everything flat."""
    figures = soak.soak(SOAK_SECONDS)
    print(f"soak: {figures}")
    assert figures["unexplained"] == 0, figures["first_unexplained"]
    assert soak.flat_and_explained(figures)


@linux_only
def test_the_soak_notices_a_wrong_vector():
    class Wrong(FakeBackend):
        def vectors(self, batch):
            rows = super().vectors(batch)
            return rows[::-1].copy() if len(rows) > 2 else rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soak, "lean_backend", lambda **options: Wrong(**{**options, "faults": None}))
        figures = soak.soak(1.0)
    assert figures["unexplained"] > 0
