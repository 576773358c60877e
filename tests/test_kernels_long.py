"""Texts of more than one block of keys: against numpy, in any company and team; memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import test_kernels_engine
import test_kernels_int8
from native_machine import (
    ALL_TABLES,
    BYTES_TABLES,
    Encoder,
    each_table,
    needs_native,
    script,
    tables,
    why_not,
)

LENGTHS = [600, 3, 513, 40, 1400, 130, 1]
SHAPES = {
    "plain": lambda: Encoder(hidden=48, heads=3, positions=1400),
    "buckets": lambda: Encoder(hidden=48, heads=3, positions=1400, buckets=(3, 1, 0, 2, 5, 4, 2)),
    "windows": lambda: Encoder(modern=True, positions=1400, windows=(None, 64), layers=3),
    "decoder": lambda: Encoder.decoder(positions=1400, windows=(None, 520), heads=6, shared=2),
}


@each_table()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_against_numpy(dtype, isa, shape, threads):
    encoder = SHAPES[shape]()
    test_kernels_engine.check(encoder, LENGTHS, dtype, isa, threads=threads, guard="after")


@tables(BYTES_TABLES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_in_bytes_against_numpy(dtype, isa, shape, threads):
    encoder = SHAPES[shape]()
    test_kernels_int8.check(encoder, dtype, isa, LENGTHS, threads=threads, guard="after")


@tables(ALL_TABLES + BYTES_TABLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_long_text_has_the_same_bits_with_any_threads_and_company(dtype, isa, shape):
    encoder = SHAPES[shape]()
    ids, starts, positions = encoder.batch(LENGTHS)
    if (dtype, isa) in BYTES_TABLES:
        encoder = encoder.in_bytes()
    found = encoder.engine(dtype, isa).forward(ids, starts, positions)[0]
    for threads in (2, 3, 4, 7):
        team = encoder.engine(dtype, isa, threads=threads)
        assert team.forward(ids, starts, positions)[0].tobytes() == found.tobytes()
        for i, length in enumerate(LENGTHS):
            own = slice(starts[i], starts[i + 1])
            alone = team.forward(ids[own], np.array([0, length], np.int32), positions[own])[0]
            assert alone[0].tobytes() == found[i].tobytes()


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "w8a16", "int8"])
def test_memory_grows_with_a_text_and_not_with_its_square(dtype):
    isa = "avx512_bf16" if dtype == "bfloat16" else "avx2"
    if why := why_not(dtype, isa):
        pytest.skip(why)
    code = f"""
import resource
from native_machine import Encoder
encoder = Encoder(hidden=16, heads=1, layers=1, positions=16384)
batches = [encoder.batch([length]) for length in (64, 4096, 16384)]
if {dtype!r} in ("w8a16", "int8"):
    encoder = encoder.in_bytes()
engine = encoder.engine({dtype!r}, {isa!r}, threads=2)
for batch in batches:
    engine.forward(*batch)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    where = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        script(code, leaks=False), capture_output=True, check=True, text=True,
        env={**os.environ, "PYTHONPATH": where},
    )  # fmt: skip
    least, some, most = (int(kib) / 1024 for kib in done.stdout.split())
    assert most - least < 100  # MiB; a matrix of scores would be 1024
    assert most - least < 4 * (some - least) + 10  # four times the text, not sixteen times
