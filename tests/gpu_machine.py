"""What GPU tests share: whether there is one, and stand-ins for CUDA and TensorRT without one.

The stand-ins have the methods of `kosine.backends.gpu.Cuda` and
`kosine.backends.tensorrt.engine.PlanEngine`. Their device memory is host memory at real addresses,
and the plan is the bundle's float32 `packed.onnx` in ONNX Runtime, so everything that
`TensorRTBackend` does between ids and vectors is the real thing.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from kosine.backends import gpu as cuda_module
from kosine.bundle.canary import Canary
from kosine.bundle.plans import PlanProfile, TensorRTPlan
from kosine.bundle.writing import artifact_of
from kosine.errors import BackendError, KosineError
from kosine_export.tensorrt.library import find_library

SAMPLE = Path(__file__).resolve().parent.parent / "export" / "sample"
VERSION = "99.1"
ARCHITECTURE = "8.6"
PROFILES = (
    PlanProfile(32, 1, 1, 1, 1),
    PlanProfile(32, 1, 4, 6, 4),
    PlanProfile(128, 1, 2, 4, 8),
)


@functools.cache
def missing_gpu() -> str:
    """Why CUDA cannot be used here, or ""."""
    try:
        cuda_module.Cuda(0).close()
    except KosineError as error:
        return str(error)
    return ""


@functools.cache
def missing_provider() -> str:
    """Why ONNX Runtime cannot use a GPU here, or ""."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return f"this onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider"
    driver = any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/dxg"))
    return "" if driver else "there is no NVIDIA GPU"


@functools.cache
def missing_tensorrt() -> str:
    """Why no plan for the GPU of this machine can be built here, or ""."""
    if missing_gpu():
        return missing_gpu()
    gpu = cuda_module.Cuda(0)
    try:
        find_library().architectures((gpu.architecture,))
    except KosineError as error:
        return str(error)
    finally:
        gpu.close()
    return ""


def needs(missing: str) -> list[Any]:
    """Marks of a test that needs a GPU: `gpu`, and a skip that says what is missing."""
    return [pytest.mark.gpu, pytest.mark.skipif(bool(missing), reason=missing)]


def with_plan(bundle: Path, copy: Path, **changes: Any) -> Path:
    """A copy of a bundle with a plan file (of no sense to TensorRT) and its description."""
    shutil.copytree(bundle, copy)
    name = "tensorrt/test.plan"
    (copy / "tensorrt").mkdir()
    (copy / name).write_text(str(copy / "packed.onnx"), encoding="utf-8")
    plan = TensorRTPlan(
        **{
            "path": name,
            "flavour": "tensorrt",
            "version": VERSION,
            "architectures": (ARCHITECTURE,),
            "profiles": PROFILES,
            **changes,
        }
    )
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    artifact = artifact_of(copy, "tensorrt-fp16", "float16", [name])
    manifest["artifacts"].append(asdict(artifact))
    manifest["plans"] = [asdict(plan)]
    path.write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    return copy


@dataclass
class Enqueued:
    """What a context would compute, with the shapes and addresses that it was captured with."""

    context: FakeContext
    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int]


