"""AMX: the tile unit itself, and what its kernels have that those of vectors have not.

On processors without AMX the same code runs on an emulated tile unit; `test_kernels_native.py` and
`test_kernels_engine.py` run all of their tests on both.
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
from native_machine import AMX_TABLES, Encoder, kernels, needs_native, script, tables, why_not
from test_kernels_native import check_gemm, random

HERE = Path(__file__).parent
SOURCES = HERE.parent / "kernels" / "src"
EMULATED = "amx_bf16_emulated"
FAULTS = ("no-shapes", "released", "no-rows", "no-fit", "too-many-rows", "rows-without-bytes")

ROWS = (1, 15, 16, 17, 31, 32, 33, 47, 64, 65, 128, 129, 144, 160, 300)

amx = tables(AMX_TABLES)
units = pytest.mark.parametrize(
    "isa",
    [
        pytest.param(isa, marks=pytest.mark.skipif(why != "", reason=why or "it can"))
        for dtype, isa in AMX_TABLES
        for why in [why_not(dtype, isa)]
    ],
)
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
            emulated = ["-DKOSINE_AMX_EMULATED"] if isa == EMULATED else []
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


@units
def test_tiles_do_what_the_instruction_set_reference_says(isa, tile_check):
    done = run(tile_check(isa))
    assert (done.returncode, done.stdout) == (0, "right\n")


@units
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_use_of_tiles_ends_the_process(isa, fault, tile_check):
    assert run(tile_check(isa), fault).returncode in (-signal.SIGILL, -signal.SIGSEGV)


@pytest.mark.skipif(
    why_not("bfloat16", "amx_bf16") != "", reason=why_not("bfloat16", "amx_bf16") or "it can"
)
def test_the_emulation_gives_the_bits_of_the_processor():
    a, weight, bias, out = random(11, (77, 800), (800, 96), (96,), (77, 96))
    found = [
        kernels().gemm("bfloat16", isa, a, weight, bias, out, "store", "after")
        for _, isa in AMX_TABLES
    ]
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
    # have changed since, with attention, which takes no tiles.
    assert "digest of products 60a96806c9b4bed9" in done.stdout


# Rows: one tile, one and a half, pairs, a pair and a single one, more than a group of pairs, two
# groups. Depths: below and above one step, a panel in one part, in two, in three and a bit.
@amx
@pytest.mark.parametrize("depth", [16, 32, 384, 416, 800])
@pytest.mark.parametrize("epilogue", ["store", "add", "gelu", "gate"])
def test_each_way_through_a_product(dtype, isa, depth, epilogue):
    for rows in ROWS:
        for columns, guard in ((24, "after"), (64, "before"), (96, "after")):
            check_gemm(dtype, isa, rows, depth, columns, epilogue, guard, rows)


@amx
@pytest.mark.parametrize("epilogue", ["store", "add", "gelu"])
@pytest.mark.parametrize("depth", [300, 800])
def test_neither_way_nor_place_changes_a_bit(dtype, isa, epilogue, depth):
    # The whole takes two groups, parts of the depth, and a last single tile over pairs of panels
    # and a panel without a partner; the parts take one way each.
    rows, columns = 273, 96
    a, weight, bias, out = random(7, (rows, depth), (depth, columns), (columns,), (rows, columns))
    whole = kernels().gemm(dtype, isa, a, weight, bias, out, epilogue, "after")
    for count in (*range(1, 18), 31, 32, 33, 49, 64, 100, 160):
        for first in (0, 100, rows - count):
            part = slice(first, first + count)
            for width in (32, 64, 96):
                left = np.ascontiguousarray(weight[:, :width])
                alone = kernels().gemm(
                    dtype,
                    isa,
                    a[part],
                    left,
                    bias[:width],
                    np.ascontiguousarray(out[part, :width]),
                    epilogue,
                    "after",
                )
                assert alone.tobytes() == whole[part, :width].tobytes()


@amx
def test_bits_in_batches_of_several_chunks(dtype, isa):
    # A hidden size that no step of the depth divides, and slices of several parts.
    encoder = Encoder(hidden=80, heads=5, inner=1500, embedding=48, layers=2)
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
    clean = Encoder(hidden=48, heads=3, embedding=80)
    batch = clean.batch([30, 20])
    expected = clean.engine(dtype, isa).forward(*batch)[0]
    dirty = Encoder(hidden=64, heads=4)
    dirty.tensors["embeddings.word.weight"][:] = np.inf
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
        assert EMULATED not in engine.isa_levels()
        assert engine.select_isa("bfloat16") == engine.isa_levels()[-1] != EMULATED
        assert Encoder().engine("bfloat16").isa == engine.isa_levels()[-1]

    def test_it_is_there_for_those_who_name_it(self):
        assert Encoder().engine("bfloat16", EMULATED).isa == EMULATED
        assert engine.select_isa("float32", EMULATED) == "avx512"

    def test_messages_do_not_offer_it(self):
        with pytest.raises(ValueError, match="known: avx2") as caught:
            engine.select_isa("float32", "avx3")
        assert "amx_bf16;" in str(caught.value)
        assert EMULATED not in str(caught.value)


@needs_native
class TestLevel:
    def test_a_lower_level_forbids_it(self, monkeypatch):
        if "avx512_bf16" not in engine.isa_levels():
            pytest.skip("this processor has no avx512_bf16")
        monkeypatch.setenv(engine.ISA_VARIABLE, "avx512_bf16")
        assert engine.select_isa("bfloat16") == "avx512_bf16"

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
