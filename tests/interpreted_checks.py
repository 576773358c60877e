"""kosine's own GPU engine without a GPU. `test_cuda.py` runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

import numpy as np
import pytest
from interpreted_gpu import stand_in

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
        causal=False, sandwich=True, activation="gelu_tanh", shared=1, pooling="mean",
        dense=[(80, "identity", False, False), (64, "tanh", False, True)],
    ),  # fmt: skip
    "poolings": lambda: Encoder(
        pooling=("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    ),
    "dense": lambda: Encoder(
        dense=[(64, "gelu", True, True), (32, "relu", False, True), (32, "sigmoid", True, False)]
    ),
}


def run(encoder: Encoder, shape: Shape, batch: Packed, positions, gpu_kind, dtype):
    gpu = gpu_kind(0)
    forward = Forward(
        gpu, encoder.steps, encoder.tensors, hidden=hidden(encoder), dtype=dtype,
        max_tokens=shape.tokens,
    )  # fmt: skip
    buffer = np.full(shape.numbers, -7, np.int32)
    shape.fill(buffer, batch, positions)
    gpu.upload(forward.inputs, buffer.view(np.uint8), buffer.nbytes)
    forward.enqueue(shape)
    rows = np.empty((len(batch), forward.dim + 1), np.float32)
    gpu.download(rows.view(np.uint8), forward.vectors, rows.nbytes)
    return rows[:, :-1], rows[:, -1]


def hidden(encoder: Encoder) -> int:
    return encoder.tensors["layers.0.ffn.down.weight"].shape[1]


@pytest.mark.parametrize(
    ("kind", "tile", "lengths"),
    [
        *((kind, 16, FEW) for kind in KINDS),
        *((kind, 16, MORE) for kind in ("bert", "gemma")),
        *((kind, tile, MORE) for kind in ("modern", "buckets") for tile in (64, 128)),
    ],
)
def test_vectors_are_the_references(monkeypatch, kind, tile, lengths):
    encoder = KINDS[kind]()
    ids, starts, positions = encoder.batch(lengths)
    skip = np.array([n * (i % 3) // 2 for i, n in enumerate(lengths)], np.int32)
    assert (skip == lengths).any()
    batch = Packed(ids, starts, skip)
    exact = shape_of(batch.lengths, token_steps(512))
    shape = Shape(exact.tokens, exact.sentences, tile)
    vectors, norms = run(encoder, shape, batch, positions, stand_in(monkeypatch), "float16")
    wanted, found = encoder.reference(ids, starts, positions, skip)
    error = np.linalg.norm(vectors - wanted, axis=1)
    assert np.median(error) < 2e-3, error
    assert error.max() < 5e-3
    np.testing.assert_allclose(norms, found, rtol=2e-2, atol=1e-6)
