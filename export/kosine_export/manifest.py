"""What an export found, as the manifest that the runtime reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import kosine
from kosine.bundle.manifest import Architecture, Artifact, Dense, Manifest, Pooling
from kosine.bundle.plans import TensorRTPlan
from kosine_export.certificate import RangeCertificate
from kosine_export.checkpoint.checkpoint import Checkpoint
from kosine_export.parity.parity import Parity

__all__ = ["make_manifest"]


def make_manifest(
    checkpoint: Checkpoint,
    *,
    source: dict[str, Any],
    unicode: str,
    ranges: dict[str, list[float]] | None,
    targets: tuple[str, ...],
    artifacts: tuple[Artifact, ...],
    measured: Mapping[str, Parity],
    certificate: RangeCertificate | None,
    plans: tuple[TensorRTPlan, ...],
) -> Manifest:
    """The manifest of a bundle, whole or under way.

    Args:
        source: Where it all came from, and how the files were understood.
        artifacts: What has been written so far.
        measured: Parity by dtype.
    """
    spec = checkpoint.spec
    parity: dict[str, Any] | None = None
    if "float32" in measured:
        parity = measured["float32"].to_json()
        rest = {dtype: p.to_json() for dtype, p in measured.items() if dtype != "float32"}
        parity["others"] = rest
    return Manifest(
        kosine=kosine.__version__,
        source=source,
        architecture=Architecture(
            family=spec.family,
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            embedding_size=spec.embedding_size,
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            intermediate_size=spec.intermediate_size,
            max_position_embeddings=spec.max_position_embeddings,
            type_vocab_size=spec.type_vocab_size,
            layer_norm_eps=spec.layer_norm_eps,
            position_rule=spec.position_rule,
        ),
        dim=spec.dim,
        max_tokens=spec.max_tokens,
        pooling=Pooling(spec.pooling, spec.include_prompt),
        dense=tuple(Dense(**asdict(dense)) for dense in spec.dense),
        normalized=spec.normalize,
        prompts=checkpoint.prompts,
        default_prompt_name=checkpoint.default_prompt_name,
        similarity=checkpoint.similarity,
        special_ids=checkpoint.special_ids,
        do_lower_case=checkpoint.do_lower_case,
        unicode=unicode,
        ranges=ranges,
        targets=targets,
        artifacts=artifacts,
        parity=parity,
        certificates={} if certificate is None else {"onnx-fp16": certificate.to_json()},
        plans=plans,
    )
