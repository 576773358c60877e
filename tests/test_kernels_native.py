"""Every kernel of every ISA level against numpy, in buffers with unmapped pages around them."""

from __future__ import annotations

import signal
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosine_kernels import activations, reference
from native_machine import as_operand, each_table, kernels, needs_native, script

EXAMPLES = 120  # for each table and kernel; the slow test below runs 20 000
EPS = 2.0**-24

EPILOGUES = ("store", "heads", "add", "gelu", "gelu_tanh", "silu", "gate")
guards = st.sampled_from(["after", "before"])
seeds = st.integers(0, 2**32 - 1)
# Sizes on both sides of every width in use: 8 and 16 lanes, panels of 16 and 32 columns, tiles
# of 6 and 14 rows.
edges = st.sampled_from([1, 2, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 27, 28, 29, 31, 32, 33, 47, 48])
small = st.one_of(edges, st.integers(1, 70))
# Lengths on both sides of one, two and three blocks of keys in attention.
AROUND_BLOCKS = [513, 527, 528, 529, 1023, 1024, 1025, 1041, 1536, 1537]


def random(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def check_gemm(
    dtype: str, isa: str, rows: int, depth: int, columns: int, epilogue: str, guard: str, seed: int
) -> None:
    a, weight, bias, out = random(
        seed, (rows, depth), (depth, columns), (columns,), (rows, columns)
    )
    found = kernels().gemm(dtype, isa, a, weight, bias, out, epilogue, guard)
    a, weight = (as_operand(x, dtype).astype(np.float64) for x in (a, weight))
    expected = a @ weight + bias
    # A sum of n rounded terms is off by at most n roundings of the sum of magnitudes.
    bound = (depth + 3) * EPS * (np.abs(a) @ np.abs(weight) + np.abs(bias) + np.abs(out) + 1)
    if epilogue == "add":
        expected = expected + out
    if epilogue == "gate":
        seen = as_operand(out, dtype)
        expected, bound = expected * seen, bound * np.abs(seen) + EPS * np.abs(expected * seen)
    if epilogue == "gelu":
        expected = activations.gelu(expected)
        bound = 1.2 * bound + 1e-6 + EPS * np.abs(expected)  # gelu's slope stays under 1.13
    if epilogue in ("gelu_tanh", "silu"):
        expected = getattr(activations, epilogue)(expected)
        bound = 1.2 * bound + 1e-6 + 8 * EPS * np.abs(expected)
    if epilogue not in ("store", "add") and dtype == "bfloat16":
        bound = bound + 2.0**-8 * np.abs(expected)
    assert found.shape == (rows, columns)
    assert (np.abs(found - expected) <= bound).all()


def check_attention(
    dtype: str,
    isa: str,
    length: int,
    head_size: int,
    guard: str,
    seed: int,
    spread: float = 1.0,
    away: float = 0.0,
    window: int | None = None,
    causal: bool = False,
    rise: float = 0.0,
    reach: int | None = None,
    parts: int = 1,
) -> None:
    """`rise` is what scores grow by from the first key to the last; keys up to `reach` from a row
    have numbers of their own added to their scores, those beyond it the last ones.
    """
    q, k, v = random(seed, *[(length, head_size)] * 3)
    q, k = q * np.float32(spread) - np.float32(away), k + np.float32(away)
    if rise:
        q[:, 0] = np.sqrt(head_size)
        k[:, 0] = np.linspace(0, rise, length)
    seen = {} if window is None else {"window": window}
    if reach is not None:
        seen["distances"] = 3 * random(seed + 1, (2 * reach + 1,))[0]
    found = kernels().attention(dtype, isa, q, k, v, guard, causal=causal, parts=parts, **seen)
    q, k, v = (as_operand(x, dtype) for x in (q, k, v))
    scores = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(head_size)
    places = np.arange(length)
    distance = places - places[:, None]
    if reach is not None:
        scores += seen["distances"][reach + np.clip(distance, -reach, reach)]
    if window is not None:
        scores[np.abs(distance) > window] = -np.inf
    if causal:
        scores[distance > 0] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    expected = weights @ v.astype(np.float64)
    # A score's error is an error of its weight, relative; the context is a mean of v.
    score_error = (head_size + 4) * EPS * (np.abs(q) @ np.abs(k).T).max() / np.sqrt(head_size)
    if reach is not None:
        score_error += 2 * EPS * np.abs(scores[np.isfinite(scores)]).max()
    bound = (2 * score_error + (length + 10) * EPS + 4e-7) * np.abs(v).max()
    if dtype == "bfloat16":
        # The exponential is off by 4e-6. Weights are rounded too, and divided by the sum of what
        # they were rounded to, so that only what v differs from its mean by counts, which is no
        # more on average than its standard deviation.
        spread = np.sqrt(np.maximum(weights @ np.square(v.astype(np.float64)) - expected**2, 0))
        bound = bound + 1e-5 * np.abs(v).max() + 2.0**-8 * (1.01 * spread + np.abs(expected))
    assert (np.abs(found - expected) <= bound).all()


@each_table()
@settings(max_examples=EXAMPLES, deadline=None)
@given(small, small, small, st.sampled_from(EPILOGUES), guards, seeds)
def test_gemm(dtype, isa, rows, depth, columns, epilogue, guard, seed):
    check_gemm(dtype, isa, rows, depth, columns, epilogue, guard, seed)


@each_table()
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(edges, st.integers(1, 130)), st.sampled_from(range(16, 257, 16)), guards, seeds)
def test_attention(dtype, isa, length, head_size, guard, seed):
    check_attention(dtype, isa, length, head_size, guard, seed)