class FakeCuda:
    """Host memory at real addresses; a stream that does things at once; graphs as lists."""

    name = "a stand-in"
    architecture = ARCHITECTURE
    stream = 7
    made: list[FakeCuda] = []  # noqa: RUF012
    fail_capture = False

    def __init__(self, index: int) -> None:
        self.index = index
        self.memory: dict[int, np.ndarray] = {}
        self.capturing: list[Enqueued] | None = None
        self.graphs: dict[int, list[Enqueued]] = {}
        self.captured = self.replayed = 0
        self.busy = False
        self.closed = False
        self.made.append(self)

    def activate(self) -> None:
        assert not self.closed

    def allocate(self, nbytes: int) -> int:
        block = np.full(nbytes + 256, 0xAB, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % 256
        self.memory[address] = block
        return address

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.full(nbytes, 0xCD, np.uint8)

    def upload(self, address: int, host: np.ndarray, nbytes: int) -> None:
        self._alone()
        assert nbytes <= len(host)
        ctypes.memmove(address, host.ctypes.data, nbytes)

    def download(self, host: np.ndarray, address: int, nbytes: int) -> None:
        assert nbytes <= len(host)
        ctypes.memmove(host.ctypes.data, address, nbytes)

    def synchronize(self) -> None:
        assert self.capturing is None
        self.busy = False

    def capture(self, enqueue: Any) -> int:
        self.capturing = []
        try:
            enqueue()
            if self.fail_capture:
                raise BackendError("cudaStreamEndCapture failed: no\nmore")
            self.captured += 1
            self.graphs[self.captured] = self.capturing
        finally:
            self.capturing = None
        return self.captured

    def replay(self, graph: int) -> None:
        self.replayed += 1
        for work in self.graphs[graph]:
            # As CUDA does: whatever the context was told since, the graph knows the old state.
            assert not work.context.closed
            assert work.context.bound == (work.shapes, work.addresses)
            work.context.compute(work)

    def drop(self, graph: int) -> None:
        del self.graphs[graph]

    def close(self) -> None:
        self.memory.clear()
        self.closed = True

    def submit(self, work: Enqueued) -> None:
        if self.capturing is None:
            work.context.compute(work)
        else:
            self.capturing.append(work)

    def _alone(self) -> None:
        """One call at a time between an upload and the end of the stream's work."""
        assert not self.busy, "two threads on one stream"
        self.busy = True


class FakeEngine:
    """`PlanEngine` over a graph: what it gets for a plan is that graph's path."""

    def __init__(self, _module: Any, data: bytes, plan: TensorRTPlan, cuda: FakeCuda) -> None:
        self.plan = plan
        self.cuda = cuda
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            data.decode(), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {node.name: np.dtype(np.int64) for node in self.session.get_inputs()}
        self.contexts: list[FakeContext] = []

    def context(self, profile: int) -> FakeContext:
        self.contexts.append(FakeContext(self, profile))
        return self.contexts[-1]

    def parts(self) -> tuple[object, ...]:
        return (self.session,)

    def close(self) -> None:
        assert all(context.closed for context in self.contexts)
        self.session = None


class FakeContext:
    def __init__(self, engine: FakeEngine, profile: int) -> None:
        self.engine = engine
        self.profile = engine.plan.profiles[profile]
        self.bound: tuple[dict[str, Any], dict[str, int]] = ({}, {})
        self.closed = False

    def bind(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        rows, width = shapes["input_ids"]
        assert width == self.profile.width
        assert self.profile.min_rows <= rows <= self.profile.max_rows
        assert shapes["slots"][0] <= self.profile.max_slots
        assert shapes["sentence_index"][0] <= rows * self.profile.max_slots
        assert all(address % 256 == 0 for address in addresses.values())
        self.bound = (dict(shapes), dict(addresses))

    def enqueue(self) -> None:
        self.engine.cuda.submit(Enqueued(self, *self.bound))

    def compute(self, work: Enqueued) -> None:
        feed = {
            name: at(work.addresses[name], shape, ctypes.c_int64)
            for name, shape in work.shapes.items()
        }
        for name, found in zip(
            ("vectors", "norms"), self.engine.session.run(None, feed), strict=True
        ):
            at(work.addresses[name], found.shape, ctypes.c_float)[...] = found

    def parts(self) -> tuple[object, ...]:
        return ()

    def close(self) -> None:
        self.closed = True


def at(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((kind * size).from_address(address)).reshape(shape)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[FakeCuda]:
    """Put the stand-ins in the places of CUDA and TensorRT."""
    kind = type("StandIn", (FakeCuda,), {"made": []})
    module = SimpleNamespace(__version__=VERSION)
    monkeypatch.setattr("kosine.backends.tensorrt.backend.Cuda", kind)
    monkeypatch.setattr("kosine.backends.tensorrt.backend.PlanEngine", FakeEngine)
    monkeypatch.setattr(
        "kosine.backends.tensorrt.selection.import_module", lambda name: {"tensorrt": module}[name]
    )
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "kosine.backends.tensorrt.selection.importlib.util.find_spec",
        lambda name, *rest: module if name == "tensorrt" else find(name, *rest),
    )
    return kind


def batches(canary: Canary, count: int, seed: int = 0):
    """(indices, batch) of random sizes."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        indices = random.choice(len(canary.batch), random.integers(1, 40))
        yield indices, canary.batch.take(indices)
