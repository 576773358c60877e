"""The float16 range certificate, and the negative control that it must refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import factories
from kosine.errors import ParityError
from kosine_export.certificate import check_weights
from kosine_export.export import export


def overflowing(tmp_path: Path, factor: float) -> Path:
    """A checkpoint whose first FFN reaches far beyond float16, though float32 copes."""
    checkpoint = factories.build(tmp_path / "checkpoint", family="bert", seed=3)
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if "layer.0.intermediate.dense.weight" in name:
            tensors[name] = tensors[name] * np.float32(factor)
    save_file(tensors, path, metadata={"format": "pt"})
    return checkpoint


def test_an_overflowing_ffn_is_refused(tmp_path: Path) -> None:
    checkpoint = overflowing(tmp_path, 1e5)
    with pytest.raises(ParityError, match=r"float16|weight") as caught:
        export(checkpoint, tmp_path / "half.kosine", targets=("onnx-fp16",))
    print(caught.value)
    assert not (tmp_path / "half.kosine").exists()


def test_activations_alone_are_enough_to_refuse(tmp_path: Path) -> None:
    """Weights inside the range, activations outside: the certificate must see it, not the cast."""
    checkpoint = overflowing(tmp_path, 4000.0)
    weights = load_file(checkpoint / "model.safetensors")
    assert max(np.abs(tensor).max() for tensor in weights.values()) < 65504 / 8
    with pytest.raises(ParityError, match=r"\|x\| reaches"):
        export(checkpoint, tmp_path / "half.kosine", targets=("onnx-fp16",))


def test_the_same_checkpoint_is_fine_in_float32(tmp_path: Path) -> None:
    done = export(overflowing(tmp_path, 4000.0), tmp_path / "full.kosine", targets=("onnx",))
    assert done.manifest.parity is not None
    assert done.manifest.parity["passed"]


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_decoders_are_refused_with_the_figure(family: str, tmp_path: Path) -> None:
    """Trained ones have such numbers: each sublayer norms what it reads, whatever its size."""
    path = factories.build(tmp_path / "m", family=family)
    state = load_file(path / "model.safetensors")
    for name in state:
        if name.endswith("down_proj.weight"):
            state[name] = state[name] * 2000
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    done = export(path, tmp_path / "b.kosine")
    assert done.parity["float32"].passed
    with pytest.raises(ParityError, match=r"float16 would overflow: \|x\| reaches \d{4,}"):
        export(path, tmp_path / "c.kosine", targets=("onnx-fp16",))


def test_weights_outside_the_range_are_named() -> None:
    with pytest.raises(ParityError, match=r"layers\.0\.ffn\.up\.weight"):
        check_weights({"layers.0.ffn.up.weight": np.array([[1.0, -9000.0]], np.float32)})


def test_nan_weights_do_not_slip_through() -> None:
    with pytest.raises(ParityError):
        check_weights({"w": np.array([np.nan], np.float32)})


def test_the_sample_has_room(sample_bundle: Path) -> None:
    from kosine.bundle import Bundle

    certificate = Bundle(sample_bundle).manifest.certificates["onnx-fp16"]
    print(f"largest |x| {certificate['largest']:.1f} in {certificate['tensor']}")
    assert certificate["passed"]
    assert 0 < certificate["largest"] < certificate["limit"] == 8188.0
    assert certificate["tensors"] > 100
    assert certificate["reference_cosine"] >= 0.9998