@each_table()
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.integers(1, 200), st.sampled_from([16, 64, 256]), st.integers(0, 80), st.booleans(), guards,
    seeds,
)  # fmt: skip
def test_attention_in_a_window(dtype, isa, length, head_size, window, causal, guard, seed):
    check_attention(dtype, isa, length, head_size, guard, seed, window=window, causal=causal)


@each_table()
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(1, 200), st.sampled_from([16, 128]), guards, seeds)
def test_attention_to_what_came_before(dtype, isa, length, head_size, guard, seed):
    check_attention(dtype, isa, length, head_size, guard, seed, causal=True)


@each_table()
def test_no_bit_comes_from_what_follows(dtype, isa):
    q, k, v = random(8, *[(100, 64)] * 3)
    plain = kernels().attention(dtype, isa, q, k, v, "after", causal=True)
    for x in (k, v):
        x[60:] = np.nan
    changed = kernels().attention(dtype, isa, q, k, v, "after", causal=True)
    assert np.array_equal(changed[:46], plain[:46])
    assert np.isnan(changed[60:]).all()


@each_table()
def test_no_bit_comes_from_outside_the_window(dtype, isa):
    q, k, v = random(7, *[(300, 64)] * 3)
    plain = kernels().attention(dtype, isa, q, k, v, "after", window=20)
    for x in (k, v):
        x[200:] = 3 * x[200:] + 1
    changed = kernels().attention(dtype, isa, q, k, v, "after", window=20)
    same = (changed == plain).all(axis=1)
    assert same[:180].all()
    assert not same[180:].any()


@each_table()
@pytest.mark.parametrize("guard", ["after", "before"])
@pytest.mark.parametrize("length", [255, 256, 257, 511, 512, *AROUND_BLOCKS])
def test_attention_over_long_sentences(dtype, isa, length, guard):
    check_attention(dtype, isa, length, 64, guard, length)
    check_attention(dtype, isa, length, 16, guard, length, spread=40.0)


@each_table()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 0, 1, 31, 255, 511, 512, 513, 1100])
def test_windows_over_blocks_of_keys(dtype, isa, window, causal):
    for length in AROUND_BLOCKS:
        check_attention(dtype, isa, length, 32, "after", length, window=window, causal=causal)


