"""How far bfloat16 is from PyTorch's float32 after each layer, in kosine's native engine and in
PyTorch itself: random weights, a published size but for the vocabulary. Outside `make test`.

    python tests/layer_trial.py gte-multilingual-base FOLDER [--gain 0.8] [--lengths 2,128]

`gain`: a linear layer's output has that many times the deviation of its input; 1.2 is that of all
checkpoints of `factories`. Prints a line of JSON; runs so far: bench/results/full-size/.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import factories
from full_size_trial import MODELS
from kosine.backends.lowering import lower
from kosine.positions import position_ids
from kosine_export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from kosine_kernels.engine import Engine
from kosine_kernels.steps import FeedForward, Norm, Pool

FACTORIES_GAIN = 1.2


def make(name: str, folder: Path, gain: float) -> Path:
    """The checkpoint with its linear layers scaled, but for what norms and tables hold."""
    from safetensors.numpy import load_file, save_file

    family, config, pooling, _, longest = MODELS[name]
    path = factories.build(
        folder / f"{name}-layers",
        family=family,
        pooling=pooling,
        max_length=longest,
        generation="5.4",
        sizes={key: value for key, value in config.items() if key != "vocab_size"},
        layout="transformers" if family == "gte" else "packed",
    )
    tensors = load_file(path / "model.safetensors")
    for key, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in key:
            tensor *= gain / FACTORIES_GAIN
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def of_pytorch(path: Path, dtype: str, ids: np.ndarray) -> list[np.ndarray]:
    """(T, hidden) after each layer."""
    import torch
    from transformers import AutoModel

    attention = {"attn_implementation": "eager"}
    model = AutoModel.from_pretrained(path, dtype=getattr(torch, dtype), **attention).eval()
    row = torch.tensor(ids[None].astype(np.int64))
    with torch.inference_mode():
        found = model(row, attention_mask=torch.ones_like(row), output_hidden_states=True)
    return [state[0].float().numpy() for state in found.hidden_states[1:]]


def of_kosine(checkpoint: Checkpoint, dtype: str, ids: np.ndarray) -> list[np.ndarray]:
    """The same, of an engine cut off after each layer; after the last one its final norm too."""
    steps = lower(checkpoint.spec)
    (pool,) = [i for i, step in enumerate(steps) if isinstance(step, Pool)]
    starts = np.array([0, len(ids)], np.int32)
    positions = position_ids(ids, starts, checkpoint.spec.embeddings.positions)
    layers = []
    for at, step in enumerate(steps):
        if isinstance(step, FeedForward):
            end = at + 1
            while isinstance(steps[end], Norm) and not steps[end].keeps_x:
                end += 1
            engine = Engine(checkpoint.tensors, [*steps[:end], steps[pool]], dtype=dtype)
            states = np.empty((len(ids), checkpoint.spec.hidden_size), np.float32)
            engine.forward(ids, starts, positions, None, states)
            layers.append(states)
    return layers


def errors(found: list[np.ndarray], true: list[np.ndarray]) -> list[float]:
    """|found - true| / |true| after each layer."""
    pairs = zip(found, true, strict=True)
    return [float(f"{np.linalg.norm(a - b) / np.linalg.norm(b):.2g}") for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=tuple(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gain", type=float, default=FACTORIES_GAIN)
    parser.add_argument("--lengths", default="2,128")
    args = parser.parse_args()
    path = make(args.model, args.folder, args.gain)
    checkpoint = read_checkpoint(path)
    line: dict[str, Any] = {"step": "layers", "model": args.model, "gain": args.gain}
    rng = np.random.default_rng(0)
    for length in map(int, args.lengths.split(",")):
        drawn = rng.integers(5, checkpoint.spec.embeddings.vocab_size, length - 2)
        ids = np.concatenate([[0], drawn, [2]]).astype(np.int32)
        true = of_pytorch(path, "float32", ids)
        line[f"{length} tokens"] = {
            "kosine_float32": errors(of_kosine(checkpoint, "float32", ids), true),
            "kosine_bfloat16": errors(of_kosine(checkpoint, "bfloat16", ids), true),
            "pytorch_bfloat16": errors(of_pytorch(path, "bfloat16", ids), true),
        }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
