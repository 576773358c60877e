"""What an export found, as the manifest that the runtime reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kosine
from kosine.bundle.int8 import Int8Weights
from kosine.bundle.manifest import Artifact, Manifest, UnicodeForm
from kosine.bundle.plans import TensorRTPlan
from kosine_export.certificate import RangeCertificate
from kosine_export.checkpoint.checkpoint import Checkpoint
from kosine_export.parity.parity import Parity

__all__ = ["make_manifest"]


def make_manifest(
    checkpoint: Checkpoint,
    *,
    source: dict[str, Any],
    unicode: UnicodeForm,
    ranges: dict[str, list[float]] | None,
    targets: tuple[str, ...],
    artifacts: tuple[Artifact, ...],
    measured: Mapping[str, Parity],
    certificate: RangeCertificate | None,
    plans: tuple[TensorRTPlan, ...],
    int8: Int8Weights | None,
) -> Manifest:
    """The manifest of a bundle, whole or under way.

    Args:
        source: Where it all came from, and how the files were understood.
        artifacts: What has been written so far.
        measured: Parity by dtype.
    """
    parity: dict[str, Any] | None = None
    if "float32" in measured:
        parity = measured["float32"].to_json()
        rest = {dtype: p.to_json() for dtype, p in measured.items() if dtype != "float32"}
        parity["others"] = rest
    return Manifest(
        kosine=kosine.__version__,
        source=source,
        spec=checkpoint.spec,
        max_tokens=checkpoint.max_tokens,
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
        int8=int8,
    )
