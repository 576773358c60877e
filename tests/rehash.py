"""Changing a bundle the way someone with access to it could: contents and hashes together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from kosine.tensorfile import TensorFile, write_tensors


def rehash(bundle: Path) -> None:
    """Make the manifest's sizes and sha256 those of the files as they are now."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for artifact in manifest["artifacts"]:
        for entry in artifact["files"]:
            data = (bundle / entry["path"]).read_bytes()
            entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")


def perturb_weights(bundle: Path, name: str = "layers.1.ffn.up.weight") -> None:
    """Add noise of a few percent to one weight matrix, in place, and rehash."""
    path = bundle / "weights.safetensors"
    file = TensorFile(path)
    tensors = {key: np.array(value) for key, value in file.tensors().items() if key[0] != "_"}
    noise = np.random.default_rng(0).standard_normal(tensors[name].shape).astype(np.float32)
    tensors[name] += 0.2 * tensors[name].std() * noise
    write_tensors(path, tensors)
    rehash(bundle)
