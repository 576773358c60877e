"""Which plan is taken, and everything that keeps the TensorRT backend from loading."""

from __future__ import annotations

from pathlib import Path

import pytest

import kosine
from gpu_machine import PROFILES, VERSION, missing_gpu, stand_in, with_plan
from kosine.backends import gpu as cuda_module
from kosine.backends.tensorrt import backend as backend_module
from kosine.backends.tensorrt.backend import TensorRTBackend
from kosine.backends.tensorrt.selection import choose_plan
from kosine.bundle import Bundle
from kosine.bundle.plans import TensorRTPlan
from kosine.errors import (
    BackendUnavailable,
    IntegrityError,
    MissingExtra,
    MissingTarget,
    PlanMismatch,
    UnknownOption,
)


@pytest.fixture(scope="module")
def planned(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(with_plan(sample_bundle, tmp_path_factory.mktemp("plans") / "b.kosine"))


@pytest.fixture
def machine(monkeypatch):
    """CUDA and TensorRT of no real GPU; the class holds what was made."""
    return stand_in(monkeypatch)


def test_a_bundle_without_a_plan(sample_bundle):
    with pytest.raises(MissingTarget, match="no TensorRT plan") as caught:
        kosine.load(sample_bundle, backend="tensorrt")
    assert "--target tensorrt-fp16" in caught.value.remedy


def test_tensorrt_is_not_installed(planned, monkeypatch):
    monkeypatch.setattr(
        "kosine.backends.tensorrt.selection.importlib.util.find_spec", lambda _: None
    )
    with pytest.raises(MissingExtra, match="not installed") as caught:
        TensorRTBackend(planned)
    assert caught.value.remedy == "pip install 'kosine[tensorrt]'"


@pytest.mark.usefixtures("machine")
def test_tensorrt_that_cannot_be_imported(planned, monkeypatch):
    def broken(name):
        raise ImportError(f"lib{name}.so: not found\nmore")

    monkeypatch.setattr("kosine.backends.tensorrt.selection.import_module", broken)
    with pytest.raises(BackendUnavailable, match=r"libtensorrt\.so: not found") as caught:
        TensorRTBackend(planned)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1:2"])
def test_names_of_no_gpu(machine, planned, device):
    with pytest.raises(BackendUnavailable, match="cannot run on device"):
        TensorRTBackend(planned, device=device)
    assert not machine.made


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:3", 3)])
def test_names_of_a_gpu(machine, planned, device, index):
    backend = TensorRTBackend(planned, device=device)
    assert machine.made[0].index == index
    backend.close()


def test_another_dtype(planned):
    with pytest.raises(UnknownOption, match="no dtype 'float32'"):
        TensorRTBackend(planned, dtype="float32")


@pytest.mark.usefixtures("machine")
def test_a_plan_that_was_changed_is_never_deserialised(sample_bundle, tmp_path, monkeypatch):
    path = with_plan(sample_bundle, tmp_path / "b.kosine")
    bundle = Bundle(path)
    (path / "tensorrt" / "test.plan").write_bytes(b"A PLAN")
    monkeypatch.setattr(backend_module, "PlanEngine", lambda *_: pytest.fail("deserialised"))
    with pytest.raises(IntegrityError, match=r"test\.plan"):
        TensorRTBackend(bundle)


@pytest.mark.parametrize(
    "changes", [{"version": "99.2"}, {"architectures": ("8.9", "12.0")}], ids=["version", "gpu"]
)
def test_a_plan_for_another_machine(machine, sample_bundle, tmp_path, changes):
    bundle = Bundle(with_plan(sample_bundle, tmp_path / "b.kosine", **changes))
    with pytest.raises(PlanMismatch) as caught:
        TensorRTBackend(bundle)
    error = caught.value
    assert f"tensorrt {VERSION} on a stand-in (compute capability 8.6)" in error.problem
    assert ", ".join(changes.get("architectures", ())) in error.limit
    assert changes.get("version", VERSION) in error.limit
    assert "kosine export CHECKPOINT BUNDLE --target tensorrt-fp16" in error.remedy
    assert machine.made[0].closed


@pytest.mark.usefixtures("machine")
@pytest.mark.skipif(not missing_gpu(), reason="there is a GPU here")
def test_no_gpu(planned, monkeypatch):
    if not missing_gpu().startswith("CUDA cannot be used"):
        pytest.skip(missing_gpu())
    monkeypatch.setattr(backend_module, "Cuda", cuda_module.Cuda)
    with pytest.raises(BackendUnavailable, match="CUDA cannot be used here") as caught:
        TensorRTBackend(planned)
    assert "driver" in caught.value.limit


def test_no_cuda_python(monkeypatch):
    monkeypatch.setattr("kosine.backends.gpu.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="cuda-python"):
        cuda_module.Cuda(0)


def test_the_first_plan_that_fits_is_taken():
    def plan(flavour, version, *architectures):
        return TensorRTPlan(f"{flavour}.plan", flavour, version, architectures, PROFILES)

    plans = (
        plan("tensorrt", "10.13", "8.6"),
        plan("tensorrt-rtx", "1.7", "8.6", "8.9"),
        plan("tensorrt", "10.13", "9.0"),
    )
    both = {"tensorrt": "10.13", "tensorrt-rtx": "1.7"}
    assert choose_plan(plans, both, "8.6", "") is plans[0]
    assert choose_plan(plans, both, "8.9", "") is plans[1]
    assert choose_plan(plans, both, "9.0", "") is plans[2]
    assert choose_plan(plans, {"tensorrt-rtx": "1.7"}, "8.6", "") is plans[1]
    with pytest.raises(PlanMismatch):
        choose_plan(plans, {"tensorrt-rtx": "1.7"}, "9.0", "")
