"""safetensors files: what we write others read, what others write we read, damage is refused."""

from __future__ import annotations

import json
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hostile import floats, safetensors
from kosine.bundle.tensorfile import ALIGNMENT, DTYPES, MAX_HEADER_BYTES, TensorFile, write_tensors
from kosine.errors import IntegrityError

TENSORS = {
    "f64": np.arange(3, dtype=np.float64),
    "f32": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "f16": np.array([[0.5, -1.0], [65504.0, 6e-8]], np.float16),
    "i64": np.array([2**62, -1], np.int64),
    "i32": np.array([[7]], np.int32),
    "i8": np.array([-128, 127, 0], np.int8),
    "u8": np.frombuffer(b"kosine", np.uint8),
    "scalar": np.array(1.5, np.float32),
    "empty": np.empty((0, 4), np.float32),
    "한글 \\ 이름": np.ones(1, np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_array_equal(a, b)


def test_round_trip_and_64_byte_boundaries(tmp_path):
    path = tmp_path / "t.safetensors"
    entries = write_tensors(path, TENSORS, {"made by": "a test"})
    assert list(entries) == list(TENSORS)
    file = TensorFile(path)
    for name, value in TENSORS.items():
        same(file[name], value)
        assert entries[name] == file.entries[name]
        assert entries[name].offset % ALIGNMENT == 0
        raw = path.read_bytes()[entries[name].offset :][: entries[name].nbytes]
        assert raw == value.tobytes()
    assert set(file.tensors()) >= set(TENSORS)


def test_other_readers_and_writers_agree(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_tensors(ours, TENSORS, {"a": "b"})
    read = load_file(ours)
    for name, value in TENSORS.items():
        same(read[name], value)
    flat = {name: np.ascontiguousarray(value) for name, value in TENSORS.items() if value.ndim}
    save_file(flat, theirs)
    file = TensorFile(theirs)
    assert set(file.entries) == set(flat)
    for name, value in flat.items():
        same(file[name], value)


def test_views_are_read_only_and_not_copies(tmp_path):
    path = tmp_path / "t"
    write_tensors(path, {"a": np.ones(4, np.float32)})
    view = TensorFile(path)["a"]
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2


def test_a_name_that_is_not_there(tmp_path):
    write_tensors(tmp_path / "t", {"a": np.ones(4, np.float32)})
    with pytest.raises(IntegrityError, match="no tensor 'b'"):
        TensorFile(tmp_path / "t")["b"]


@pytest.mark.parametrize("name", ["__metadata__", "_pad.0"])
def test_reserved_names_are_not_written(tmp_path, name):
    with pytest.raises(ValueError, match="reserved"):
        write_tensors(tmp_path / "t", {name: np.ones(1, np.float32)})


@pytest.mark.parametrize("dtype", [np.complex64, np.uint64, ">f4", object])
def test_unknown_dtypes_are_not_written(tmp_path, dtype):
    with pytest.raises(TypeError, match="dtype"):
        write_tensors(tmp_path / "t", {"a": np.ones(1, dtype)})


EIGHT = bytes(8)
DAMAGED = {
    "empty file": b"",
    "7 bytes": bytes(7),
    "no header": struct.pack("<Q", 0),
    "header length 2^64-1": safetensors(b"{}", length=2**64 - 1),
    "header length one over": safetensors(b"{}", length=3),
    "header length over the cap": safetensors(b" " * 64, length=MAX_HEADER_BYTES + 1),
    "not JSON": safetensors(b"{"),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "UTF-16": safetensors('{"__metadata__": {}}'.encode("utf-16")),
    "a list": safetensors(b"[]"),
    "a number": safetensors(b"1"),
    "null": safetensors(b"null"),
    "deep": safetensors(b'{"a":' * 100_000),
    "deep list": safetensors(b"[" * 200_000),
    "key twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "dtype twice": safetensors(
        b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "trailing bytes": safetensors({"a": floats(0, 8)}, EIGHT + b"x"),
    "truncated data": safetensors({"a": floats(0, 8)}, EIGHT[:7]),
    "no data": safetensors({"a": floats(0, 8)}),
    "hole before": safetensors({"a": floats(4, 8)}, EIGHT),
    "hole between": safetensors({"a": floats(0, 4), "b": floats(8, 12)}, bytes(12)),
    "overlap": safetensors({"a": floats(0, 8), "b": floats(4, 8)}, EIGHT),
    "same bytes twice": safetensors({"a": floats(0, 8), "b": floats(0, 8)}, EIGHT),
    "negative begin": safetensors({"a": floats(-4, 4)}, EIGHT),
    "begin after end": safetensors({"a": {**floats(0, 0), "data_offsets": [8, 0]}}, EIGHT),
    "offsets over 2^64": safetensors({"a": floats(0, 2**70)}, EIGHT),
    "three offsets": safetensors({"a": {**floats(0, 8), "data_offsets": [0, 4, 8]}}, EIGHT),
    "no offsets": safetensors({"a": {"dtype": "F32", "shape": [2]}}, EIGHT),
    "float offsets": safetensors({"a": {**floats(0, 8), "data_offsets": [0.0, 8.0]}}, EIGHT),
    "text offsets": safetensors({"a": {**floats(0, 8), "data_offsets": "08"}}, EIGHT),
    "boolean offsets": safetensors({"a": {**floats(0, 4), "data_offsets": [False, 4]}}, bytes(4)),
    "NaN offset": safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[NaN,8]}}', EIGHT),
    "infinite offset": safetensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,1e999]}}', EIGHT
    ),
    "unknown dtype": safetensors({"a": {**floats(0, 8), "dtype": "F128"}}, EIGHT),
    "dtype is a list": safetensors({"a": {**floats(0, 8), "dtype": ["F32"]}}, EIGHT),
    "dtype is null": safetensors({"a": {**floats(0, 8), "dtype": None}}, EIGHT),
    "no dtype": safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT),
    "entry is a list": safetensors({"a": [1, 2]}, EIGHT),
    "entry is null": safetensors({"a": None}, EIGHT),
    "shape too large": safetensors({"a": floats(0, 8, [3])}, EIGHT),
    "shape too small": safetensors({"a": floats(0, 8, [1])}, EIGHT),
    "shape overflows to the right size": safetensors({"a": floats(0, 8, [2**32, 2**32, 2])}, EIGHT),
    "negative shape": safetensors({"a": floats(0, 8, [-1, -2])}, EIGHT),
    "shape with a float": safetensors({"a": floats(0, 8, [2.0])}, EIGHT),
    "shape is a number": safetensors({"a": {**floats(0, 8), "shape": 2}}, EIGHT),
    "shape is null": safetensors({"a": {**floats(0, 8), "shape": None}}, EIGHT),
    "65 dimensions": safetensors({"a": floats(0, 4, [1] * 65)}, bytes(4)),
    "a million dimensions": safetensors({"a": floats(0, 4, [1] * 1_000_000)}, bytes(4)),
    "a product of many": safetensors({"a": floats(0, 8, [250_000] * 200_000)}, EIGHT),
    "an int of 5000 digits": safetensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,' + b"9" * 5000 + b"]}}", EIGHT
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_quickly(tmp_path, name):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(DAMAGED[name])
    began = time.process_time()
    with pytest.raises(IntegrityError) as caught:
        TensorFile(path)
    assert time.process_time() - began < 1
    assert "weights.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_largest_true_header_is_still_read(tmp_path):
    text = json.dumps({"__metadata__": {"k": "v" * (MAX_HEADER_BYTES - 100)}}).encode()
    (tmp_path / "t").write_bytes(safetensors(text))
    assert not TensorFile(tmp_path / "t").entries


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "good"
    write_tensors(path, {"a": TENSORS["f32"], "b": TENSORS["i8"], "c": TENSORS["empty"]})
    return path


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_mutations_are_read_or_refused(good, data):
    raw = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path = good.with_name("mutated")
    path.write_bytes(raw)
    try:
        file = TensorFile(path)
    except IntegrityError:
        return
    for name, value in file.tensors().items():
        place = file.entries[name]
        assert 8 <= place.offset <= place.offset + place.nbytes <= len(raw)
        assert value.tobytes() == bytes(raw[place.offset : place.offset + place.nbytes])
        assert value.dtype in DTYPES.values()
