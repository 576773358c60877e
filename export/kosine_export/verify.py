"""A bundle against the checkpoint it came from, or against any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kosine.bundle import Bundle
from kosine.encoder import Encoder
from kosine.errors import ParityError
from kosine_export.parity.parity import Parity, measure
from kosine_export.parity.referee import Referee
from kosine_export.parity.token_ids import usable
from kosine_export.texts import parity_texts

__all__ = ["against", "compare_with", "referee_for"]


def against(
    encoder: Encoder,
    checkpoint: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    texts: Sequence[str] | None = None,
) -> Parity:
    """Compare with PyTorch on `texts`, by default the project's own.

    Raises:
        ParityError, MissingExtra, CheckpointError: As `referee_for`.
    """
    referee = referee_for(
        encoder.bundle, checkpoint, base=base, revision=revision, allow_pickle=allow_pickle
    )
    return compare_with(referee, encoder, texts)


def compare_with(referee: Referee, encoder: Encoder, texts: Sequence[str] | None) -> Parity:
    """Compare on `texts`, by default the project's own."""
    if texts is None:
        texts = usable(encoder, parity_texts(encoder.max_tokens), referee)
    return measure(encoder, referee, list(texts))


def referee_for(
    bundle: Bundle,
    checkpoint: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Referee:
    """The checkpoint in PyTorch, with the limits that the bundle's export was asked for.

    Raises:
        ParityError: The checkpoint's vectors have another length.
        MissingExtra, CheckpointError: The referee cannot be made.
    """
    # Only what the export was asked to override is overridden here: a limit that kosine misread
    # must show.
    overrides = bundle.manifest.source.get("overrides", {})
    referee = Referee(
        checkpoint,
        base=base,
        revision=revision,
        max_tokens=overrides.get("max_tokens"),
        pooling=overrides.get("pooling"),
        allow_pickle=allow_pickle,
        tokenizer=bundle.manifest.source.get("tokenizer"),
    )
    dim = referee.encode([""]).shape[1]
    if dim != bundle.manifest.dim:
        raise ParityError(
            f"the checkpoint's vectors have {dim} dimensions",
            limit=f"the bundle's have {bundle.manifest.dim}",
            remedy="compare with the checkpoint that the bundle was exported from",
        )
    return referee
