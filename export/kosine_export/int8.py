"""Weights of signed bytes for the native engine, and which products bear inputs of bytes.

What is hard to round is shared between an input and its weights (`smoothing`), and weights are
rounded with their inputs in view (`rounding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.backends.lowering import lower
from kosine.batching import split_batches
from kosine.bundle.int8 import Int8Weights
from kosine.packed import Float32, Packed
from kosine.positions import position_ids
from kosine.spec import EncoderSpec
from kosine_export.rounding import round_weight
from kosine_export.smoothing import ATTENTION_COUNT, WEIGHTS_COUNT, smoothing_factors
from kosine_kernels import reference
from kosine_kernels.quantized import multiply, products, quantize_rows
from kosine_kernels.steps import Attention, FeedForward, Step

__all__ = ["MAX_ERROR", "quantize_layers"]

# A product that bears bytes errs by about 1 %, as rounding two sides to 8 bits must. Errors of
# products add up squared, so one of 5 % does the harm of 25 of these: half of a 12-layer encoder's.
MAX_ERROR = 0.05
# The numpy reference runs these: of longer texts the beginning, of more texts every second, ...
MAX_TOKENS, MAX_LENGTH, BATCH_TOKENS = 8_192, 512, 1_024
PROBE_ROWS = 384


class _Input:
    """What was seen of a product's input."""

    def __init__(self) -> None:
        self.largest: Any = np.float32(0)
        self.gram: Any = np.float32(0)  # (in, in)
        self.rows: list[Float32] = []

    def add(self, x: Float32, every: int) -> None:
        self.largest = np.maximum(self.largest, np.abs(x).max(axis=0))
        self.gram = self.gram + x.T @ x
        self.rows.append(np.array(x[::every]))


def quantize_layers(
    spec: EncoderSpec, tensors: Mapping[str, Float32], batch: Packed
) -> tuple[dict[str, NDArray[Any]], Int8Weights]:
    """The arrays of `int8/weights.safetensors`, and the record of how they came about.

    Args:
        spec: One that `lower` takes.
        tensors: The float32 weights by canonical name.
        batch: Texts like those to be encoded.

    Returns:
        For each product of `products(lower(spec))` `NAME.weight` int8 (in, out) and `NAME.scale`
        float32 (out,), and for each input `NAME.smooth` float32 (in,).
    """
    steps = lower(spec)
    names = products(steps)
    batch = _sample(batch)
    inputs = _inputs(spec, steps, tensors, batch, {*names.values()})
    attention = {step.qkv for step in steps if isinstance(step, Attention)}
    readers: dict[str, list[str]] = {}
    for name, source in names.items():
        readers.setdefault(source, []).append(name)
    arrays: dict[str, NDArray[Any]] = {}
    errors: dict[str, float] = {}
    for source, sharing in readers.items():
        weights = {name: tensors[f"{name}.weight"] for name in sharing}
        seen = inputs.pop(source)
        rows = np.concatenate(seen.rows)
        smooth = smoothing_factors(
            seen.largest,
            rows,
            seen.gram,
            batch.num_tokens,
            [*weights.values()],
            ATTENTION_COUNT if source in attention else WEIGHTS_COUNT,
        )
        arrays[f"{source}.smooth"] = smooth
        in_bytes = quantize_rows(rows, smooth)
        for name, weight in weights.items():
            arrays[f"{name}.weight"], arrays[f"{name}.scale"] = found = round_weight(
                weight, smooth, seen.gram
            )
            exact = rows @ weight
            rounded = multiply(in_bytes, *found, np.zeros(weight.shape[1], np.float32))
            errors[name] = _relative_error(rounded, exact)
    kept = _bytes_only(steps, errors)
    sizes = {name: tensors[f"{name}.weight"].size for name in names}
    return arrays, Int8Weights(
        texts=len(batch),
        tokens=batch.num_tokens,
        max_error=MAX_ERROR,
        errors=errors,
        bytes_only=kept,
        bytes_only_share=sum(sizes[name] for name in kept) / sum(sizes.values()),
    )


def _sample(batch: Packed) -> Packed:
    """At most MAX_TOKENS of the tokens, of texts from all over the batch."""
    lengths = np.minimum(batch.lengths, MAX_LENGTH)
    every = max(1, -(-int(lengths.sum()) // MAX_TOKENS))
    chosen = range(0, len(batch), every)
    begins = batch.starts[chosen.start : -1 : chosen.step]
    return Packed.of([batch.ids[a : a + lengths[i]] for a, i in zip(begins, chosen, strict=True)])


def _inputs(
    spec: EncoderSpec,
    steps: Sequence[Step],
    tensors: Mapping[str, Float32],
    batch: Packed,
    names: set[str],
) -> dict[str, _Input]:
    inputs = {name: _Input() for name in names}
    every = max(1, batch.num_tokens // PROBE_ROWS)

    def observe(name: str, x: Float32) -> None:
        if name in inputs:
            inputs[name].add(x, every)

    for chosen in split_batches(batch.lengths, BATCH_TOKENS):
        part = batch.take(chosen)
        positions = position_ids(part.ids, part.starts, spec.embeddings.positions)
        reference.encode(steps, tensors, part.ids, part.starts, None, positions, observe=observe)
    return inputs


def _relative_error(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Root mean square error over root mean square; 0 where both are all zeros."""
    wide = np.asarray(exact, np.float64)
    size = float(np.sqrt(np.mean(wide * wide)))
    error = float(np.sqrt(np.mean(np.square(found - wide))))
    return error / size if size else error


def _bytes_only(steps: Sequence[Step], errors: Mapping[str, float]) -> tuple[str, ...]:
    """The products over MAX_ERROR, and those that read the same input."""
    # Written so that NaN counts.
    kept = {name for name, error in errors.items() if not error <= MAX_ERROR}
    for step in steps:
        if isinstance(step, FeedForward) and step.gate is not None:
            group = {step.up, step.gate}
            if group & kept:
                kept |= group
    return tuple(name for name in errors if name in kept)