@each_table()
@pytest.mark.parametrize("rise", [1e-3, 1.0, 60.0, 3000.0, -1e-3, -60.0, -3000.0])
def test_scores_that_grow_from_block_to_block(dtype, isa, rise):
    # What a row has is multiplied anew at every block, at none, or away.
    for causal in (False, True):
        check_attention(dtype, isa, 1700, 16, "after", 3, rise=rise, causal=causal)


@each_table()
@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(
    st.one_of(st.sampled_from(AROUND_BLOCKS), st.integers(1, 1600)), st.sampled_from([16, 80]),
    st.sampled_from([None, 40, 700]), st.booleans(), st.sampled_from([None, 0, 5, 128, 2000]),
    st.integers(1, 9), guards, seeds,
)  # fmt: skip
def test_attention_to_anything(
    dtype, isa, length, head_size, window, causal, reach, parts, guard, seed
):
    check_attention(
        dtype, isa, length, head_size, guard, seed, 1.0, 0.0, window, causal, 0.0, reach, parts
    )


@each_table()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1 << 24, 50, 600])
def test_parts_of_the_rows_change_no_bit(dtype, isa, window, causal):
    for length in (1, 13, 300, 512, 1300):
        q, k, v = random(length, *[(length, 48)] * 3)
        (added,) = random(1, (201,))
        found = [
            kernels().attention(dtype, isa, q, k, v, "after", window, causal, added, parts)
            for parts in (1, 2, 3, 7, 64)
        ]
        assert len({each.tobytes() for each in found}) == 1


@each_table()
def test_blocks_are_counted_from_the_first_key(dtype, isa):
    """What a row computes of its keys is the same whatever follows them, at any length."""
    q, k, v = random(9, *[(1500, 32)] * 3)
    whole = kernels().attention(dtype, isa, q, k, v, "after", causal=True)
    for length in (1, 100, 512, 513, 1024, 1030):
        part = kernels().attention(
            dtype, isa, q[:length], k[:length], v[:length], "after", causal=True
        )
        assert part.tobytes() == whole[:length].tobytes()


@each_table()
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 511, 512, 1023, 1024, 1199])
def test_what_is_not_finite_shows_in_whatever_block(dtype, isa, bad, place):
    q, k, v = random(5, *[(1200, 32)] * 3)
    q[:, 7] = 1  # a key's infinity comes to every row with its sign
    changed = k.copy()
    changed[place, 7] = bad
    found = kernels().attention(dtype, isa, q, changed, v, "after")
    if bad > 0 or np.isnan(bad):
        assert np.isnan(found).all()
    else:  # a weight of zero
        assert np.isfinite(found).all()
    changed = v.copy()
    changed[place, 7] = bad
    found = kernels().attention(dtype, isa, q, k, changed, "after")
    assert not np.isfinite(found[:, 7]).any()
    assert np.isfinite(np.delete(found, 7, axis=1)).all()
    changed = q.copy()
    changed[place, 7] = bad
    found = kernels().attention(dtype, isa, changed, k, v, "after")
    assert np.isnan(found[place]).all()
    assert np.isfinite(np.delete(found, place, axis=0)).all()


@each_table("bfloat16")
def test_rounded_weights_add_up_to_one(dtype, isa):
    # Were they divided by the sum of what they were before, a mean of ones would not be one.
    for length in (2, 3, 16, 100, 700):
        q, k = random(length, *[(length, 32)] * 2)
        found = kernels().attention(dtype, isa, q, k, np.ones_like(q), "after")
        assert (found == 1).all()


@each_table()
def test_attention_with_scores_far_apart(dtype, isa):
    check_attention(dtype, isa, 40, 64, "after", 1, spread=300.0)


@each_table()
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
def test_attention_with_scores_far_below_zero(dtype, isa, length):
    # What fills the last vector of keys has a score of 0: it may not pass for the largest.
    check_attention(dtype, isa, length, 16, "after", 2, away=10.0)


