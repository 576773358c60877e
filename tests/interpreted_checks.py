"""kosine's own GPU kernels without a GPU. `test_cuda.py` runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

import numpy as np
import pytest

from cuda_machine import FEW, KINDS, MORE, errors
from interpreted_gpu import stand_in


@pytest.mark.parametrize(
    ("kind", "tile", "lengths"),
    [
        *((kind, 16, FEW) for kind in KINDS),
        *((kind, 16, MORE) for kind in ("bert", "gemma")),
        *((kind, tile, MORE) for kind in ("modern", "buckets") for tile in (64, 128)),
    ],
)
def test_vectors_are_the_references(monkeypatch, kind, tile, lengths):
    gpu = stand_in(monkeypatch)(0)
    difference, norms = errors(gpu, KINDS[kind](), lengths, tile, "float16")
    assert np.median(difference) < 2e-3, difference
    assert difference.max() < 5e-3
    assert norms.max() < 5e-3
