"""Weights of bytes: int8 and w8a16 against numpy, product by product and as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosine_kernels import activations, engine, quantized
from native_machine import (
    BFLOAT16_LEVELS,
    BYTES_TABLES,
    Encoder,
    kernels,
    needs_native,
    tables,
    to_bfloat16,
    why_not,
)
from test_kernels_native import EPS, edges, guards, random, seeds, small

INT8 = tables([table for table in BYTES_TABLES if table[0] == "int8"])
ALL = tables(BYTES_TABLES)
BITS = {"int8": 8, "w8a16": 16}
# On both sides of a slice's unit, of one slice, of several.
depths = st.one_of(
    edges, st.sampled_from([63, 64, 65, 511, 512, 1023, 1024, 1025, 1537]), st.integers(1, 1100)
)
LENGTHS = [5, 1, 17, 33, 64, 2, 16, 15, 48, 31]


def whole(x: np.ndarray) -> np.ndarray:
    """Rows as kernels take them: a multiple of 16 wide."""
    return np.ascontiguousarray(np.pad(x, ((0, 0), (0, -x.shape[1] % 16))))


def native_rows(
    dtype: str, isa: str, x: np.ndarray, smooth=None, guard="after"
) -> quantized.QuantizedRows:
    """`kernels.quantize`, read back from its layout."""
    raw = kernels().quantize(dtype, isa, x, smooth, guard).astype(np.uint8)
    element = 2 if isa == "avx2" else 1
    planes = np.split(raw, 2 if dtype == "w8a16" and isa != "avx2" else 1, axis=1)
    values, scale, zero = [], [], []
    at = 0
    for cut in quantized.slices(x.shape[1]):
        width = cut.stop - cut.start
        room = -(-width // 64) * 64 * element
        upper, lower = planes[0], planes[-1]
        numbers = np.ascontiguousarray(upper[:, at : at + width * element])
        if dtype == "int8":
            values.append(numbers[:, ::element])
        elif len(planes) == 1:
            values.append(numbers.view(np.int16))
        else:
            word = 256 * numbers.astype(np.int32) + lower[:, at : at + width] - 0x4000
            values.append(word.astype(np.int16))
        tail = np.ascontiguousarray(upper[:, at + room : at + room + 8]).view(np.float32)
        scale.append(tail[:, 0])
        zero.append(tail[:, 1])
        at += room + 64
    assert at == planes[0].shape[1]
    return quantized.QuantizedRows(
        np.concatenate(values, axis=1), np.stack(scale, axis=1), np.stack(zero, axis=1)
    )


def check_product(
    dtype: str,
    isa: str,
    x: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    smooth: np.ndarray,
    guard: str = "after",
) -> None:
    """One product of whole rows against numpy's: the same numbers, scales and zeros, then sums that
    are off by no more than the roundings of a few scales.
    """
    rows = quantized.quantize_rows(x, smooth, bits=BITS[dtype])
    for ours, theirs in zip(native_rows(dtype, isa, x, smooth, guard), rows, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    out = np.zeros((len(x), weight.shape[1]), np.float32)
    found = kernels().gemm(dtype, isa, x, weight, bias, out, "store", guard, scale, smooth)
    expected = quantized.multiply(rows, weight, scale, bias)
    size = magnitude(rows, weight, scale, bias)
    assert (np.abs(found - expected) <= 8 * EPS * size).all()


def magnitude(rows: quantized.QuantizedRows, weight, scale, bias) -> np.ndarray:
    """What sums of products are compared by: those of their magnitudes."""
    rows = rows._replace(values=np.abs(rows.values.astype(np.int32)), zero=-rows.zero)
    return quantized.multiply(rows, np.abs(weight), scale, np.abs(bias))


class TestRows:
    @ALL
    @settings(max_examples=100, deadline=None)
    @given(
        st.integers(1, 9), st.integers(1, 70), st.integers(-20, 20), guards, st.booleans(), seeds
    )
    def test_numbers_scales_and_zeros_are_those_of_numpy(
        self, dtype, isa, rows, sixteens, exponent, guard, smoothed, seed
    ):
        x, spread, away = random(seed, (rows, 16 * sixteens), (16 * sixteens,), (rows, 1))
        x = (x + away) * np.float32(2.0**exponent)
        smooth = np.exp(spread) if smoothed else None
        found = native_rows(dtype, isa, x, smooth, guard)
        expected = quantized.quantize_rows(x, smooth, bits=BITS[dtype])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    @ALL
    def test_constant_rows_and_rows_of_one_sign(self, dtype, isa):
        x = np.zeros((6, 96), np.float32)
        x[1], x[2], x[3], x[4, 5], x[5, 7] = 3, -2, 1e-38, 1e30, np.float32(-1e-20)
        found = native_rows(dtype, isa, x)
        for ours, theirs in zip(found, quantized.quantize_rows(x, bits=BITS[dtype]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert found.scale[0] == 1
        back = (found.values - found.zero[:, :1]) * found.scale[:, :1]
        np.testing.assert_allclose(back[[0, 1, 2, 4]], x[[0, 1, 2, 4]], rtol=1e-6)

    @pytest.mark.parametrize("bits", [8, 16])
    def test_an_error_of_at_most_half_a_step(self, bits):
        (x,) = random(0, (20, 1100))
        rows = quantized.quantize_rows(x, bits=bits)
        for i, cut in enumerate(quantized.slices(1100)):
            step = rows.scale[:, i, None]
            back = (rows.values[:, cut] - rows.zero[:, i, None]) * step
            assert (np.abs(back - x[:, cut]) <= 1.01 * step).all()
            assert np.abs(back - x[:, cut]).mean() <= 0.26 * step.mean()

    @pytest.mark.parametrize(
        ("width", "expected"),
        [(16, [16]), (64, [64]), (528, [528]), (768, [768]), (1024, [1024]),
         (1040, [384, 384, 272]), (1536, [512] * 3), (3072, [512] * 6)],
    )  # fmt: skip
    def test_slices(self, width, expected):
        assert [cut.stop - cut.start for cut in quantized.slices(width)] == expected

    @ALL
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_shows_in_its_slice(self, dtype, isa, bad):
        (x,) = random(1, (40, 1056))
        places = np.arange(40) * 27
        x[np.arange(40), places] = bad
        found = native_rows(dtype, isa, x)
        expected = places[:, None] // 384 == np.arange(3)
        np.testing.assert_array_equal(np.isnan(found.scale), expected)


class TestProducts:
    @ALL
    @settings(max_examples=100, deadline=None)
    @given(small, depths, small, st.sampled_from(["store", "add", "gelu"]), guards, seeds)
    def test_against_numpy(self, dtype, isa, rows, depth, columns, epilogue, guard, seed):
        x, wide, bias, out = random(
            seed, (rows, depth), (depth, columns), (columns,), (rows, columns)
        )
        smooth = np.exp(0.3 * random(seed + 1, (depth,))[0])
        weight, scale = quantized.quantize_weight(wide, smooth)
        found = kernels().gemm(dtype, isa, x, weight, bias, out, epilogue, guard, scale, smooth)
        # The same integers: what is left are roundings of a few scales.
        rows_ = quantized.quantize_rows(whole(x), whole(smooth[None])[0], bits=BITS[dtype])
        padded = np.pad(weight, ((0, -depth % 16), (0, 0)))
        expected = quantized.multiply(rows_, padded, scale, bias)
        size = magnitude(rows_, padded, scale, bias)
        bound = 8 * EPS * (2 * size + np.abs(out) + 1)
        if epilogue == "add":
            expected = expected + out
        if epilogue == "gelu":
            gelu = quantized.gelu_of_bytes if dtype == "int8" else activations.gelu
            expected = gelu(expected)
            bound = 1.2 * bound + 1e-6 + EPS * np.abs(expected)
        assert (np.abs(found - expected) <= bound).all()

    @ALL
    @pytest.mark.parametrize("epilogue", ["store", "add", "gelu"])
    @pytest.mark.parametrize("depth", [300, 1024, 1100, 1600])  # one slice, one, three, four
    def test_a_row_has_the_same_bits_among_any_others(self, dtype, isa, epilogue, depth):
        x, wide, bias, out = random(7, (61, depth), (depth, 53), (53,), (61, 53))
        weight, scale = quantized.quantize_weight(wide)
        run = kernels().gemm
        everything = run(dtype, isa, x, weight, bias, out, epilogue, "after", scale)
        for count in (*range(1, 16), 29):
            for first in (0, 61 - count):
                part = slice(first, first + count)
                alone = run(dtype, isa, x[part], weight, bias, out[part], epilogue, "after", scale)
                assert alone.tobytes() == everything[part].tobytes()

    @ALL
    def test_every_level_gives_the_same_bits(self, dtype, isa):
        x, wide, bias, out = random(8, (33, 1100), (1100, 53), (53,), (33, 53))
        weight, scale = quantized.quantize_weight(wide)
        for epilogue in ("store", "add", "gelu", "gelu_tanh", "silu", "gate"):
            ours, lowest = (
                kernels().gemm(dtype, level, x, weight, bias, out, epilogue, "after", scale)
                for level in (isa, "avx2")
            )
            assert ours.tobytes() == lowest.tobytes()

    @ALL
    def test_heads_are_what_is_stored_as_attention_rounds_it(self, dtype, isa):
        x, wide, bias, out = random(8, (33, 1100), (1100, 53), (53,), (33, 53))
        weight, scale = quantized.quantize_weight(wide)
        stored, heads = (
            kernels().gemm(dtype, isa, x, weight, bias, out, epilogue, "after", scale)
            for epilogue in ("store", "heads")
        )
        expected = to_bfloat16(stored) if isa in BFLOAT16_LEVELS else stored
        assert heads.tobytes() == expected.tobytes()

    @ALL
    @pytest.mark.parametrize("length", [1, 20, 513])
    def test_attention_is_that_of_the_level(self, dtype, isa, length):
        """In bfloat16 where the level multiplies it; what comes out are floats here."""
        q, k, v = random(length, *[(length, 48)] * 3)
        found = kernels().attention(dtype, isa, q, k, v, "after")
        if isa in BFLOAT16_LEVELS:
            expected = kernels().attention("bfloat16", isa, q, k, v, "after")
            assert length == 1 or (found != expected).any()
            found = to_bfloat16(found)
        else:
            level = "avx512" if isa.startswith("avx512") else "avx2"
            expected = kernels().attention("float32", level, q, k, v, "after")
        assert found.tobytes() == expected.tobytes()

    @ALL
    @pytest.mark.parametrize("window", [1 << 24, 40])
    def test_keys_that_a_row_does_not_see_change_no_bit(self, dtype, isa, window):
        """Floats come out here, where rounding to bfloat16 would hide a difference."""
        for head_size in (32, 48):
            q, k, v = random(9, *[(1100, head_size)] * 3)
            run = kernels().attention
            whole = run(dtype, isa, q, k, v, "after", window, True)
            for length in (1, 20, 33, 100, 491, 512, 513, 1030):
                part = (each[:length] for each in (q, k, v))
                found = run(dtype, isa, *part, "after", window, True)
                assert found.tobytes() == whole[:length].tobytes()

    @ALL
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, 7, 383, 500, 1099])
    def test_what_is_not_finite_stays_visible_and_alone(self, dtype, isa, bad, place):
        x, wide, bias, out = random(3, (9, 1100), (1100, 24), (24,), (9, 24))
        weight, scale = quantized.quantize_weight(wide)
        x[4, place] = bad
        for epilogue in ("store", "add", "gelu"):
            found = kernels().gemm(dtype, isa, x, weight, bias, out, epilogue, "after", scale)
            assert np.isnan(found[4]).all()
            assert np.isfinite(np.delete(found, 4, axis=0)).all()

    def test_the_gelu_of_bytes_is_near_the_exact_one(self):
        x = np.concatenate([np.linspace(-20, 20, 400_001), np.linspace(-100, 100, 4001)])
        assert np.abs(quantized.gelu_of_bytes(x) - activations.gelu(x)).max() <= 3e-5
        floats = quantized.gelu_of_bytes(x.astype(np.float32))
        assert np.abs(floats - activations.gelu(x)).max() <= 3e-5

    @ALL
    def test_the_largest_sums(self, dtype, isa):
        # 255 * 127 * 1024, or 16383 for 255, of either sign: nothing saturates or wraps around.
        x = np.full((3, 1024), 1, np.float32)
        x[:, ::511] = [[0], [1], [1]]
        weight = np.full((1024, 32), 127, np.int8)
        weight[:, 1::2] = -127
        ones, zeros = np.ones(32, np.float32), np.zeros(32, np.float32)
        found = kernels().gemm(
            dtype, isa, x, weight, zeros, np.zeros((3, 32), np.float32), "store", "after", ones
        )
        rows = quantized.quantize_rows(x, bits=BITS[dtype])
        np.testing.assert_allclose(found, quantized.multiply(rows, weight, ones, zeros), rtol=3e-7)


def check(encoder: Encoder, dtype: str, isa: str, lengths=LENGTHS, **options) -> None:
    in_bytes, batch = encoder.in_bytes(), encoder.batch(lengths)
    found, norms = in_bytes.engine(dtype, isa, **options).forward(*batch)
    only = options.get("bytes_only", ())
    twin, twin_norms = in_bytes.reference(
        *batch, dtype=np.float32, quantized=dtype == "int8", bytes_only=only,
        bfloat16_heads=isa in BFLOAT16_LEVELS,
    )  # fmt: skip
    exact, _ = encoder.reference(*batch)
    # A float that rounds to the byte next to numpy's is one step of 255 off; of words that is less
    # than what sums of floats are off by.
    near = 2e-4 if isa in BFLOAT16_LEVELS else 1e-5 if dtype == "int8" else 1e-6
    assert (1 - np.sum(found.astype(np.float64) * twin, axis=1)).max() <= near
    np.testing.assert_allclose(norms, twin_norms, rtol=5e-3)
    assert (1 - np.sum(found.astype(np.float64) * exact, axis=1)).max() <= 2e-3


class TestEncoders:
    @ALL
    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("guard", ["none", "after", "before"])
    def test_against_numpy(self, dtype, isa, threads, guard):
        check(Encoder(), dtype, isa, threads=threads, guard=guard)

    @ALL
    @pytest.mark.parametrize(
        "shape",
        [
            {"hidden": 16, "heads": 1},
            {"hidden": 48, "heads": 1, "inner": 37},
            {"hidden": 112, "heads": 1, "inner": 31, "layers": 1},
            {"hidden": 240, "heads": 3, "inner": 1100},  # three slices, the last one ragged
            {"hidden": 1040, "heads": 13, "inner": 520, "layers": 1},  # three slices of the rows
            {"hidden": 64, "embedding": 32, "types": 1},
            {"hidden": 48, "heads": 3, "embedding": 80},
            {"hidden": 48, "heads": 5, "head_size": 32},
            {"hidden": 64, "heads": 2, "inner": 600, "modern": True},
        ],
        ids=lambda shape: "-".join(f"{key}{value}" for key, value in shape.items()),
    )
    @pytest.mark.parametrize("threads", [1, 2])
    def test_shapes(self, dtype, isa, shape, threads):
        check(Encoder(**shape), dtype, isa, threads=threads, guard="after")

    @ALL
    @pytest.mark.parametrize("threads", [1, 2])
    def test_decoders(self, dtype, isa, threads):
        for shape in ({"shared": 1, "inner": 600}, {"sandwich": True, "activation": "gelu_tanh"}):
            encoder = Encoder.decoder(**shape, causal=shape.get("sandwich") is None)
            check(encoder, dtype, isa, threads=threads, guard="after")

    @INT8
    @pytest.mark.parametrize("threads", [1, 3])
    def test_products_that_stay_in_w8a16(self, dtype, isa, threads):
        for only in (
            {"layers.0.attention.qkv"},
            {"layers.1.attention.output"},
            {"layers.0.ffn.up", "layers.0.ffn.down"},
            {"layers.0.ffn.up"},
            {"layers.1.ffn.down"},
        ):
            for shape in ({"inner": 600}, {"hidden": 48, "heads": 3}):
                encoder = Encoder(**shape, seed=1)
                check(encoder, dtype, isa, threads=threads, guard="after", bytes_only=only)

    @INT8
    def test_a_gate_stays_with_what_it_gates(self, dtype, isa):
        encoder = Encoder(hidden=64, heads=2, inner=600, modern=True)
        for only in ({"layers.0.ffn.up", "layers.0.ffn.gate"}, {"layers.1.ffn.down"}):
            # A byte next to numpy's moves a sentence of few tokens the most.
            check(encoder, dtype, isa, [33, 64, 48], threads=2, guard="after", bytes_only=only)

    @ALL
    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def test_a_sentence_has_the_same_bits_in_any_company(self, dtype, isa, data):
        lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=24))
        place = data.draw(st.integers(0, len(lengths) - 1))
        threads = data.draw(st.integers(1, 4))
        ids, starts, positions = COMPANY.batch(lengths)
        together, norms = shared(dtype, isa, threads).forward(ids, starts, positions)
        part = slice(starts[place], starts[place + 1])
        alone, norm = shared(dtype, isa, 1).forward(
            ids[part], np.array([0, lengths[place]], np.int32), positions[part]
        )
        assert alone[0].tobytes() == together[place].tobytes()
        assert norm[0].tobytes() == norms[place].tobytes()

    @ALL
    def test_one_bad_row_stays_alone(self, dtype, isa):
        encoder = Encoder()
        encoder.tensors["embeddings.word.weight"][7] = np.nan
        ids, starts, positions = encoder.batch(LENGTHS)
        ids[ids == 7] = 8
        ids[starts[3] + 4] = 7
        vectors, norms = (
            encoder.in_bytes().engine(dtype, isa, threads=2).forward(ids, starts, positions)
        )
        assert np.isnan(vectors[3]).all()
        assert np.isnan(norms[3])
        assert np.isfinite(np.delete(vectors, 3, axis=0)).all()

    @ALL
    def test_weights_take_half_of_bfloat16(self, dtype, isa):
        encoder = Encoder(hidden=256, heads=4, inner=1024, layers=4, vocab=10, positions=40)
        bytes_ = encoder.in_bytes().engine(dtype, isa).packed_bytes
        assert bytes_ < 0.28 * encoder.engine("float32", "avx2").packed_bytes
        if not why_not("bfloat16", "avx512_bf16"):
            assert bytes_ < 0.54 * encoder.engine("bfloat16", "avx512_bf16").packed_bytes


COMPANY = Encoder(hidden=96, heads=2, inner=1300)
IN_BYTES = COMPANY.in_bytes()
_ENGINES: dict[tuple[str, str, int], engine.Engine] = {}


def shared(dtype: str, isa: str, threads: int) -> engine.Engine:
    key = (dtype, isa, threads)
    if key not in _ENGINES:
        _ENGINES[key] = IN_BYTES.engine(dtype, isa, threads=threads)
    return _ENGINES[key]


@needs_native
class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("layers.0.ffn.up.scale", None, r"ffn\.up\.scale is missing"),
            ("layers.0.ffn.up.scale", lambda x: x[:-1].copy(), r"\(95\); \(96\) is needed"),
            ("layers.0.ffn.up.smooth", lambda x: x[:-1].copy(), r"\(63\); \(64\) is needed"),
            ("layers.0.ffn.up.weight", lambda x: x.astype(np.float32), "is float32; int8 is"),
            ("layers.0.ffn.up.bias", lambda x: x.astype(np.int8), "is int8; float32 is needed"),
            ("embeddings.norm.weight", lambda x: x.astype(np.int8), "is int8; float32 is needed"),
            ("embeddings.word.weight", lambda x: x.astype(np.int8), "is int8; float32 is needed"),
        ],
    )
    def test_of_tensors(self, name, change, message):
        encoder = Encoder().in_bytes()
        if change is None:
            del encoder.tensors[name]
        else:
            encoder.tensors[name] = change(encoder.tensors[name])
        for dtype in ("int8", "w8a16"):
            with pytest.raises(ValueError, match=message):
                encoder.engine(dtype, "avx2")

    def test_of_weights_of_another_dtype(self):
        with pytest.raises(ValueError, match="is int8; float32 is needed"):
            Encoder().in_bytes().engine("float32")
        with pytest.raises(ValueError, match="is float32; int8 is needed"):
            Encoder().engine("int8")

    def test_of_bytes_only(self):
        encoder = Encoder().in_bytes()
        gated = Encoder(modern=True).in_bytes()
        for only in ({"layers.0.ffn.up"}, {"layers.0.ffn.gate"}):
            with pytest.raises(ValueError, match="both or none"):
                gated.engine("int8", bytes_only=only)
        with pytest.raises(ValueError, match="belongs to int8"):
            encoder.engine("w8a16", bytes_only={"layers.0.ffn.up"})
        with pytest.raises(ValueError, match=r"bytes_only names layers\.9"):
            encoder.engine("int8", bytes_only={"layers.9.attention.qkv"})