@each_table("float32")
def test_exp_in_softmax(dtype, isa):
    # Two keys with scores 0 and -x, exactly: the context is (1, e^-x) over their sum.
    x = np.linspace(0, 80, 4000, dtype=np.float32)
    q = np.zeros((2, 16), np.float32)
    k, v = np.zeros((2, 16), np.float32), np.eye(2, 16, dtype=np.float32)
    k[1, 0] = -1
    for value in x:
        q[:, 0] = 4 * value  # over the square root of the head size
        context = kernels().attention(dtype, isa, q, k, v, "after")[0].astype(np.float64)
        assert abs(context[1] / context[0] / np.exp(-np.float64(value)) - 1) <= 4e-7


@each_table()
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(1, 20), st.integers(1, 80), st.floats(0.01, 100), guards, seeds)
def test_layer_norm(dtype, isa, rows, sixteens, scale, guard, seed):
    width = 16 * sixteens
    x, gain, bias = random(seed, (rows, width), (width,), (width,))
    x = x * np.float32(scale) + np.float32(3 * scale)
    found, rounded = kernels().layer_norm(dtype, isa, x, gain, bias, 1e-5, guard)
    expected = reference.layer_norm(x.astype(np.float64), gain, bias, 1e-5)
    assert np.abs(found - expected).max() <= 1e-5
    assert np.array_equal(rounded, as_operand(found, dtype))
    kept, again = kernels().layer_norm(dtype, isa, x, gain, bias, 1e-5, guard, keeps_x=True)
    assert np.array_equal(kept, x)
    assert np.array_equal(again, rounded)


@each_table()
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.booleans(), st.booleans(), guards, seeds)
def test_norms_of_rows(dtype, isa, rows, sixteens, rms, adds, guard, seed):
    width = 16 * sixteens
    x, gain, bias, out = random(seed, (rows, width), (width,), (width,), (rows, width))
    x = x + np.float32(2)
    found = kernels().norm_rows(dtype, isa, x, gain, bias, 1e-5, rms, out, adds, guard)
    norm = reference.rms_norm if rms else reference.layer_norm
    expected = norm(x.astype(np.float64), gain, bias, 1e-5)
    assert np.abs(found - (expected + out if adds else expected)).max() <= 1e-5
    if not rms or adds:
        return
    normed, _ = kernels().layer_norm(dtype, isa, x, gain, bias, 1e-5, guard, rms=True)
    assert np.array_equal(normed, found)


@each_table()
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(-30, 30), guards, seeds)
def test_round(dtype, isa, rows, sixteens, exponent, guard, seed):
    (x,) = random(seed, (rows, 16 * sixteens))
    x = x * np.float32(2.0**exponent)
    assert np.array_equal(kernels().round(dtype, isa, x, guard), as_operand(x, dtype))


@each_table("float32")
def test_gelu_is_the_erf_form(dtype, isa):
    # Through a product with the identity, so that each x comes out of the epilogue alone.
    x = np.linspace(-12, 12, 64 * 400, dtype=np.float32).reshape(-1, 64)
    eye, zero = np.eye(64, dtype=np.float32), np.zeros(64, np.float32)
    found = kernels().gemm(dtype, isa, x, eye, zero, x, "gelu", "after")
    error = np.abs(found - activations.gelu(x.astype(np.float64)))
    assert error[np.abs(x) <= 8].max() <= 1e-6
    assert (error <= 1e-6 + 1.5e-7 * np.abs(x)).all()
    tanh_form = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert np.abs(found - tanh_form).max() > 1e-4


@each_table("float32")
@pytest.mark.parametrize("name", ["gelu_tanh", "silu"])
def test_activations_that_saturate(dtype, isa, name):
    x = np.linspace(-120, 120, 64 * 400, dtype=np.float32).reshape(-1, 64)
    eye, zero = np.eye(64, dtype=np.float32), np.zeros(64, np.float32)
    found = kernels().gemm(dtype, isa, x, eye, zero, x, name, "after")
    expected = getattr(activations, name)(x.astype(np.float64))
    assert (np.abs(found - expected) <= 1e-6 + 4e-7 * np.abs(expected)).all()


