"""Changing a bundle the way someone with access to it could: contents and hashes together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.bundle.tensorfile import TensorFile, write_tensors


def rehash(bundle: Path) -> None:
    """Make the manifest's sizes and sha256 those of the files as they are now."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for artifact in manifest["artifacts"]:
        for entry in artifact["files"]:
            data = (bundle / entry["path"]).read_bytes()
            entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")


def change_tensor(
    bundle: Path,
    name: str,
    change: Callable[[NDArray[Any]], NDArray[Any]],
    file: str = "weights.safetensors",
) -> None:
    """Replace a tensor by `change(tensor)`, in place, and rehash."""
    path = bundle / file
    found = TensorFile(path).tensors()
    tensors = {key: np.array(value) for key, value in found.items() if key[0] != "_"}
    tensors[name] = change(tensors[name])
    write_tensors(path, tensors)
    rehash(bundle)


def perturb_weights(bundle: Path, name: str = "layers.1.ffn.up.weight") -> None:
    """Add noise of a few percent to one weight matrix, in place, and rehash."""
    rng = np.random.default_rng(0)
    change_tensor(
        bundle,
        name,
        lambda x: x + 0.2 * x.std() * rng.standard_normal(x.shape).astype(np.float32),
    )


def rewrite_manifest(bundle: Path, copy: Path, change: Callable[[Any], object]) -> Path:
    """A copy of a bundle whose manifest went through `change`."""
    shutil.copytree(bundle, copy)
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    return copy
