"""The native engine as a whole: against numpy, and one batch against another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosine.spec import PoolingMode
from kosine_kernels import engine
from native_machine import (
    NAN_ORDERS,
    Encoder,
    each_table,
    needs_native,
    overflowing,
)

LENGTHS = [5, 1, 17, 33, 64, 2, 16, 15, 48, 31]


def check(encoder: Encoder, lengths, dtype: str, isa: str, skip=None, **options) -> None:
    batch = encoder.batch(lengths)
    found, norms = encoder.engine(dtype, isa, **options).forward(*batch, skip)
    expected, expected_norms = encoder.reference(*batch, skip)
    assert found.shape == expected.shape
    empty = expected_norms == 0
    assert (norms[empty] == 0).all()
    assert (found[empty] == 0).all()
    a, b = found[~empty].astype(np.float64), expected[~empty].astype(np.float64)
    assert np.abs(np.linalg.norm(a, axis=1) - 1).max(initial=0) <= 1e-6
    cosines = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    if dtype == "float32":
        assert np.abs(found - expected).max() <= 2e-6
        assert cosines.min(initial=1) >= 1 - 1e-9
        np.testing.assert_allclose(norms, expected_norms, rtol=2e-6)
    else:
        assert cosines.min(initial=1) >= 0.9998
        np.testing.assert_allclose(norms, expected_norms, rtol=0.02)


@each_table()
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("guard", ["none", "after", "before"])
@pytest.mark.parametrize("pooling", [*get_args(PoolingMode), ("lasttoken", "max", "cls")])
def test_against_numpy(dtype, isa, threads, guard, pooling):
    encoder = Encoder(pooling=pooling)
    skip = np.array([0, 0, 3, 33, 70, 1, 15, 16, 2, 0], np.int32)
    check(encoder, LENGTHS, dtype, isa, threads=threads, guard=guard)
    check(encoder, LENGTHS, dtype, isa, skip, threads=threads, guard=guard)


@each_table()
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden": 16, "heads": 1},
        {"hidden": 48, "heads": 1, "inner": 37},
        {"hidden": 96, "heads": 2, "inner": 1},
        {"hidden": 112, "heads": 1, "inner": 31},
        {"hidden": 128, "heads": 1, "inner": 65},
        {"hidden": 240, "heads": 3, "inner": 1100},  # more than one slice, the last one ragged
        {"hidden": 64, "heads": 4, "inner": 2050, "types": 0},
        {"hidden": 64, "embedding": 32, "types": 1},
        {"hidden": 48, "heads": 3, "embedding": 80},
        {"hidden": 48, "heads": 5, "head_size": 32},  # heads wider than the rows, and narrower
        {"hidden": 112, "heads": 1, "head_size": 16},
        {"buckets": (3, 1, 0, 2, 5, 4, 2)},
        {"buckets": (1,), "heads": 2},
        {"modern": True, "layers": 3},
        {"modern": True, "layers": 3, "windows": (0, 1, 40), "hidden": 96, "heads": 2, "inner": 37},
        {"modern": True, "hidden": 240, "heads": 5, "inner": 1100},
    ],
    ids=lambda shape: "-".join(f"{key}{value}" for key, value in shape.items()),
)
@pytest.mark.parametrize("threads", [1, 2])
def test_shapes(dtype, isa, shape, threads):
    check(Encoder(**shape), LENGTHS, dtype, isa, threads=threads, guard="after")


@each_table()
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"heads": 3, "shared": 1, "head_size": 256, "causal": False, "windows": (5, 64)},
        {"heads": 6, "shared": 3, "head_size": 16, "windows": (0, 1), "divisor": 1.5},
        {"heads": 2, "shared": 2, "hidden": 48, "inner": 37, "pooling": "mean"},
        {"sandwich": True, "activation": "gelu_tanh", "shared": 1},
        {"sandwich": True, "inner": 1100, "hidden": 240, "causal": False, "windows": (9, None)},
        {"sandwich": True, "activation": "gelu", "hidden": 48, "pooling": ("cls", "lasttoken")},
    ],
    ids=lambda shape: "-".join(f"{key}{value}" for key, value in shape.items()),
)
@pytest.mark.parametrize("threads", [1, 2])
def test_decoders(dtype, isa, shape, threads):
    check(Encoder.decoder(**shape), LENGTHS, dtype, isa, threads=threads, guard="after")


@each_table()
@pytest.mark.parametrize("lengths", [LENGTHS, [40]], ids=["apart", "together"])
@pytest.mark.parametrize("shape", [{}, {"modern": True}, {"hidden": 48, "heads": 3}], ids=str)
def test_the_rows_that_pooling_reads(dtype, isa, lengths, shape):
    encoder = Encoder(pooling="cls", **shape)
    batch = encoder.batch(lengths)
    expected = np.empty((len(batch[0]), encoder.engine(dtype, isa).hidden), np.float32)
    encoder.reference(*batch, states=expected)
    plain = encoder.engine(dtype, isa, threads=2).forward(*batch)
    found = []
    for threads in (1, 3):
        states = np.full_like(expected, np.nan)
        made = encoder.engine(dtype, isa, threads=threads, guard="after")
        vectors, norms = made.forward(*batch, None, states)
        assert np.array_equal(vectors, plain[0])
        assert np.array_equal(norms, plain[1])
        found.append(states)
    assert np.array_equal(*found)
    a, b = found[0].astype(np.float64), expected.astype(np.float64)
    if dtype == "float32":
        assert np.abs(a - b).max() <= 2e-5
    cosines = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.min() >= 0.9995


@needs_native
def test_rows_of_another_shape_are_refused():
    encoder = Encoder()
    batch = encoder.batch([3, 4])
    for states in (np.empty((6, 64), np.float32), np.empty((7, 63), np.float32)):
        with pytest.raises(ValueError, match=r"states has \d+ elements; 448 are needed"):
            encoder.engine().forward(*batch, None, states)
    with pytest.raises(TypeError):
        encoder.engine().forward(*batch, None, np.empty((7, 64)))


@each_table()
def test_a_decoder_has_the_same_bits_with_any_threads_and_company(dtype, isa):
    for shape in ({}, {"sandwich": True, "shared": 1, "causal": False}):
        encoder = Encoder.decoder(**shape)
        ids, starts, positions = encoder.batch(LENGTHS)
        found = encoder.engine(dtype, isa, threads=1).forward(ids, starts, positions)[0]
        team = encoder.engine(dtype, isa, threads=3).forward(ids, starts, positions)[0]
        assert np.array_equal(found, team)
        own = slice(starts[3], starts[4])
        start = np.array([0, LENGTHS[3]], np.int32)
        alone = encoder.engine(dtype, isa).forward(ids[own], start, positions[own])[0]
        assert np.array_equal(alone[0], found[3])


@each_table()
@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "gelu", "sigmoid"])
def test_dense_layers(dtype, isa, activation):
    dense = (
        (40, activation, False, True),
        (40, "tanh", True, False),
        (7, activation, False, False),
    )
    encoder = Encoder(dense=dense)
    check(encoder, LENGTHS, dtype, isa, threads=2, guard="after")
    assert encoder.engine(dtype, isa).dim == 7


@each_table()
def test_lengths_around_windows_to_512(dtype, isa):
    encoder = Encoder(modern=True, positions=512, layers=2, windows=(64, None))
    check(encoder, [1, 63, 64, 65, 66, 128, 129, 130, 511, 512], dtype, isa, threads=2)


@needs_native
def test_a_sentence_longer_than_rotary_positions_is_refused():
    encoder = Encoder(modern=True, positions=40)
    ids, starts, positions = encoder.batch([3, 41])
    with pytest.raises(ValueError, match="sentence 1 has 41 tokens; at most 40"):
        encoder.engine().forward(ids, starts, positions)


@each_table()
def test_lengths_from_1_to_512(dtype, isa):
    encoder = Encoder(positions=512, layers=1)
    check(encoder, [511, 1, 512, 257, 130, 256], dtype, isa, threads=2)


@each_table()
@settings(max_examples=25, deadline=None)
@given(st.booleans(), st.data())
def test_a_sentence_has_the_same_bits_in_any_company(dtype, isa, modern, data):
    encoder = MODERN if modern else COMPANY
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=24))
    place = data.draw(st.integers(0, len(lengths) - 1))
    threads = data.draw(st.integers(1, 4))
    ids, starts, positions = encoder.batch(lengths)
    skip = np.asarray(data.draw(st.lists(st.integers(0, 5), min_size=24, max_size=24)), np.int32)
    skip = skip[: len(lengths)]
    together, single = (shared_engine(dtype, isa, n, encoder) for n in (threads, 1))
    whole, norms = together.forward(ids, starts, positions, skip)
    part = slice(starts[place], starts[place + 1])
    alone, norm = single.forward(
        ids[part],
        np.array([0, lengths[place]], np.int32),
        positions[part],
        skip[place : place + 1],
    )
    assert alone[0].tobytes() == whole[place].tobytes()
    assert norm[0].tobytes() == norms[place].tobytes()


# Wide enough for several slices of the feed-forward and more panels than threads.
COMPANY = Encoder(hidden=96, heads=2, inner=1300)
MODERN = Encoder(modern=True, hidden=96, heads=2, inner=1300, windows=(3, None))
_ENGINES: dict[tuple[str, str, int, int], engine.Engine] = {}


def shared_engine(dtype: str, isa: str, threads: int, encoder: Encoder = COMPANY) -> engine.Engine:
    key = (dtype, isa, threads, id(encoder))
    if key not in _ENGINES:
        _ENGINES[key] = encoder.engine(dtype, isa, threads=threads)
    return _ENGINES[key]


@each_table()
def test_a_thousand_needles(dtype, isa):
    # Big batches go another way than small ones: chunks of many sentences, a chunk a thread.
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 40, 1000)
    ids, starts, positions = COMPANY.batch(lengths)
    whole, _ = shared_engine(dtype, isa, 1).forward(ids, starts, positions)
    for threads in (2, 3):
        again, _ = shared_engine(dtype, isa, threads).forward(ids, starts, positions)
        assert np.array_equal(again.view(np.int32), whole.view(np.int32))
    order = rng.permutation(1000)
    for indices in np.split(order, np.cumsum(rng.integers(1, 65, 40))):
        if not len(indices):
            continue
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
        offsets = np.concatenate([[0], np.cumsum(lengths[indices])]).astype(np.int32)
        found, _ = shared_engine(dtype, isa, 2).forward(ids[rows], offsets, positions[rows])
        assert np.array_equal(found.view(np.int32), whole[indices].view(np.int32))


@needs_native
def test_other_arithmetic_has_other_bits():
    # The negative control of the two tests above: a comparison of bits does tell them apart.
    batch = COMPANY.batch([9, 30])
    found = [shared_engine("float32", "avx2", 1).forward(*batch)[0]]
    if "avx512" in engine.isa_levels():
        found.append(shared_engine("float32", "avx512", 1).forward(*batch)[0])
        assert found[0].tobytes() != found[1].tobytes()
    ids = batch[0].copy()
    ids[3] = (ids[3] + 1) % COMPANY.vocab
    other, _ = shared_engine("float32", "avx2", 1).forward(ids, *batch[1:])
    assert other[0].tobytes() != found[0][0].tobytes()
    assert other[1].tobytes() == found[0][1].tobytes()


@each_table()
def test_one_bad_row_stays_alone(dtype, isa):
    encoder = Encoder()
    encoder.tensors["embeddings.word.weight"][7] = np.nan
    ids, starts, positions = encoder.batch(LENGTHS)
    ids[ids == 7] = 8
    ids[starts[3] + 4] = 7
    vectors, norms = encoder.engine(dtype, isa, threads=2).forward(ids, starts, positions)
    assert np.isnan(vectors[3]).all()
    assert np.isnan(norms[3])
    assert np.isfinite(np.delete(vectors, 3, axis=0)).all()


@each_table()
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("activation", ["", "identity", "tanh", "relu", "gelu", "sigmoid"])
def test_a_nan_of_any_token_shows(dtype, isa, pooling, activation):
    dense = ((64, activation, False, True),) if activation else ()
    encoder = overflowing(pooling=pooling, dense=dense)
    built = encoder.engine(dtype, isa, threads=2)
    for sentence in NAN_ORDERS:
        ids = np.array(sentence, np.int32)
        batch = ids, np.array([0, len(ids)], np.int32), np.zeros(len(ids), np.int32)
        vectors, norms = built.forward(*batch)
        with np.errstate(all="ignore"):
            expected, _ = encoder.reference(*batch, dtype=np.float32)
        shows = sentence[0] == 0 if pooling == "cls" else 0 in sentence
        assert np.isnan(expected).all() == shows
        assert np.isnan(vectors).all() == np.isnan(norms).all() == shows
        assert np.isfinite(vectors).all() != shows


@needs_native
@each_table("bfloat16")
def test_what_all_keys_have_in_common_costs_no_digits(dtype, isa):
    """A bias of k moves no weight of a row: rounded with the keys, a large one would drown them."""
    encoder = Encoder(head_size=32)
    width = 4 * 32
    batch = encoder.batch(LENGTHS)
    plain = encoder.tensors["layers.0.attention.qkv.bias"]
    shifted = plain.copy()
    shifted[width : 2 * width] += 300 * np.sign(encoder.rng.standard_normal(width))
    without, _ = encoder.engine(dtype, isa).forward(*batch)
    encoder.tensors["layers.0.attention.qkv.bias"] = shifted.astype(np.float32)
    found, _ = encoder.engine(dtype, isa).forward(*batch)
    assert found.tobytes() == without.tobytes()
    shifted[width + 3] = np.nan
    encoder.tensors["layers.0.attention.qkv.bias"] = shifted.astype(np.float32)
    found, _ = encoder.engine(dtype, isa).forward(*batch)
    assert np.isnan(found).all()
    shifted[width + 3], shifted[0] = 0, plain[0] + 1  # one of q counts
    encoder.tensors["layers.0.attention.qkv.bias"] = shifted.astype(np.float32)
    found, _ = encoder.engine(dtype, isa).forward(*batch)
    assert found.tobytes() != without.tobytes()


@needs_native
class TestLevels:
    def test_the_best_is_chosen(self):
        levels = engine.isa_levels()
        assert levels[0] == "avx2"
        assert Encoder().engine().isa in levels
        if "avx512" in levels:
            assert engine.select_isa("float32") == "avx512"
        assert engine.select_isa("float32", "avx2") == "avx2"

    def test_the_environment_forces_one(self, monkeypatch):
        monkeypatch.setenv(engine.ISA_VARIABLE, "avx2")
        assert Encoder().engine().isa == "avx2"
        with pytest.raises(engine.Unavailable, match="bfloat16 does not run at ISA level 'avx2'"):
            Encoder().engine("bfloat16")
        monkeypatch.setenv(engine.ISA_VARIABLE, "avx3")
        with pytest.raises(ValueError, match="unknown ISA level 'avx3'"):
            engine.select_isa("float32")

    def test_a_level_that_is_not_there_is_refused(self):
        levels = {"avx512", "avx512_bf16", "amx_bf16", "amx_int8"}
        absent = sorted(levels - set(engine.isa_levels()))
        if not absent:
            pytest.skip("this processor has every level")
        with pytest.raises(engine.Unavailable, match="is not on this machine"):
            engine.select_isa("float32", absent[0])


def test_a_module_that_was_built_can_be_imported():
    # Else every test of it would skip, and a broken build would look like none.
    import kosine_kernels

    built = [file for place in kosine_kernels.__path__ for file in Path(place).glob("_native*.so")]
    if not built:
        pytest.skip("the native module is not in this build")
    assert engine.native_module().isa_levels() == list(engine.isa_levels())


def test_without_the_native_module_the_error_says_so():
    code = (
        "import sys\n"
        "sys.modules['kosine_kernels._native'] = None\n"
        "from kosine_kernels import engine\n"
        "assert engine.isa_levels() == ()\n"
        "try:\n"
        "    engine.select_isa('float32')\n"
        "except engine.Unavailable as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "native module cannot be imported" in done.stdout
    assert "use another backend" in done.stdout
