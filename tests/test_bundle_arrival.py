"""Bundles as model hubs, clusters and desktops hand them out, read as if they were copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kosine
from kosine.backends.registry import make_backend
from kosine.bundle.folder import MANIFEST, Bundle
from kosine.bundle.writing import sha256_of
from kosine.errors import IntegrityError, KosineError
from rehash import perturb_weights

ENGINES = (("native", "float32"), ("onnx", "float32"), ("onnx", "float16"))
TEXTS = ["한 남자가 기타를 친다.", "A man plays.", "", "비행기가 " * 40]

# How bundles arrive: name -> (what lays one out, given a plain bundle and an empty folder)
ARRIVALS: dict[str, Callable[[Path, Path], Path]] = {}


def arrival(function: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    ARRIVALS[function.__name__] = function
    return function


def files(bundle: Path) -> list[str]:
    found = (p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())
    return sorted(found)


@arrival
def hub_cache(bundle: Path, place: Path) -> Path:
    """`huggingface_hub.snapshot_download`: each file a link to a blob named by its hash."""
    snapshot = place / "models--x--ko" / "snapshots" / "1234abcd"
    blobs = place / "models--x--ko" / "blobs"
    blobs.mkdir(parents=True)
    for name in files(bundle):
        link, blob = snapshot / name, blobs / sha256_of(bundle / name)
        shutil.copyfile(bundle / name, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (blobs / "attributes").write_text("*.onnx filter=lfs\n")
    (snapshot / ".gitattributes").symlink_to("../../blobs/attributes")
    (snapshot / "README.md").write_text("# a card\n")
    return snapshot


@arrival
def hub_folder(bundle: Path, place: Path) -> Path:
    """`snapshot_download(local_dir=...)`."""
    shutil.copytree(bundle, place / "ko")
    cache = place / "ko" / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "packed.onnx.metadata").write_text("1234abcd\n")
    (place / "ko" / ".gitattributes").write_text("*.onnx filter=lfs\n")
    return place / "ko"


@arrival
def config_map(bundle: Path, place: Path) -> Path:
    """A mounted ConfigMap: links through `..data`, itself a link that is switched."""
    mount = place / "mount"
    shutil.copytree(bundle, mount / "..2026_11_26")
    (mount / "..data").symlink_to("..2026_11_26")
    for each in (mount / "..2026_11_26").iterdir():
        (mount / each.name).symlink_to(f"..data/{each.name}")
    return mount


@arrival
def release(bundle: Path, place: Path) -> Path:
    """A link to the folder, as releases are switched."""
    shutil.copytree(bundle, place / "releases" / "7")
    (place / "current").symlink_to("releases/7")
    return place / "current"


@arrival
def desktop(bundle: Path, place: Path) -> Path:
    shutil.copytree(bundle, place / "ko.kosine")
    for name in (".DS_Store", "fp16/.DS_Store", "Thumbs.db", "desktop.ini", "packed.onnx~"):
        (place / "ko.kosine" / name).write_bytes(b"\0\0\0\1Bud1")
    return place / "ko.kosine"


@arrival
def things_that_must_not_be_opened(bundle: Path, place: Path) -> Path:
    path = place / "ko.kosine"
    shutil.copytree(bundle, path)
    os.mkfifo(path / "pipe")
    (path / "loop").symlink_to("loop")
    (path / "up").symlink_to("..")
    (path / "nothing").symlink_to("/nowhere/at/all")
    (path / "zero").symlink_to("/dev/zero")
    (path / "sitecustomize.py").write_text("raise SystemExit(1)\n")
    return path


@pytest.fixture(scope="module")
def right(sample_bundle):
    """Vectors of the plain bundle, by backend and dtype."""
    return {
        engine: kosine.load(sample_bundle, backend=engine[0], dtype=engine[1]).encode(TEXTS)
        for engine in ENGINES
    }


@pytest.mark.parametrize("kind", ARRIVALS)
def test_it_gives_the_plain_bundles_vectors(sample_bundle, right, tmp_path, kind):
    path = ARRIVALS[kind](sample_bundle, tmp_path)
    Bundle(path).verify_all()
    for (backend, dtype), vectors in right.items():
        encoder = kosine.load(path, backend=backend, dtype=dtype)
        np.testing.assert_array_equal(encoder.encode(TEXTS), vectors)
        assert encoder.fingerprint == encoder.manifest.fingerprint(backend, dtype)


@pytest.mark.parametrize("kind", ARRIVALS)
def test_a_listed_file_that_differs_is_refused(sample_bundle, tmp_path, kind):
    """In the last byte, at the end of whatever links lead to it."""
    path = ARRIVALS[kind](sample_bundle, tmp_path)
    for name in ("fp16/weights.safetensors", "packed.onnx"):
        real = (path / name).resolve()
        data = bytearray(real.read_bytes())
        real.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(IntegrityError, match=f"{name} has sha256"):
            Bundle(path).verify_all()
        real.write_bytes(data[:-1])
        with pytest.raises(IntegrityError, match=f"{name} is {len(data) - 1} bytes long"):
            Bundle(path)
        real.unlink()
        with pytest.raises(IntegrityError, match=f"{name} is missing"):
            Bundle(path)
        real.write_bytes(data)


def test_a_link_that_is_switched_while_the_bundle_is_opened(sample_bundle, tmp_path, monkeypatch):
    """The manifest of one release and the files of the next are not taken for a bundle."""
    path = ARRIVALS["config_map"](sample_bundle, tmp_path)
    perturbed = path / "..2026_11_27"
    shutil.copytree(path / "..2026_11_26", perturbed)
    perturb_weights(perturbed)
    read = Bundle._read_manifest

    def switch(self):
        raw = read(self)
        (path / "..new").symlink_to("..2026_11_27")
        (path / "..new").rename(path / "..data")
        return raw

    monkeypatch.setattr(Bundle, "_read_manifest", switch)
    with pytest.raises(IntegrityError):
        kosine.load(path, backend="onnx")
    monkeypatch.undo()
    assert kosine.load(path, backend="onnx").bundle.sha256 == sha256_of(perturbed / MANIFEST)


@pytest.mark.parametrize(
    "engine", [("native", "float32"), ("onnx", "float32"), ("onnx", "float16")]
)
def test_no_engine_opens_a_path(sample_bundle, right, tmp_path, engine):
    """The folder is gone before the engine is made, and whatever else is read comes after."""
    path = tmp_path / "ko.kosine"
    shutil.copytree(sample_bundle, path)
    bundle = Bundle(path)
    shutil.rmtree(path)
    backend = make_backend(bundle, backend=engine[0], dtype=engine[1])
    encoder = kosine.Encoder(bundle, backend)
    np.testing.assert_array_equal(encoder.encode(TEXTS), right[engine])
    assert encoder.encode(TEXTS, precision="int8", truncate_dim=32).shape == (len(TEXTS), 32)


def test_what_is_not_listed_is_not_an_artifact(sample_bundle, tmp_path):
    """A graph beside the bundle's, however good, is never run."""
    path = tmp_path / "ko.kosine"
    shutil.copytree(sample_bundle, path)
    text = (path / MANIFEST).read_text("utf-8")
    (path / MANIFEST).write_text(text.replace('"fp16/packed.onnx"', '"fp16/model2.onnx"'), "utf-8")
    shutil.copyfile(path / "fp16" / "packed.onnx", path / "fp16" / "model2.onnx")
    with pytest.raises(KosineError, match=r"no fp16/packed\.onnx"):
        kosine.load(path, backend="onnx", dtype="float16")
