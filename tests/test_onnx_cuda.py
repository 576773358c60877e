"""ONNX Runtime on a GPU: bindings, graphs and refusals, on the CPU provider where there is none."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import kosine
from gpu_machine import SAMPLE, batches, missing_provider, needs
from kosine.backend import Backend
from kosine.backends.onnx import bound as onnx_bound
from kosine.backends.onnx import cuda as onnx_cuda
from kosine.backends.onnx.cpu import OnnxBackend
from kosine.backends.onnx.cuda import LIBRARY, OnnxCudaBackend
from kosine.bundle import Bundle
from kosine.bundle.canary import Canary, replay
from kosine.errors import BackendError, BackendUnavailable, MissingTarget
from kosine_export.export import export

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def bundle(sample_bundle):
    return Bundle(sample_bundle)


@pytest.fixture(scope="module")
def canary(bundle):
    return Canary.read(bundle)


@pytest.fixture(scope="module")
def right(bundle, canary):
    return OnnxBackend(bundle).run(canary.batch)


@pytest.fixture
def on_cpu(monkeypatch):
    """The CPU provider in the place of CUDA's: it binds inputs and outputs the same way."""
    monkeypatch.setattr(onnx_cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnx_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(OnnxCudaBackend, "_provider_options", lambda *_: {})


class Recording:
    """A session that notes which graph each run names, and may fail a capture."""

    def __init__(self, session, runs, fail):
        self._inner, self._runs, self._fail = session, runs, fail

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def run_with_iobinding(self, binding, options=None):
        entry = "gpu_graph_id"
        graph = None if options is None else int(options.get_run_config_entry(entry))
        self._runs.append((threading.get_ident(), graph))
        if self._fail(graph, len(self._runs)):
            raise RuntimeError("CUDA failure 900: operation not permitted\nwhen capturing")
        self._inner.run_with_iobinding(binding, options)


@pytest.fixture
def recorded(on_cpu, monkeypatch):  # noqa: ARG001
    """(thread, graph) of each run; `recorded.fail` decides which raise."""

    class Runs(list):
        fail = staticmethod(lambda graph, number: False)  # noqa: ARG005

    runs = Runs()
    opened = OnnxCudaBackend._open
    monkeypatch.setattr(
        OnnxCudaBackend,
        "_open",
        lambda self, graphs: Recording(opened(self, graphs), runs, lambda *a: runs.fail(*a)),
    )
    return runs


@pytest.mark.usefixtures("on_cpu")
class TestBinding:
    def test_vectors_and_norms_are_those_of_the_unbound_session(self, bundle, canary, right):
        backend = OnnxCudaBackend(bundle, dtype="float32")
        assert isinstance(backend, Backend)
        assert (backend.name, backend.dtype) == ("onnx", "float32")
        for indices, batch in [(np.arange(len(canary.batch)), canary.batch), *batches(canary, 30)]:
            found = backend.run(batch)
            assert np.abs(found.vectors - right.vectors[indices]).max() <= 1e-6
            np.testing.assert_allclose(found.norms, right.norms[indices], rtol=1e-5)
            assert found.vectors.dtype == found.norms.dtype == np.float32

    def test_the_typed_float16_graph(self, bundle, canary):
        found = replay(canary, OnnxCudaBackend(bundle))
        assert found.min_cosine >= 0.9998

    def test_results_are_the_callers_own(self, bundle, canary):
        backend = OnnxCudaBackend(bundle, dtype="float32")
        first = backend.run(canary.batch.take([0]))
        kept = first.vectors.copy()
        backend.run(canary.batch.take([1]))
        backend.run(canary.batch.take([2]))
        np.testing.assert_array_equal(first.vectors, kept)

    def test_close(self, bundle, canary):
        backend = OnnxCudaBackend(bundle, dtype="float32")
        backend.close()
        backend.close()
        with pytest.raises(BackendError, match="closed"):
            backend.run(canary.batch)

    def test_a_run_that_fails_is_a_typed_error(self, bundle, canary):
        backend = OnnxCudaBackend(bundle, dtype="float32")
        beyond = canary.batch.take([0])
        beyond.ids[1] = bundle.manifest.spec.embeddings.vocab_size
        with pytest.raises(BackendError, match="failed on the GPU on rows") as caught:
            backend.run(beyond)
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    def test_a_child_gets_a_typed_error(self, bundle, canary, right):
        backend = OnnxCudaBackend(bundle, dtype="float32")
        backend.run(canary.batch)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                backend.run(canary.batch)
                said = "ran"
            except BackendUnavailable as error:
                said = str(error)
            backend.close()
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
        os.close(writing)
        said = json.loads(os.read(reading, 65536))
        os.close(reading)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert "load the encoder in the child" in said
        assert np.abs(backend.run(canary.batch).vectors - right.vectors).max() <= 1e-6


class TestGraphs:
    def test_a_shape_that_repeats_keeps_one_graph(self, recorded, bundle, canary):
        backend = OnnxCudaBackend(bundle, dtype="float32")
        for i in range(5):
            backend.run(canary.batch.take([i]))
        assert [graph for _, graph in recorded] == [-1, 1, 1, 1, 1]

    def test_there_is_a_last_graph(self, recorded, bundle, canary, right, monkeypatch):
        monkeypatch.setattr(onnx_bound, "MAX_GRAPHS", 2)
        backend = OnnxCudaBackend(bundle, dtype="float32")
        for indices, batch in batches(canary, 60):
            found = backend.run(batch)
            assert np.abs(found.vectors - right.vectors[indices]).max() <= 1e-6
        assert {graph for _, graph in recorded} == {-1, 1, 2}

    def test_one_thread_runs_whoever_calls(self, recorded, bundle, canary, right):
        backend = OnnxCudaBackend(bundle, dtype="float32")

        def work(seed):
            worst = 0.0
            for indices, batch in batches(canary, 12, seed):
                found = backend.run(batch)
                worst = max(worst, float(np.abs(found.vectors - right.vectors[indices]).max()))
            return worst

        with ThreadPoolExecutor(4) as pool:
            assert max(pool.map(work, range(4))) <= 1e-6
        assert len({thread for thread, _ in recorded}) == 1
        assert threading.get_ident() not in {thread for thread, _ in recorded}

    @pytest.mark.parametrize("at_run", [2, 3])
    def test_a_failed_capture_is_said_once(self, recorded, bundle, canary, right, caplog, at_run):
        recorded.fail = lambda graph, number: graph == 1 and number == at_run
        backend = OnnxCudaBackend(bundle, dtype="float32")
        for i in range(5):
            found = backend.run(canary.batch.take([i]))
            assert np.abs(found.vectors[0] - right.vectors[i]).max() <= 1e-6
        assert [graph for _, graph in recorded][at_run:] == [None] * (6 - at_run)
        (warning,) = (record.getMessage() for record in caplog.records)
        assert warning.endswith("without CUDA graphs: CUDA failure 900: operation not permitted")

    @pytest.mark.usefixtures("on_cpu")
    def test_a_session_that_refuses_graphs_opens_without(
        self, bundle, canary, right, caplog, monkeypatch
    ):
        opened = OnnxCudaBackend._open

        def refuse(self, graphs):
            if graphs:
                raise RuntimeError("nodes were not partitioned to the provider")
            return opened(self, graphs)

        monkeypatch.setattr(OnnxCudaBackend, "_open", refuse)
        backend = OnnxCudaBackend(bundle, dtype="float32")
        for _ in range(3):
            assert np.abs(backend.run(canary.batch).vectors - right.vectors).max() <= 1e-6
        assert ["without CUDA graphs" in r.getMessage() for r in caplog.records] == [True]


class TestRefusals:
    def test_onnxruntime_without_the_provider(self, sample_bundle, monkeypatch):
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
        )
        with pytest.raises(BackendUnavailable, match="has no CUDAExecutionProvider") as caught:
            kosine.load(sample_bundle, backend="onnx", device="cuda")
        assert caught.value.limit == "it has CPUExecutionProvider"
        assert "pip install 'kosine[gpu]'" in caught.value.remedy

    @pytest.fixture
    def pretending(self, monkeypatch):
        """An onnxruntime that lists the provider; what its sessions do is up to the test."""
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"]
        )
        monkeypatch.setattr(
            onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so"), raising=False
        )
        return lambda session: monkeypatch.setattr(onnxruntime, "InferenceSession", session)

    def test_a_provider_that_silently_does_not_start(self, bundle, pretending, capsys, caplog):
        class Silent:
            def __init__(self, *_, **options):
                assert options["enable_fallback"] == 0

            def get_providers(self):
                return ["CPUExecutionProvider"]

        pretending(Silent)
        caplog.set_level("INFO", "kosine")
        with pytest.raises(
            BackendUnavailable,
            match="could not start CUDAExecutionProvider: ",
        ) as e:
            OnnxCudaBackend(bundle)
        if not (Path(onnxruntime.__file__).parent / "capi" / LIBRARY).exists():
            assert LIBRARY in e.value.problem
        assert e.value.limit == "it would run on CPUExecutionProvider"
        assert "pip install 'kosine[gpu]'" in e.value.remedy
        assert capsys.readouterr().out == ""
        assert "libcublas" in caplog.text
        assert "without CUDA graphs" not in caplog.text

    def test_a_provider_that_raises(self, bundle, pretending):
        def refuse(*_, **__):
            raise RuntimeError("CUDA failure 35: driver version is insufficient\nat line 9")

        pretending(refuse)
        with pytest.raises(BackendUnavailable, match="CUDA failure 35") as caught:
            OnnxCudaBackend(bundle, device="cuda:1")
        assert "on cuda:1" in caught.value.problem
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda0", "cuda:-1"])
    def test_names_of_no_gpu(self, sample_bundle, device):
        with pytest.raises(BackendUnavailable, match="cannot run on device"):
            kosine.load(sample_bundle, backend="onnx", device=device)

    def test_a_bundle_without_the_target(self, tmp_path):
        path = tmp_path / "b.kosine"
        export(SAMPLE, path, targets=("onnx",))
        with pytest.raises(MissingTarget, match=r"fp16/packed\.onnx"):
            OnnxCudaBackend(Bundle(path))

    def test_no_thread_is_left_behind(self, bundle, monkeypatch):
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
        )
        before = threading.active_count()
        for _ in range(3):
            with pytest.raises(BackendUnavailable):
                OnnxCudaBackend(bundle)
        assert threading.active_count() == before


