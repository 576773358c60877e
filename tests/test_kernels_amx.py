"""AMX: the tile unit itself, and what its kernels have that those of vectors have not.

On processors without AMX the same code runs on an emulated tile unit; `test_kernels_native.py`,
`test_kernels_engine.py` and `test_kernels_int8.py` run all of their tests on both.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kosine_kernels import engine
from kosine_kernels.quantized import quantize_weight
from native_machine import (
    AMX_INT8_TABLES,
    AMX_TABLES,
    AMX_W8A16_TABLES,
    Encoder,
    kernels,
    needs_native,
    script,
    tables,
    why_not,
)
from test_kernels_int8 import check_product
from test_kernels_native import check_gemm, random

HERE = Path(__file__).parent
SOURCES = HERE.parent / "kernels" / "src"
EMULATED = "amx_bf16_emulated"
EMULATED_INT8 = "amx_int8_emulated"
FAULTS = ("no-shapes", "released", "no-rows", "no-fit", "too-many-rows", "rows-without-bytes")

ROWS = (1, 15, 16, 17, 31, 32, 33, 47, 64, 65, 128, 129, 144, 160, 300)

bfloat16_amx = tables(AMX_TABLES)
bytes_amx = tables((*AMX_W8A16_TABLES, *AMX_INT8_TABLES))
amx = tables((*AMX_TABLES, *AMX_W8A16_TABLES, *AMX_INT8_TABLES))
needs_emulation = pytest.mark.skipif(
    why_not("bfloat16", EMULATED) != "", reason=why_not("bfloat16", EMULATED) or "it can"
)


@pytest.fixture(scope="module")
def tile_check(tmp_path_factory):
    """Builds `amx_tile_check.cpp` for a level."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    folder = tmp_path_factory.mktemp("amx")

    def build(isa: str) -> str:
        program = folder / isa
        if not program.exists():
            emulated = ["-DKOSINE_AMX_EMULATED"] if isa.endswith("_emulated") else []
            command = [
                *(compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-Wno-uninitialized"),
                *("-Wno-maybe-uninitialized", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mfma"),
                *(*emulated, f"-I{SOURCES}", str(HERE / "amx_tile_check.cpp"), "-o", str(program)),
            ]
            subprocess.run(command, check=True, env={**os.environ, "LD_PRELOAD": ""})
        return str(program)

    return build


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LD_PRELOAD": ""},
        check=False,
    )


def gemm(dtype, isa, a, weight, bias, out, epilogue, guard="after"):
    """`kernels.gemm` with a weight of floats, which become bytes where the table takes those."""
    scale = None
    if dtype != "bfloat16":
        weight, scale = quantize_weight(weight)
    return kernels().gemm(dtype, isa, a, weight, bias, out, epilogue, guard, scale)


def for_dtype(encoder: Encoder, dtype: str) -> Encoder:
    return encoder if dtype == "bfloat16" else encoder.in_bytes()


@amx
def test_tiles_do_what_the_instruction_set_reference_says(dtype, isa, tile_check):
    done = run(tile_check(isa), dtype)
    assert (done.returncode, done.stdout) == (0, "right\n")


@amx
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_use_of_tiles_ends_the_process(dtype, isa, fault, tile_check):
    assert run(tile_check(isa), dtype, fault).returncode in (-signal.SIGILL, -signal.SIGSEGV)


@pytest.mark.parametrize(
    "units", [AMX_TABLES, AMX_W8A16_TABLES, AMX_INT8_TABLES], ids=lambda units: units[0][0]
)
def test_the_emulation_gives_the_bits_of_the_processor(units):
    if why := why_not(*units[0]):
        pytest.skip(why)
    operands = random(11, (77, 800), (800, 96), (96,), (77, 96))
    found = [gemm(*unit, *operands, "store") for unit in units]
    assert np.array_equal(found[0].view(np.int32), found[1].view(np.int32))


@needs_emulation
def test_the_machine_check(tmp_path):
    """The table against its emulation where there is AMX, else the emulation by itself."""
    library = HERE.parent / "build" / "native" / "libkosine_engine.a"
    compiler = shutil.which("g++")
    if compiler is None or not library.exists():
        pytest.skip("there is no g++" if compiler is None else "no `make native` has run here")
    program = tmp_path / "machine_check"
    source = SOURCES.parent / "emulator" / "machine_check.cpp"
    command = [
        *(compiler, "-std=c++20", "-O2", f"-I{SOURCES}", str(source), str(library)),
        *("-Wl,--whole-archive", "-lpthread", "-Wl,--no-whole-archive", "-o", str(program)),
    ]
    subprocess.run(command, check=True, env={**os.environ, "LD_PRELOAD": ""})
    alone = ["emulated"] if why_not("bfloat16", "amx_bf16") else []
    done = run(str(program), *alone)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "right"
    # The bits that an emulated Sapphire Rapids gave with tiles of its own. Those of whole encoders
    # have changed since, with attention.
    assert "digest of products 60a96806c9b4bed9" in done.stdout


# Rows: one tile, one and a half, pairs, a pair and a single one, more than a group of pairs, two
# groups. Depths: below and above one step, a panel in one part, in two, in three and a bit.
@bfloat16_amx
@pytest.mark.parametrize("depth", [16, 32, 384, 416, 800])
@pytest.mark.parametrize("epilogue", ["store", "add", "gelu", "gate"])
def test_each_way_through_a_product(dtype, isa, depth, epilogue):
    for rows in ROWS:
        for columns, guard in ((24, "after"), (64, "before"), (96, "after")):
            check_gemm(dtype, isa, rows, depth, columns, epilogue, guard, rows)


# Depths: less than a step and a whole one, a slice of all its steps, three slices, four.
@bytes_amx
@pytest.mark.parametrize("depth", [16, 64, 1024, 1040, 1600])
def test_each_way_through_a_product_of_bytes(dtype, isa, depth):
    """Numpy's bytes and sums, and bit by bit what the vectors of AVX512 make of them."""
    for rows in ROWS:
        for columns, guard in ((24, "after"), (64, "before"), (96, "after")):
            x, wide, bias, out = random(
                rows, (rows, depth), (depth, columns), (columns,), (rows, columns)
            )
            smooth = np.exp(0.3 * random(depth, (depth,))[0])
            check_product(dtype, isa, x, *quantize_weight(wide, smooth), bias, smooth, guard)
            for epilogue in ("store", "heads", "add", "gelu", "gelu_tanh", "silu", "gate"):
                ours, vectors = (
                    gemm(dtype, level, x, wide, bias, out, epilogue, guard)
                    for level in (isa, "avx512_bf16")
                )
                assert ours.tobytes() == vectors.tobytes()


@bytes_amx
def test_encoders_of_bytes_differ_from_the_vectors_by_attention_alone(dtype, isa):
    # A row that sees itself alone is its own value, whatever multiplies it.
    for window, same in ((0, True), (None, False)):
        encoder = Encoder(modern=True, inner=600, windows=(window,)).in_bytes()
        batch = encoder.batch([64, 3, 17, 1, 40] * 9)
        ours, vectors = (
            encoder.engine(dtype, level, threads=2).forward(*batch)[0].tobytes()
            for level in (isa, "avx512_bf16")
        )
        assert (ours == vectors) is same


@amx
@pytest.mark.parametrize("epilogue", ["store", "add", "gelu"])
@pytest.mark.parametrize("depth", [300, 800])
def test_neither_way_nor_place_changes_a_bit(dtype, isa, epilogue, depth):
    # The whole takes two groups, parts of the depth, and a last single tile over pairs of panels
    # and a panel without a partner; the parts take one way each.
    rows, columns = 273, 96
    a, weight, bias, out = random(7, (rows, depth), (depth, columns), (columns,), (rows, columns))
    whole = gemm(dtype, isa, a, weight, bias, out, epilogue)
    for count in (*range(1, 18), 31, 32, 33, 49, 64, 100, 160):
        for first in (0, 100, rows - count):
            part = slice(first, first + count)
            for width in (32, 64, 96):
                left = np.ascontiguousarray(weight[:, :width])
                start = np.ascontiguousarray(out[part, :width])
                alone = gemm(dtype, isa, a[part], left, bias[:width], start, epilogue)
                assert alone.tobytes() == whole[part, :width].tobytes()


@amx
def test_bits_in_batches_of_several_chunks(dtype, isa):
    # A hidden size that no step of the depth divides, and slices of several parts.
    encoder = for_dtype(Encoder(hidden=80, heads=5, inner=1500, embedding=48, layers=2), dtype)
    lengths = [64, 3, 17] * 14
    batch = encoder.batch(lengths)
    whole = encoder.engine(dtype, isa).forward(*batch)[0]
    for threads in (2, 3):
        assert encoder.engine(dtype, isa, threads=threads).forward(*batch)[0].tobytes() == (
            whole.tobytes()
        )
    ids, starts, positions = batch
    alone = encoder.engine(dtype, isa)
    for i in range(0, len(lengths), 5):
        part = slice(starts[i], starts[i + 1])
        found, _ = alone.forward(ids[part], np.array([0, lengths[i]], np.int32), positions[part])
        assert found[0].tobytes() == whole[i].tobytes()


@amx
def test_padding_of_the_depth_holds_nothing_of_earlier_batches(dtype, isa):
    # A batch full of infinities, then another in the same workspace.
    clean = for_dtype(Encoder(hidden=48, heads=3, embedding=80), dtype)
    batch = clean.batch([30, 20])
    expected = clean.engine(dtype, isa).forward(*batch)[0]
    dirty = Encoder(hidden=64, heads=4)
    dirty.tensors["embeddings.word.weight"][:] = np.inf
    dirty = for_dtype(dirty, dtype)
    bad = dirty.engine(dtype, isa)
    good = clean.engine(dtype, isa)
    for lengths in ([64] * 4, [50], [7, 7]):
        assert np.isnan(bad.forward(*dirty.batch(lengths))[0]).all()
        assert good.forward(*batch)[0].tobytes() == expected.tobytes()


@amx
def test_a_child_of_fork_may_use_tiles(dtype, isa):
    code = f"""
import os
from native_machine import Encoder

encoder = Encoder(hidden=64, heads=2)
if {dtype!r} != "bfloat16":
    encoder = encoder.in_bytes()
engine = encoder.engine({dtype!r}, {isa!r}, threads=2)
batches = [encoder.batch(lengths) for lengths in ([9, 20], [40] * 12)]
expected = [engine.forward(*batch)[0].tobytes() for batch in batches]
pid = os.fork()
if pid == 0:
    found = [engine.forward(*batch)[0].tobytes() for batch in batches]
    os._exit(found != expected)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("right")
"""
    done = subprocess.run(
        script(code),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@needs_emulation
class TestEmulation:
    def test_it_is_no_level_of_this_machine_and_never_the_best(self, monkeypatch):
        monkeypatch.delenv(engine.ISA_VARIABLE, raising=False)
        assert not {EMULATED, EMULATED_INT8} & set(engine.isa_levels())
        levels = engine.isa_levels()
        for dtype, tiles in (
            ("bfloat16", "amx_bf16"),
            ("w8a16", "amx_int8"),
            ("int8", "amx_int8"),
        ):
            best = tiles if tiles in levels else "avx512_bf16"
            assert engine.select_isa(dtype) == best
            encoder = for_dtype(Encoder(), dtype)
            assert encoder.engine(dtype).isa == best
        assert engine.select_isa("float32") in levels

    def test_it_is_there_for_those_who_name_it(self):
        assert Encoder().engine("bfloat16", EMULATED).isa == EMULATED
        for dtype in ("w8a16", "int8"):
            assert Encoder().in_bytes().engine(dtype, EMULATED_INT8).isa == EMULATED_INT8
        for dtype, isa, found in (
            ("float32", EMULATED, "avx512"),
            ("w8a16", EMULATED, "avx512_bf16"),  # as it is at amx_bf16
            ("int8", EMULATED, "avx512_bf16"),
            ("bfloat16", EMULATED_INT8, EMULATED),  # as at amx_int8
        ):
            assert engine.select_isa(dtype, isa) == found

    def test_messages_do_not_offer_it(self):
        with pytest.raises(ValueError, match="known: avx2") as caught:
            engine.select_isa("float32", "avx3")
        assert "amx_bf16, amx_int8;" in str(caught.value)
        assert "emulated" not in str(caught.value)


@needs_native
class TestLevel:
    def test_a_lower_level_forbids_it(self, monkeypatch):
        if "avx512_bf16" not in engine.isa_levels():
            pytest.skip("this processor has no avx512_bf16")
        monkeypatch.setenv(engine.ISA_VARIABLE, "avx512_bf16")
        assert engine.select_isa("bfloat16") == "avx512_bf16"

    def test_to_ask_for_bytes_in_tiles_is_to_get_them_or_an_error(self, monkeypatch):
        monkeypatch.setenv(engine.ISA_VARIABLE, "amx_int8")
        if "amx_int8" not in engine.isa_levels():
            with pytest.raises(engine.Unavailable, match="'amx_int8' is not on this machine"):
                engine.select_isa("int8")
            return
        for dtype, found in (
            ("int8", "amx_int8"),
            ("bfloat16", "amx_bf16"),
            ("w8a16", "amx_int8"),
        ):
            assert engine.select_isa(dtype) == found
        for dtype in ("w8a16", "int8"):
            assert engine.select_isa(dtype, "amx_bf16") == "avx512_bf16"

    def test_to_ask_for_it_is_to_get_it_or_an_error(self, monkeypatch):
        monkeypatch.setenv(engine.ISA_VARIABLE, "amx_bf16")
        if "amx_bf16" in engine.isa_levels():
            assert Encoder().engine("bfloat16").isa == "amx_bf16"
            assert Encoder().engine("float32").isa == "avx512"
            return
        for dtype in ("bfloat16", "float32"):
            with pytest.raises(engine.Unavailable, match="'amx_bf16' is not on this machine"):
                engine.select_isa(dtype)

    def test_other_arithmetic_has_other_bits(self):
        # The negative control of the comparisons of bits.
        encoder = Encoder(hidden=96, heads=2)
        batch = encoder.batch([9, 30])
        found = {
            encoder.engine(dtype, isa).forward(*batch)[0].tobytes()
            for dtype, isa in (("bfloat16", "avx512_bf16"), ("bfloat16", EMULATED))
            if not why_not(dtype, isa)
        }
        if not found:
            pytest.skip(why_not("bfloat16", EMULATED))
        assert len(found) == 2
