"""kosine's own GPU engine: its batches on a stand-in, its kernels in Triton's interpreter and as
machine code, and all of it on a GPU where there is one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import kosine
from cuda_machine import FEW, KINDS, MORE, errors
from gpu_machine import missing_gpu, needs
from host_gpu import HostCuda, stand_in
from kosine.backends.cuda.backend import MAX_GRAPHS, PIECE_TOKENS, CudaBackend
from kosine.backends.cuda.device import KernelDevice
from kosine.backends.cuda.shape import MAX_SENTENCES, Shape, cut, shape_of, token_steps
from kosine.backends.cuda.weights import to_half
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.bundle.canary import GATES, Canary, replay
from kosine.errors import BackendError, BackendUnavailable, MissingExtra, UnknownOption
from kosine.packed import Packed

TESTS = Path(__file__).parent
STEPS = token_steps(PIECE_TOKENS)


@pytest.fixture(scope="module")
def bundle(sample_bundle: Path) -> Bundle:
    return Bundle(sample_bundle)


@pytest.fixture(scope="module")
def canary(bundle: Bundle) -> Canary:
    return Canary.read(bundle)


def packed(lengths) -> Packed:
    return Packed.of([np.full(n, 7, np.int32) for n in lengths])


def test_token_steps_waste_little_and_end_at_the_most():
    assert STEPS[0] == 16
    assert STEPS[-1] == PIECE_TOKENS
    assert token_steps(528)[-1] == 528
    for before, after in pairwise(STEPS):
        assert after % 16 == 0
        assert after - before <= max(16, before / 8)


@pytest.mark.parametrize("seed", range(5))
def test_pieces_hold_every_sentence_once_and_are_full(seed):
    random = np.random.default_rng(seed)
    batch = packed(random.integers(1, (20, 513)[seed % 2], random.integers(1, 6_000)))
    ends = 0
    for begin, end in cut(batch.starts, PIECE_TOKENS):
        assert begin == ends < end
        tokens = batch.starts[end] - batch.starts[begin]
        assert tokens <= PIECE_TOKENS
        assert end - begin <= MAX_SENTENCES
        full = end == len(batch) or batch.starts[end + 1] - batch.starts[begin] > PIECE_TOKENS
        assert full or end - begin == MAX_SENTENCES
        shape = shape_of(batch.lengths[begin:end], STEPS)
        assert shape.tokens >= tokens
        assert shape.sentences >= end - begin
        ends = end
    assert ends == len(batch)


def test_tiles_follow_the_mean_length():
    for lengths, tile in (([16] * 4, 16), ([16, 600], 128), ([100], 64), ([512] * 2, 128)):
        assert shape_of(np.array(lengths, np.int32), STEPS).tile == tile


def test_places_are_apart_and_aligned():
    places = Shape(48, 8, 16).places
    ends = 0
    for begin, length in places.values():
        assert begin % 4 == 0
        assert begin >= ends
        ends = begin + length
    assert Shape(48, 8, 16).numbers >= ends


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_the_nearest(dtype):
    import ml_dtypes

    random = np.random.default_rng(0)
    x = (random.standard_normal(4_000) * 10.0 ** random.integers(-6, 4, 4_000)).astype(np.float32)
    x[:3] = 0, -0.0, 1 + 2**-8
    wanted = x.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    np.testing.assert_array_equal(to_half(x, dtype, "x").view(np.uint16), wanted.view(np.uint16))


def test_a_weight_beyond_float16_is_refused_by_name():
    with pytest.raises(BackendError, match=r"reaches 70000 in 'a.weight'.*use dtype='bfloat16'"):
        to_half(np.array([1, -70_000], np.float32), "float16", "a.weight")


class TestOnAStandIn:
    def test_it_has_the_methods_of_the_real_one(self):
        wanted = {name for name in dir(KernelDevice) if not name.startswith("_")}
        assert wanted - set(dir(HostCuda)) <= {"seconds", "load", "launch"}

    def test_the_canary_passes_in_pieces_and_graphs(self, bundle, canary, monkeypatch):
        kind = stand_in(monkeypatch)
        monkeypatch.setattr("kosine.backends.cuda.backend.PIECE_TOKENS", 256)
        backend = CudaBackend(bundle)
        for _ in range(3):
            found = replay(canary, backend)
            assert found.passes(GATES["float32"]), found
        (gpu,) = kind.made
        assert gpu.captured
        assert gpu.replayed >= gpu.captured
        backend.close()
        assert gpu.closed
        assert gpu.dropped == gpu.captured

    def test_skipped_tokens_reach_the_pooling(self, bundle, canary, monkeypatch):
        stand_in(monkeypatch)
        batch = canary.batch.take(range(4))
        skip = np.array([0, 2, 1, 0], np.int32)
        backend = CudaBackend(bundle)
        whole = backend.run(batch).vectors
        skipping = backend.run(Packed(batch.ids, batch.starts, skip)).vectors
        np.testing.assert_array_equal(whole[[0, 3]], skipping[[0, 3]])
        assert np.abs(whole[1:3] - skipping[1:3]).max() > 1e-3

    def test_without_graphs_it_goes_on_and_says_so_once(self, bundle, canary, monkeypatch, caplog):
        kind = stand_in(monkeypatch)
        monkeypatch.setattr(kind, "fail_capture", True)
        backend = CudaBackend(bundle)
        for _ in range(4):
            assert replay(canary, backend).passes(GATES["float32"])
        assert [r.message for r in caplog.records if "without CUDA graphs" in r.message] == [
            "the GPU runs without CUDA graphs from now on: cudaStreamEndCapture failed: no"
        ]

    def test_the_oldest_graphs_go(self, bundle, monkeypatch):
        kind = stand_in(monkeypatch)
        monkeypatch.setattr("kosine.backends.cuda.backend.MAX_GRAPHS", 2)
        backend = CudaBackend(bundle)
        for _ in range(2):
            for tokens in (3, 20, 40):
                backend.run(packed([tokens]))
        assert kind.made[0].captured == 3
        assert kind.made[0].dropped == 1
        assert MAX_GRAPHS > 2

    def test_threads_take_turns(self, bundle, canary, monkeypatch):
        stand_in(monkeypatch)
        backend = CudaBackend(bundle)
        right = [backend.run(canary.batch.take([i])).vectors for i in range(8)]
        failed = []

        def work(i: int) -> None:
            for _ in range(5):
                if not np.array_equal(backend.run(canary.batch.take([i])).vectors, right[i]):
                    failed.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed

    def test_a_child_of_a_fork_is_refused(self, bundle, canary, monkeypatch):
        stand_in(monkeypatch)
        backend = CudaBackend(bundle)
        batch = canary.batch.take([0])
        backend.run(batch)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                backend.run(batch)
            except BackendUnavailable:
                backend.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        backend.run(batch)

    def test_old_gpus_are_refused(self, bundle, monkeypatch):
        kind = stand_in(monkeypatch)
        monkeypatch.setattr(kind, "capability", 75)
        with pytest.raises(BackendUnavailable, match="and later"):
            CudaBackend(bundle)
        assert kind.made[0].closed

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"dtype": "float32"}, "backend 'cuda' has no dtype 'float32'"),
            ({"device": "cpu"}, "backend 'cuda' cannot run on device 'cpu'"),
            ({"threads": 0}, "threads is 0"),
        ],
    )
    def test_what_it_has_not_is_refused(self, bundle, monkeypatch, options, says):
        stand_in(monkeypatch)
        with pytest.raises((UnknownOption, BackendUnavailable), match=says):
            CudaBackend(bundle, **options)

    def test_an_encoder_runs_on_it(self, bundle, sample, monkeypatch):
        stand_in(monkeypatch)
        encoder = kosine.load(bundle.path, backend="cuda")
        texts = ["한 남자가 기타를 치고 있다.", "비행기", ""]
        assert (encoder.backend.name, encoder.backend.dtype) == ("cuda", "float16")
        np.testing.assert_allclose(encoder.encode(texts), sample.encode(texts), atol=1e-5)


def test_without_triton_the_extra_is_named(bundle, monkeypatch):
    monkeypatch.setattr("kosine.backends.cuda.backend.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"needs Triton.*pip install 'kosine\[cuda\]'"):
        CudaBackend(bundle)


def test_asked_for_a_gpu_alone_the_extra_is_named_too(bundle, monkeypatch):
    monkeypatch.setattr("kosine.backends.cuda.backend.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'kosine\[cuda\]'"):
        make_backend(bundle, device="cuda")


def test_without_a_gpu_it_is_refused(bundle):
    pytest.importorskip("triton", reason="kosine[cuda] is not installed")
    if not missing_gpu():
        pytest.skip("there is a GPU")
    with pytest.raises((BackendUnavailable, MissingExtra)):
        make_backend(bundle, backend="cuda")


def test_kernels_give_the_references_vectors_in_tritons_interpreter():
    pytest.importorskip("triton", reason="kosine[cuda] is not installed")
    pytest.importorskip("torch", reason="Triton's interpreter needs it")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "interpreted_checks.py"],
        cwd=TESTS,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3_000:] + ran.stderr[-1_000:]


@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_kernels_compile_without_a_gpu(architecture):
    pytest.importorskip("triton", reason="kosine[cuda] is not installed")
    from kosine_kernels.cuda.compiling import compile_kernel

    heads = {"HEADS": 4, "KV_HEADS": 2, "HEAD": 64}
    for tile, keys in ((16, 16), (64, 64), (128, 64)):
        kernel = compile_kernel(
            "attention",
            {
                **heads,
                "ROWS": tile,
                "KEYS": keys,
                "WINDOW": 8,
                "CAUSAL": True,
                "REACH": 0,
                "CHAINED": architecture >= 90,
            },
            dtype="bfloat16",
            architecture=architecture,
        )
        assert kernel.code[:4] == b"\x7fELF"
        assert kernel.types == (
            *("*bf16", "*i32", "*i32", "*i32", "*fp32", "*i32", "*bf16", "fp32"),
        )
        assert kernel.threads == 128
        assert 0 < kernel.shared < 100_000


def on_gpu(function):
    for mark in needs(missing_gpu()):
        function = mark(function)
    return function


@on_gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tile", [16, 64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_on_a_gpu_are_the_references(kind, tile, dtype):
    limit = 2e-3 if dtype == "float16" else 1.6e-2
    for lengths in (FEW, MORE):
        gpu = KernelDevice(0)
        difference, norms = errors(gpu, KINDS[kind](), lengths, tile, dtype)
        gpu.close()
        assert np.median(difference) < limit
        assert difference.max() < 2 * limit
        assert norms.max() < 2 * limit


@on_gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_canary_passes_on_a_gpu(bundle, canary, dtype):
    backend = CudaBackend(bundle, dtype=dtype)
    for _ in range(3):  # at once, captured, replayed
        found = replay(canary, backend)
        assert found.passes(GATES[dtype]), found
    assert backend._graphs
    backend.close()


@on_gpu
def test_large_batches_and_threads_give_the_vectors_of_small_ones(bundle, canary):
    backend = CudaBackend(bundle)
    alone = np.concatenate([backend.run(canary.batch.take([i])).vectors for i in range(16)])
    many = canary.batch.take(np.arange(6_000) % 16)
    assert many.num_tokens > 3 * PIECE_TOKENS
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(backend.run(many).vectors)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for vectors in found:
        assert (vectors * alone[np.arange(6_000) % 16]).sum(axis=1).min() > 0.99999
    backend.close()


@on_gpu
def test_auto_takes_it_on_a_gpu(bundle):
    encoder = kosine.load(bundle.path, device="cuda")
    assert (encoder.backend.name, encoder.backend.dtype) == ("cuda", "float16")
    assert encoder.encode("비행기").shape == (bundle.manifest.dim,)
