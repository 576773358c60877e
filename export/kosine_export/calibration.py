"""The texts that ranges of int8 and uint8 vectors, and weights of bytes, are made with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from kosine.batching import split_batches
from kosine.commands.options import read_texts
from kosine.encoder import Encoder
from kosine.errors import InputError
from kosine.packed import Float32, Packed
from kosine.tokenizer import Tokenizer

__all__ = [
    *("MAX_CALIBRATION", "MIN_CALIBRATION", "calibration_batches", "calibration_vectors"),
    "read_calibration",
]

# Fewer texts tell no standard deviation; more tell it no better, and only take time.
MIN_CALIBRATION, MAX_CALIBRATION = 32, 10_000


def read_calibration(given: str | Path | Iterable[str]) -> list[str]:
    """At most MAX_CALIBRATION of the texts, from all over them."""
    texts = list(read_texts(str(given)) if isinstance(given, str | Path) else given)
    different = len({text for text in texts if isinstance(text, str) and text.strip()})
    if different < MIN_CALIBRATION:
        raise InputError(
            f"{different} different texts to calibrate with, blank ones aside",
            limit=f"at least {MIN_CALIBRATION}",
            remedy="give some hundreds of texts like those to be encoded, or leave --calibrate out",
        )
    return texts[:: -(-len(texts) // MAX_CALIBRATION)]


def calibration_batches(
    encoder: Encoder, texts: Sequence[str], prompts: Iterable[str]
) -> list[Packed]:
    """The texts alone, and after the prompts in turn: a prompt moves all vectors."""
    prompts = [prompt for prompt in prompts if prompt]
    parts = [("", texts)]
    parts += [(prompt, texts[i :: len(prompts)]) for i, prompt in enumerate(prompts)]
    # Not by `encode`, which would warn of the tokens that the vocabulary lacks.
    tokenizer = Tokenizer(encoder.bundle)
    return [tokenizer.tokenize(part, prompt).batch for prompt, part in parts]


def calibration_vectors(encoder: Encoder, batches: Iterable[Packed]) -> Float32:
    """(n, dim) vectors of what `calibration_batches` gave."""
    return np.concatenate(
        [
            encoder.finish(encoder.compute(batch.take(chosen)))
            for batch in batches
            for chosen in split_batches(batch.lengths, encoder.max_batch_tokens)
        ]
    )