@pytest.fixture(scope="module", params=["float16", "float32"])
def backend(bundle, request):
    return OnnxCudaBackend(bundle, dtype=request.param)


class TestOnAGpu:
    pytestmark = needs(missing_provider())

    def test_parity(self, backend, canary):
        least = {"float16": 0.9998, "float32": 0.999999}[backend.dtype]
        for _ in range(4):  # plain, captured, replayed
            found = replay(canary, backend)
            print(f"CUDA {backend.dtype} against float32: min cosine {found.min_cosine:.7f}")
            assert found.min_cosine >= least
            assert found.max_norm_error <= 1e-6
        for i in range(len(canary.batch)):
            one = backend.run(canary.batch.take([i])).vectors[0].astype(np.float64)
            assert one @ canary.vectors[i].astype(np.float64) >= least - 1e-6

    def test_graphs_are_captured(self, backend, canary):
        for _ in range(3):
            backend.run(canary.batch)
        assert backend._bound.graphs
        assert backend._bound._bound

    def test_neighbours_do_not_matter(self, backend, canary):
        whole = backend.run(canary.batch).vectors
        for indices, batch in batches(canary, 40):
            found = backend.run(batch).vectors
            assert np.sum(found * whole[indices], axis=1).min() >= 0.9999

    def test_threads_and_encoders_together(self, sample_bundle, canary):
        encoders = [kosine.load(sample_bundle, backend="onnx", device="cuda") for _ in range(2)]
        assert {encoder.backend.dtype for encoder in encoders} == {"float16"}
        with ThreadPoolExecutor(6) as pool:
            results = pool.map(
                lambda pair: [
                    (indices, pair[1].backend.run(batch).vectors)
                    for indices, batch in batches(canary, 20, pair[0])
                ],
                enumerate(encoders * 3),
            )
        for indices, vectors in (each for result in results for each in result):
            assert np.sum(vectors * canary.vectors[indices], axis=1).min() >= 0.9998

    def test_memory_is_flat(self, backend, canary):
        cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
        free = []
        for _ in range(2):
            for _, batch in batches(canary, 200):
                backend.run(batch)
            free.append(cuda.cudaMemGetInfo()[1])
        assert free[0] - free[1] <= 16 << 20

    def test_a_gpu_that_is_not_there(self, bundle):
        with pytest.raises(BackendUnavailable, match="cuda:99"):
            OnnxCudaBackend(bundle, device="cuda:99")
