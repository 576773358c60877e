"""What tests of kosine's own GPU engine share: encoders of every kind, and one run of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from kosine.backends.cuda.forward import Forward
from kosine.backends.cuda.shape import Shape, shape_of, token_steps
from kosine.packed import Packed
from native_machine import Encoder

# Few tokens run in narrow products, more in cuBLASLt's.
FEW, MORE = [5, 1, 17, 2], [16, 17, 33, 2, 1, 9]
KINDS = {
    "bert": lambda: Encoder(),
    "wide heads": lambda: Encoder(heads=1, head_size=128, hidden=48, inner=80),
    "projected": lambda: Encoder(embedding=32, types=0),
    "buckets": lambda: Encoder(buckets=[*([0] * 5), *range(1, 8), *([8] * 5)]),
    "modern": lambda: Encoder(modern=True, layers=3),
    "decoder": lambda: Encoder.decoder(),
    "gemma": lambda: Encoder.decoder(
        causal=False,
        sandwich=True,
        activation="gelu_tanh",
        shared=1,
        pooling="mean",
        dense=[(80, "identity", False, False), (64, "tanh", False, True)],
    ),
    "poolings": lambda: Encoder(
        pooling=("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    ),
    "dense": lambda: Encoder(
        dense=[(64, "gelu", True, True), (32, "relu", False, True), (32, "sigmoid", True, False)]
    ),
}


def errors(
    gpu: Any, encoder: Encoder, lengths: list[int], tile: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """How far vectors are from the reference's, and norms by their share."""
    ids, starts, positions = encoder.batch(lengths)
    skip = np.array([n * (i % 3) // 2 for i, n in enumerate(lengths)], np.int32)
    assert (skip == lengths).any()
    batch = Packed(ids, starts, skip)
    exact = shape_of(batch.lengths, token_steps(512))
    shape = Shape(exact.tokens, exact.sentences, tile)
    forward = Forward(
        gpu,
        encoder.steps,
        encoder.tensors,
        hidden=encoder.tensors["layers.0.ffn.down.weight"].shape[1],
        dtype=dtype,
        max_tokens=shape.tokens,
    )
    buffer, found = gpu.pinned(forward.input_bytes), gpu.pinned(forward.vector_bytes)
    shape.fill(buffer.view(np.int32)[: shape.numbers], batch, positions)
    gpu.upload(forward.inputs, buffer, 4 * shape.numbers)
    forward.enqueue(shape)
    gpu.download(found, forward.vectors, 4 * (forward.dim + 1) * len(batch))
    gpu.synchronize()
    rows = found.view(np.float32)[: (forward.dim + 1) * len(batch)].reshape(len(batch), -1)
    wanted, norms = encoder.reference(ids, starts, positions, skip)
    difference = np.linalg.norm(rows[:, :-1] - wanted, axis=1)
    forward.close()
    return difference, np.abs(rows[:, -1] - norms) / np.maximum(norms, 1)