@each_table()
@pytest.mark.parametrize("epilogue", ["store", "add", "gelu", "gelu_tanh", "silu"])
def test_a_row_of_a_product_has_the_same_bits_among_any_others(dtype, isa, epilogue):
    a, weight, bias, out = random(7, (61, 77), (77, 53), (53,), (61, 53))
    whole = kernels().gemm(dtype, isa, a, weight, bias, out, epilogue, "after")
    for count in (1, 2, 5, 6, 7, 13, 14, 15, 29):
        for first in (0, 61 - count):
            part = slice(first, first + count)
            alone = kernels().gemm(dtype, isa, a[part], weight, bias, out[part], epilogue, "after")
            assert np.array_equal(alone.view(np.int32), whole[part].view(np.int32))


@each_table()
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(dtype, isa, bad):
    a, weight, bias, out = random(3, (9, 40), (40, 24), (24,), (9, 24))
    a[4, 7] = bad
    for epilogue in ("store", "add", "gelu", "gelu_tanh", "silu"):
        found = kernels().gemm(dtype, isa, a, weight, bias, out, epilogue, "after")
        # gelu(-inf) would be 0 in the limit; a row of them would hide behind a bias.
        assert not np.isfinite(found[4]).all()
        assert np.isfinite(np.delete(found, 4, axis=0)).all()
    q, k, v = random(4, *[(9, 32)] * 3)
    q[2, 5] = bad
    found = kernels().attention(dtype, isa, q, k, v, "after")
    assert np.isnan(found[2]).all()
    assert np.isfinite(np.delete(found, 2, axis=0)).all()


@each_table()
@pytest.mark.parametrize("length", [1, 7, 16, 33, 70])
def test_a_nan_shows_wherever_it_lies(dtype, isa, length):
    # A maximum that forgets a NaN does so in some places only: in some lane, before the last key.
    q, k, v = random(5, *[(length, 32)] * 3)
    for place in range(length):
        bad = k.copy()
        bad[place, place % 32] = np.nan
        assert np.isnan(kernels().attention(dtype, isa, q, bad, v, "after")).all()
        bad = v.copy()
        bad[place, place % 32] = np.nan
        found = kernels().attention(dtype, isa, q, k, bad, "after")
        assert np.isnan(found[:, place % 32]).all()
        assert np.isfinite(np.delete(found, place % 32, axis=1)).all()
    x, gain, bias = random(6, (48, 48), (48,), (48,))
    np.fill_diagonal(x, np.nan)
    for part in kernels().layer_norm(dtype, isa, x, gain, bias, 1e-5, "after"):
        assert np.isnan(part).all()


@each_table()
def test_heads_are_what_is_stored_as_attention_rounds_it(dtype, isa):
    operands = random(12, (45, 80), (80, 72), (72,), (45, 72))
    stored, heads = (
        kernels().gemm(dtype, isa, *operands, epilogue, "after") for epilogue in ("store", "heads")
    )
    assert heads.tobytes() == as_operand(stored, dtype).tobytes()


@needs_native
@pytest.mark.parametrize("guard", ["after", "before"])
def test_a_stray_read_ends_the_process(guard):
    # The negative control of every test above: were the guards not there, this would return.
    code = (
        f"from kosine_kernels import engine\nengine.native_module().kernels.stray_read({guard!r})"
    )
    done = subprocess.run(script(code), capture_output=True, check=False)
    sanitized = b"AddressSanitizer: SEGV" in done.stderr
    assert sanitized or done.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


@each_table()
@pytest.mark.slow
def test_twenty_thousand_shapes(dtype, isa):
    rng = np.random.default_rng(20_000)
    for seed in range(10_000):
        guard = ("after", "before")[seed % 2]
        rows, depth, columns = (int(n) for n in rng.integers(1, 100, 3))
        epilogue = ("store", "add", "gelu")[seed % 3]
        check_gemm(dtype, isa, rows, depth, columns, epilogue, guard, seed)
        length, head_size = int(rng.integers(1, 100)), 16 * int(rng.integers(1, 9))
        check_attention(dtype, isa, length, head_size, guard, seed)
