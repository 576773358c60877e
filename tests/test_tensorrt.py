"""The TensorRT backend: everything but the GPU itself runs here on stand-ins."""

from __future__ import annotations

import gc
import json
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import kosine
from gpu_machine import (
    ARCHITECTURE,
    PROFILES,
    SAMPLE,
    batches,
    missing_tensorrt,
    needs,
    stand_in,
    with_plan,
)
from kosine.backend import Backend
from kosine.backends import gpu as cuda_module
from kosine.backends.onnx.cpu import OnnxBackend
from kosine.backends.tensorrt import backend as backend_module
from kosine.backends.tensorrt.backend import TensorRTBackend
from kosine.bundle import Bundle
from kosine.bundle.canary import Canary, replay
from kosine.errors import (
    BackendError,
    BackendUnavailable,
    PlanMismatch,
)
from kosine.packed import Packed
from kosine_export.export import export


@pytest.fixture(scope="module")
def planned(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(with_plan(sample_bundle, tmp_path_factory.mktemp("plans") / "b.kosine"))


@pytest.fixture(scope="module")
def canary(planned: Bundle) -> Canary:
    return Canary.read(planned)


@pytest.fixture(scope="module")
def right(planned: Bundle, canary: Canary):
    return OnnxBackend(planned).run(canary.batch)


@pytest.fixture
def machine(monkeypatch):
    """CUDA and TensorRT of no real GPU; the class holds what was made."""
    return stand_in(monkeypatch)


class TestRun:
    def test_vectors_and_norms_are_those_of_onnx_runtime(self, machine, planned, canary, right):
        backend = TensorRTBackend(planned)
        assert isinstance(backend, Backend)
        assert (backend.name, backend.dtype) == ("tensorrt", "float16")
        assert backend.dim == right.vectors.shape[1]
        for indices, batch in [(np.arange(len(canary.batch)), canary.batch), *batches(canary, 30)]:
            found = backend.run(batch)
            assert np.abs(found.vectors - right.vectors[indices]).max() <= 1e-6
            np.testing.assert_allclose(found.norms, right.norms[indices], rtol=1e-5)
            assert found.vectors.dtype == found.norms.dtype == np.float32
        (cuda,) = machine.made
        assert cuda.captured
        assert cuda.replayed

    def test_a_shape_is_captured_the_second_time_and_replayed_from_then_on(
        self, machine, planned, canary, right
    ):
        backend = TensorRTBackend(planned)
        (cuda,) = machine.made
        counts = []
        for i in range(5):
            found = backend.run(canary.batch.take([i]))
            assert np.abs(found.vectors[0] - right.vectors[i]).max() <= 1e-6
            counts.append((cuda.captured, cuda.replayed))
        short = canary.batch.lengths[:5].max() <= 32
        assert short, "these texts must share a width"
        assert counts == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]

    def test_graphs_that_were_not_used_for_long_go(
        self, machine, planned, canary, right, monkeypatch
    ):
        monkeypatch.setattr(backend_module, "MAX_GRAPHS", 2)
        backend = TensorRTBackend(planned)
        (cuda,) = machine.made
        for indices, batch in batches(canary, 60):
            found = backend.run(batch)
            assert np.abs(found.vectors - right.vectors[indices]).max() <= 1e-6
            assert len(cuda.graphs) <= 2
        assert cuda.captured > 2
        living = [context for context in backend._engine.contexts if not context.closed]
        assert len(living) == len(PROFILES) + len(cuda.graphs)

    def test_a_failed_capture_is_said_once_and_everything_goes_on(
        self, machine, planned, canary, right, caplog
    ):
        machine.fail_capture = True
        backend = TensorRTBackend(planned)
        for indices, batch in batches(canary, 20):
            found = backend.run(batch)
            assert np.abs(found.vectors - right.vectors[indices]).max() <= 1e-6
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 1
        assert "without CUDA graphs" in warnings[0]
        assert "\n" not in warnings[0]
        assert not machine.made[0].replayed

    @pytest.mark.usefixtures("machine")
    def test_threads_take_turns(self, planned, canary, right):
        backend = TensorRTBackend(planned)

        def work(seed):
            worst = 0.0
            for indices, batch in batches(canary, 15, seed):
                found = backend.run(batch)
                worst = max(worst, float(np.abs(found.vectors - right.vectors[indices]).max()))
            return worst

        with ThreadPoolExecutor(4) as pool:
            assert max(pool.map(work, range(4))) <= 1e-6

    def test_encoders_have_streams_and_memory_of_their_own(self, machine, planned, canary, right):
        backends = [TensorRTBackend(planned) for _ in range(3)]
        assert len({address for cuda in machine.made for address in cuda.memory}) == sum(
            len(cuda.memory) for cuda in machine.made
        )
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(lambda backend: backend.run(canary.batch), backends * 2))
        for found in results:
            assert np.abs(found.vectors - right.vectors).max() <= 1e-6

    def test_no_memory_is_taken_after_loading(self, machine, planned, canary):
        backend = TensorRTBackend(planned)
        (cuda,) = machine.made
        before = set(cuda.memory)
        for _, batch in batches(canary, 20):
            backend.run(batch)
        assert set(cuda.memory) == before

    @pytest.mark.usefixtures("machine")
    def test_the_same_text_among_other_neighbours(self, planned, canary):
        backend = TensorRTBackend(planned)
        alone = backend.run(canary.batch.take([3])).vectors[0]
        for indices, batch in batches(canary, 10):
            found = backend.run(batch.take([*range(len(indices))])).vectors
            for at in np.flatnonzero(indices == 3):
                assert np.abs(found[at] - alone).max() <= 1e-6

    @pytest.mark.usefixtures("machine")
    def test_a_text_longer_than_the_widest_profile(self, planned):
        backend = TensorRTBackend(planned)
        with pytest.raises(BackendError, match="129 tokens; the widest profile holds 128"):
            backend.run(Packed.of([[5] * 129]))


