"""The canary of a new bundle."""

from __future__ import annotations

from kosine.backends.lowering import lower
from kosine.bundle.canary import Canary, mean_vector
from kosine.encoder import Encoder
from kosine.packed import Float32, Packed
from kosine.positions import position_ids
from kosine_export.checkpoint.checkpoint import Checkpoint
from kosine_export.parity.referee import Referee
from kosine_export.parity.token_ids import usable
from kosine_export.texts import canary_texts
from kosine_export.tokenizer.unicode_form import in_unicode_form
from kosine_kernels import reference

__all__ = ["make_canary"]


def make_canary(encoder: Encoder, referee: Referee | None, checkpoint: Checkpoint) -> Canary:
    """The canary texts with the referee's vectors, or the numpy reference's where there is none."""
    texts = usable(encoder, canary_texts(), referee)
    batch = encoder.prepare(texts, prompt="").batch
    if referee is None:
        vectors = _reference_vectors(checkpoint, batch)
    else:
        vectors = referee.encode(in_unicode_form(texts, encoder.manifest.unicode))
    return Canary(tuple(texts), batch, vectors, mean_vector(vectors))


def _reference_vectors(checkpoint: Checkpoint, batch: Packed) -> Float32:
    """The numpy reference's unit vectors."""
    vectors, _ = reference.encode(
        lower(checkpoint.spec),
        checkpoint.tensors,
        batch.ids,
        batch.starts,
        batch.skip,
        position_ids(batch.ids, batch.starts, checkpoint.spec.embeddings.positions),
    )
    return vectors
