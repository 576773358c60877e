"""The canary: it comes back as it was written, passes what is right and fails what is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hostile import small_bundle
from kosine.bundle import Bundle
from kosine.canary import (
    AUTO_TEXTS,
    GATES,
    Canary,
    Comparison,
    Gate,
    calibrated_ranges,
    check_canary,
    compare,
    replay,
)
from kosine.errors import ParityError
from kosine.packed import Pooled

EXACT = Comparison(4, 1.0, 1.0, 0.0, 0.0, 0)


class Shifted:
    """The true backend, its vectors changed by `change`."""

    def __init__(self, backend, change):
        self.backend, self.change = backend, change
        self.dim, self.name, self.dtype = backend.dim, backend.name, backend.dtype

    def run(self, batch):
        pooled = self.backend.run(batch)
        return Pooled(self.change(pooled.vectors), pooled.norms)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_round_trip(sample_bundle):
    bundle = Bundle(sample_bundle)
    canary = Canary.read(bundle)
    assert len(canary.texts) == len(canary.batch) == len(canary.vectors) == 64
    assert canary.vectors.shape == (64, bundle.manifest.dim)
    assert len(set(canary.texts)) == 64
    tensors = bundle.tensors("canary.safetensors")
    for name, value in canary.tensors().items():
        np.testing.assert_array_equal(value, tensors[name])


def test_the_small_one(tmp_path):
    canary = Canary.read(Bundle(small_bundle(tmp_path / "b")))
    assert canary.texts == ("가", "나 다")
    assert canary.batch.starts.tolist() == [0, 3, 7]


def test_the_sample_passes_its_own(sample):
    found = check_canary(sample.bundle, sample.backend)
    assert found.texts == AUTO_TEXTS
    assert replay(Canary.read(sample.bundle), sample.backend).passes(GATES["float32"])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda v: v[::-1], id="neighbours swapped"),
        pytest.param(np.zeros_like, id="zero"),
        pytest.param(lambda v: np.full_like(v, np.nan), id="NaN"),
        pytest.param(
            lambda v: np.where(np.arange(v.size).reshape(v.shape) == 7, np.nan, v), id="one NaN"
        ),
        pytest.param(lambda v: np.full_like(v, np.inf), id="infinite"),
        pytest.param(lambda v: -v, id="negated"),
        pytest.param(lambda v: np.roll(v, 1, axis=1), id="a dimension shifted"),
        pytest.param(lambda v: v * np.float32(1.00001), id="not unit"),
        pytest.param(
            lambda v: unit(v + 2e-4 * np.sin(np.arange(v.size)).reshape(v.shape)),
            id="a little noise",
        ),
        pytest.param(lambda v: unit(v + 5e-5 * (np.arange(v.shape[1]) == 3)), id="one entry"),
    ],
)
def test_what_is_not_right_fails(sample, change):
    with pytest.raises(ParityError, match=r"fails the canary: min cosine .*kosine verify"):
        check_canary(sample.bundle, Shifted(sample.backend, change))


def test_noise_below_the_gate_passes(sample):
    noise = lambda v: unit(v + 1e-6 * np.sin(np.arange(v.size)).reshape(v.shape))  # noqa: E731
    check_canary(sample.bundle, Shifted(sample.backend, noise))


def test_comparison_by_hand():
    a = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    b = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    found = compare(a, b)
    assert found.texts == 3
    assert found.min_cosine == pytest.approx(2**-0.5)
    assert found.mean_cosine == pytest.approx((2 + 2**-0.5) / 3)
    assert found.max_abs_error == 1.0
    assert found.max_norm_error == 1.0
    assert found.worst == 1


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_row_that_is_missing_on_one_side_is_not_equal(bad):
    a = np.array([[1.0, 0.0], [bad, bad]])
    b = np.array([[1.0, 0.0], [0.0, 1.0]])
    for left, right in ((a, b), (b, a)):
        found = compare(left, right)
        assert found.min_cosine == -1
        assert found.worst == 1
        assert not found.passes(Gate(0.5, None))


@pytest.mark.parametrize(
    ("field", "value", "passes"),
    [
        ("min_cosine", 0.999999, True),
        ("min_cosine", 0.9999989, False),
        ("min_cosine", float("nan"), False),
        ("max_abs_error", 2e-5, True),
        ("max_abs_error", 2.1e-5, False),
        ("max_abs_error", float("nan"), False),
        ("max_norm_error", 1e-6, True),
        ("max_norm_error", 1.1e-6, False),
        ("max_norm_error", float("nan"), False),
    ],
)
def test_the_float32_gate(field, value, passes):
    assert dataclasses.replace(EXACT, **{field: value}).passes(GATES["float32"]) == passes


def test_gates_are_what_is_promised():
    assert GATES["float32"] == Gate(0.999999, 2e-5)
    assert GATES["float16"] == Gate(0.9998, None)


def test_calibrated_ranges_hold_what_they_were_made_of():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 6)).astype(np.float32)
    vectors[:, 5] = 0
    ranges = calibrated_ranges(vectors)
    rows = unit(vectors)
    low, high = np.array(ranges["min"]), np.array(ranges["max"])
    assert (low < high).all()
    assert (rows.min(axis=0) > low).all()
    assert (rows.max(axis=0) < high).all()
    width = rows.max(axis=0) - rows.min(axis=0)
    np.testing.assert_allclose((high - low)[:5], 1.2 * width[:5], rtol=1e-5)
    assert calibrated_ranges(3 * vectors)["max"] == pytest.approx(ranges["max"])