class TestClosing:
    def test_close_frees_and_later_calls_are_typed(self, machine, planned, canary):
        backend = TensorRTBackend(planned)
        for _ in range(3):
            backend.run(canary.batch)
        (cuda,) = machine.made
        backend.close()
        backend.close()
        assert cuda.closed
        assert not cuda.graphs
        with pytest.raises(BackendError, match="closed"):
            backend.run(canary.batch)

    def test_a_backend_that_nobody_holds_frees_its_memory(self, machine, planned):
        backend = TensorRTBackend(planned)
        gone = weakref.ref(backend)
        del backend
        gc.collect()
        assert gone() is None
        assert machine.made[0].closed

    @pytest.mark.parametrize("kind", [BackendError, RuntimeError])
    def test_what_fails_while_loading_frees_its_memory(self, machine, planned, monkeypatch, kind):
        def refuse(*_):
            raise kind("cannot load")

        monkeypatch.setattr(backend_module, "PlanEngine", refuse)
        with pytest.raises(BackendError, match="cannot load"):
            TensorRTBackend(planned)
        assert machine.made[0].closed

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    def test_a_child_gets_a_typed_error_and_leaves_the_parent_alone(
        self, machine, planned, canary, right
    ):
        backend = TensorRTBackend(planned)
        held, let_go = threading.Event(), threading.Event()

        def hold():
            with backend._lock:
                held.set()
                let_go.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                backend.run(canary.batch)
                said = "ran"
            except BackendUnavailable as error:
                said = str(error)
            backend.close()
            os.write(writing, json.dumps([said, machine.made[0].closed]).encode())
            os._exit(0)
        os.close(writing)
        message = os.read(reading, 65536)
        os.close(reading)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        let_go.set()
        thread.join()
        said, closed = json.loads(message)
        assert "inherited by" in said
        assert "load the encoder in the child" in said
        assert not closed
        assert np.abs(backend.run(canary.batch).vectors - right.vectors).max() <= 1e-6


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "sample.kosine"
    export(SAMPLE, path, targets=("onnx", "onnx-fp16", "tensorrt-fp16"))
    return path


@pytest.fixture(scope="module")
def encoder(real):
    return kosine.load(real, backend="tensorrt")


@pytest.fixture(scope="module")
def reference(real):
    return Canary.read(Bundle(real))


class TestOnAGpu:
    pytestmark = needs(missing_tensorrt())

    def test_parity(self, encoder, reference):
        for _ in range(4):  # plain, captured, replayed
            found = replay(reference, encoder.backend)
            print(f"TensorRT against float32: min cosine {found.min_cosine:.6f}")
            assert found.min_cosine >= 0.9998
            assert found.max_norm_error <= 1e-6
        for i in range(len(reference.batch)):
            one = encoder.backend.run(reference.batch.take([i])).vectors[0]
            assert float(one @ reference.vectors[i]) >= 0.9998

    def test_neighbours_do_not_matter(self, encoder, reference):
        whole = encoder.backend.run(reference.batch).vectors
        for indices, batch in batches(reference, 40):
            found = encoder.backend.run(batch).vectors
            assert np.sum(found * whole[indices], axis=1).min() >= 0.9999

    def test_threads_and_encoders_together(self, real, encoder, reference):
        backends = [encoder.backend, kosine.load(real, backend="tensorrt").backend] * 3
        with ThreadPoolExecutor(6) as pool:
            results = pool.map(
                lambda pair: [
                    (indices, pair[1].run(batch).vectors)
                    for indices, batch in batches(reference, 20, pair[0])
                ],
                enumerate(backends),
            )
        for indices, vectors in (each for result in results for each in result):
            assert np.sum(vectors * reference.vectors[indices], axis=1).min() >= 0.9998

    def test_memory_is_flat(self, encoder, reference):
        runtime = cuda_module.cuda_runtime()
        free = []
        for _ in range(2):
            for _, batch in batches(reference, 200):
                encoder.backend.run(batch)
            free.append(runtime.cudaMemGetInfo()[1])
        assert free[0] - free[1] <= 16 << 20

    def test_a_plan_for_another_gpu(self, real, tmp_path):
        here = Bundle(real).manifest.plans[0]
        other = with_plan(
            real, tmp_path / "b.kosine", flavour=here.flavour, version=here.version,
            architectures=("7.0",), path="tensorrt/test.plan",
        )  # fmt: skip
        with pytest.raises(PlanMismatch, match="compute capability"):
            kosine.load(other, backend="tensorrt")


def test_the_stand_in_profile_is_as_wide_as_the_sample(planned):
    assert max(profile.width for profile in PROFILES) >= planned.manifest.max_tokens
    assert ARCHITECTURE in planned.manifest.plans[0].architectures
