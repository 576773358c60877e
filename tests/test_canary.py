"""The canary: it comes back as it was written, passes what is right and fails what is not."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from hostile import small_bundle
from kosine.bundle import Bundle
from kosine.bundle.canary import (
    AUTO_TEXTS,
    GATES,
    MAX_NORM_ERROR,
    MIN_CENTRED_TEXTS,
    Canary,
    Centred,
    Comparison,
    Gate,
    check_canary,
    compare,
    mean_vector,
    replay,
)
from kosine.bundle.tensorfile import TensorFile, write_tensors
from kosine.errors import IntegrityError, ParityError
from kosine.packed import Pooled
from rehash import change_tensor, rehash

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
    assert GATES["w8a16"] == Gate(0.998, None, 0.999, 0.99, 0.998)
    assert GATES["int8"] == Gate(0.995, None, 0.998, 0.97, 0.997)


# Centred cosines


def around_a_common_part(count=40, dim=24, seed=0):
    """(n, dim) unit rows that share most of their direction, as E5's do."""
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return unit(rows + 10 * np.ones(dim))


def test_centred_cosines_by_hand():
    reference = around_a_common_part()
    mean = mean_vector(reference)
    np.testing.assert_allclose(mean, reference.astype(np.float64).mean(axis=0), rtol=1e-6)
    vectors = unit(reference + 0.02 * around_a_common_part(seed=1)[:, ::-1] ** 3)
    found = compare(vectors, reference, mean)
    left, right = vectors.astype(float) - mean, reference.astype(float) - mean
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = (left * right).sum(axis=1) / lengths
    assert found.centred.texts == 40
    assert found.centred.min_cosine == pytest.approx(cosines.min(), abs=1e-12)
    assert found.centred.mean_cosine == pytest.approx(cosines.mean(), abs=1e-12)
    # Everything else is as without a mean.
    assert dataclasses.replace(found, centred=None) == compare(vectors, reference)


def test_the_plain_cosine_flatters_and_the_centred_one_does_not():
    reference = around_a_common_part()
    found = compare(reference[::-1], reference, mean_vector(reference))
    assert found.mean_cosine > 0.97  # every vector is another text's
    assert found.centred.mean_cosine < 0.3


def test_equal_vectors_are_equal_without_their_mean():
    reference = around_a_common_part()
    found = compare(reference, reference, mean_vector(reference)).centred
    assert found == Centred(40, pytest.approx(1), pytest.approx(1))


def test_a_row_that_is_nearly_the_mean_is_left_out():
    reference = around_a_common_part()
    mean = mean_vector(reference)
    near = np.float32(0.04) * np.eye(24, dtype=np.float32)[:1]
    reference = np.concatenate([reference, mean + near])
    vectors = reference.copy()
    vectors[-1] = mean - near[0]
    assert compare(vectors, reference, mean).centred.texts == 40
    assert compare(vectors, reference, mean).centred.min_cosine == pytest.approx(1)
    # A vector that fell onto the mean by mistake is not: that is what must show.
    vectors[0] = mean
    assert compare(vectors, reference, mean).centred.texts == 40
    assert compare(vectors, reference, mean).centred.min_cosine == -1


@pytest.mark.parametrize("count", [1, 31, 32, 33])
def test_under_32_distinct_rows_it_is_not_measured(count):
    mean = mean_vector(around_a_common_part())
    rows = around_a_common_part(count)
    repeated = np.concatenate([rows] * 40)
    measured = count >= MIN_CENTRED_TEXTS
    assert (mean_vector(rows) is not None) == measured
    assert (mean_vector(repeated) is not None) == measured
    assert (compare(rows, rows, mean).centred is not None) == measured
    assert (compare(repeated, repeated, mean).centred is not None) == measured
    assert compare(rows, rows, mean).centred_text() == (
        "1.00000000" if measured else "not measured"
    )


def test_all_rows_near_the_mean_are_too_few():
    reference = unit(np.ones((40, 24)) + 1e-3 * around_a_common_part())
    assert compare(reference, reference, mean_vector(reference)).centred is None


@pytest.mark.parametrize(
    ("centred", "passes"),
    [
        (Centred(64, 0.99, 0.995), True),
        (Centred(64, 0.9899, 0.995), False),
        (Centred(64, 0.99, 0.9949), False),
        (Centred(64, float("nan"), 0.995), False),
        (Centred(64, 0.99, float("nan")), False),
        (None, True),
    ],
)
def test_a_gate_of_centred_cosines(centred, passes):
    gate = Gate(0.99, None, centred_min_cosine=0.99, centred_mean_cosine=0.995)
    found = dataclasses.replace(EXACT, centred=centred)
    assert found.passes(gate) == passes
    assert str(gate) == "min cosine 0.99, centred min 0.99, centred mean 0.995"
    assert gate.to_json()["centred_min_cosine"] == 0.99


def test_float_dtypes_are_not_gated_by_it():
    """Taking the mean off magnifies their rounding by 1 / |row - mean|^2."""
    far = dataclasses.replace(EXACT, centred=Centred(64, -1.0, -1.0))
    assert set(GATES) == {"float32", "bfloat16", "float16", "w8a16", "int8"}
    for dtype, gate in GATES.items():
        assert far.passes(gate) == (dtype not in ("w8a16", "int8"))
        assert ("centred" in str(gate)) == (dtype in ("w8a16", "int8"))
        assert gate.to_json()["max_norm_error"] == MAX_NORM_ERROR


def test_the_mean_is_stored_with_the_canary(sample):
    canary = Canary.read(sample.bundle)
    np.testing.assert_array_equal(canary.mean, mean_vector(canary.vectors))
    np.testing.assert_array_equal(sample.bundle.tensors("canary.safetensors")["mean"], canary.mean)
    found = replay(canary, sample.backend)
    assert found.centred.texts >= MIN_CENTRED_TEXTS
    assert found.centred.min_cosine >= 0.999999
    assert check_canary(sample.bundle, sample.backend).centred is None  # sixteen texts


def test_a_canary_without_a_mean_reads(sample_bundle, tmp_path):
    path = tmp_path / "older.kosine"
    shutil.copytree(sample_bundle, path)
    tensors = TensorFile(path / "canary.safetensors").tensors()
    kept = {k: np.array(v) for k, v in tensors.items() if k != "mean" and k[0] != "_"}
    write_tensors(path / "canary.safetensors", kept)
    rehash(path)
    older, newer = Canary.read(Bundle(path)), Canary.read(Bundle(sample_bundle))
    np.testing.assert_array_equal(older.mean, newer.mean)
    assert Canary.read(Bundle(small_bundle(tmp_path / "b"))).mean is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda mean: mean[:-1], id="short"),
        pytest.param(lambda mean: mean[None], id="two axes"),
        pytest.param(lambda mean: mean.astype(np.float64), id="float64"),
        pytest.param(lambda mean: mean * np.float32(np.nan), id="NaN"),
        pytest.param(lambda mean: mean + np.float32(np.inf), id="infinite"),
    ],
)
def test_a_damaged_mean_is_a_damaged_canary(sample_bundle, tmp_path, change):
    path = tmp_path / "b.kosine"
    shutil.copytree(sample_bundle, path)
    change_tensor(path, "mean", change, file="canary.safetensors")
    with pytest.raises(IntegrityError, match="is damaged"):
        Canary.read(Bundle(path))
