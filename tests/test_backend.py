"""The one interface that all engines have, and what is left of one that was closed."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import gpu_machine
from kosine.backend import Backend
from kosine.backends.fake import FakeBackend
from kosine.backends.native import NativeBackend
from kosine.backends.onnx import cuda as onnx_cuda
from kosine.backends.onnx.cpu import OnnxBackend
from kosine.backends.onnx.cuda import OnnxCudaBackend
from kosine.backends.tensorrt.backend import TensorRTBackend
from kosine.bundle import Bundle
from kosine.bundle.canary import Canary
from kosine.encoder import Encoder
from kosine.errors import BackendError, UnknownOption
from native_machine import needs_native


@pytest.fixture(scope="module")
def bundle(sample_bundle, tmp_path_factory):
    return Bundle(
        gpu_machine.with_plan(sample_bundle, tmp_path_factory.mktemp("plans") / "b.kosine")
    )


@pytest.fixture(scope="module")
def batch(bundle):
    return Canary.read(bundle).batch


def fake(bundle, monkeypatch, **_):  # noqa: ARG001
    return FakeBackend(bundle.manifest.dim)


def native(bundle, monkeypatch, **options):  # noqa: ARG001
    return NativeBackend(bundle, **options)


def onnx(bundle, monkeypatch, **options):  # noqa: ARG001
    return OnnxBackend(bundle, **options)


def onnx_on_a_gpu(bundle, monkeypatch, **options):
    """The CPU provider in the place of CUDA's."""
    monkeypatch.setattr(onnx_cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnx_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(OnnxCudaBackend, "_provider_options", lambda *_: {})
    return OnnxCudaBackend(bundle, dtype="float32", **options)


def tensorrt(bundle, monkeypatch, **options):
    gpu_machine.stand_in(monkeypatch)
    return TensorRTBackend(bundle, **options)


ENGINES = [pytest.param(native, marks=needs_native), onnx, onnx_on_a_gpu, tensorrt]
ON_CPU = ENGINES[:2]


@pytest.mark.parametrize("make", [fake, *ENGINES])
class TestEachBackend:
    def test_it_has_the_whole_interface(self, bundle, monkeypatch, make):
        backend = make(bundle, monkeypatch)
        assert isinstance(backend, Backend)
        assert backend.dim == bundle.manifest.dim
        assert backend.device == ("cuda:0" if make in (onnx_on_a_gpu, tensorrt) else "cpu")
        for count in (backend.threads, backend.batch_tokens):
            assert type(count) is int
            assert count >= 1
        encoder = Encoder(bundle, backend)
        assert encoder.max_batch_tokens == backend.batch_tokens
        assert encoder._tokenizer._threads == backend.threads

    def test_closed_it_refuses_and_may_be_closed_again(self, bundle, batch, monkeypatch, make):
        backend = make(bundle, monkeypatch)
        backend.run(batch)
        for _ in range(2):
            backend.close()
            with pytest.raises(BackendError, match="closed; load it again"):
                backend.run(batch)


@pytest.mark.parametrize("make", ENGINES)
def test_threads_are_those_that_were_asked_for(bundle, monkeypatch, make):
    assert make(bundle, monkeypatch, threads=1).threads == 1
    with pytest.raises(UnknownOption, match="threads is 0; 1 to 1024"):
        make(bundle, monkeypatch, threads=0)


@pytest.mark.parametrize("make", ON_CPU)
def test_closing_frees_the_engine(bundle, batch, monkeypatch, make):
    backend = make(bundle, monkeypatch)
    backend.run(batch)
    held = "_engine" if make is native else "_session"
    engine = weakref.ref(getattr(backend, held))
    assert engine() is not None
    backend.close()
    gc.collect()
    assert engine() is None


@pytest.mark.parametrize("make", ENGINES)
def test_a_call_under_way_gives_the_right_vectors_or_the_error(bundle, batch, monkeypatch, make):
    backend = make(bundle, monkeypatch)
    right = backend.run(batch).vectors
    begun, ended = threading.Semaphore(0), []

    def work():
        try:
            while True:
                begun.release()
                assert np.abs(backend.run(batch).vectors - right).max() <= 1e-6
        except BaseException as error:  # noqa: BLE001 - held against what it must be
            ended.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        assert begun.acquire(timeout=60)
    backend.close()
    for thread in threads:
        thread.join(60)
    assert [(type(error), "closed" in str(error)) for error in ended] == [(BackendError, True)] * 3


FORKING = """
import json, os, sys
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.bundle.canary import Canary
from kosine.errors import BackendError

bundle = Bundle(sys.argv[1])
batch = Canary.read(bundle).batch
backend = make_backend(bundle, backend=sys.argv[2], threads=2)
before = backend.run(batch).vectors
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    backend.close()
    try:
        backend.run(batch)
    except BackendError as error:
        os.write(writing, str(error).encode())
    sys.exit(0)
os.close(writing)
said = os.read(reading, 1000).decode()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
same = bool((backend.run(batch).vectors == before).all())
print(json.dumps([said, code, same]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("name", [pytest.param("native", marks=needs_native), "onnx"])
def test_a_child_closes_its_own(sample_bundle, name):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, str(sample_bundle), name],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said, code, same = json.loads(done.stdout)
    assert "closed" in said
    assert (code, same) == (0, True)
