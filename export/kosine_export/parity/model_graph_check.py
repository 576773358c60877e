"""`model.onnx` run as other tools run it: padded rectangles, a plain session, no planning."""

from __future__ import annotations

from typing import Any

import numpy as np

from kosine.backends.onnx.library import import_onnxruntime
from kosine.bundle import Bundle
from kosine.bundle.canary import GATES, Canary, compare
from kosine.errors import ParityError
from kosine.packed import Float32, Packed

__all__ = ["check_model_graph", "run_model_graph"]

GRAPHS = {"float32": "model.onnx", "float16": "fp16/model.onnx"}
BATCH = 16


def run_model_graph(bundle: Bundle, batch: Packed, dtype: str = "float32") -> Float32:
    """(B, dim) `sentence_embedding` of `model.onnx`, on right-padded batches of like length."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    graph = bundle.graph(GRAPHS[dtype]).name
    session: Any = ort.InferenceSession(
        str(bundle.file(graph)), options, providers=["CPUExecutionProvider"]
    )
    wanted = [node.name for node in session.get_inputs()]
    pad = bundle.manifest.special_ids["pad"]
    order = np.argsort(batch.lengths, kind="stable")
    vectors = np.empty((len(batch), bundle.manifest.dim), np.float32)
    for begin in range(0, len(batch), BATCH):
        chosen = order[begin : begin + BATCH]
        part = batch.take(chosen)
        lengths = part.lengths
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, pad, np.int64)
        ids[mask] = part.ids
        feed = {
            "input_ids": ids,
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": np.zeros_like(ids),
        }
        (found,) = session.run(["sentence_embedding"], {name: feed[name] for name in wanted})
        vectors[chosen] = found
    return vectors


def check_model_graph(bundle: Bundle, dtype: str = "float32") -> None:
    """Raise ParityError where `model.onnx` does not give the canary's vectors."""
    canary = Canary.read(bundle)
    found = compare(run_model_graph(bundle, canary.batch, dtype), canary.vectors)
    gate = GATES[dtype]
    if not found.passes(gate):
        raise ParityError(
            f"{GRAPHS[dtype]} fails the canary: min cosine {found.min_cosine:.7f}, max abs error "
            f"{found.max_abs_error:.1e}",
            limit=f"min cosine {gate.min_cosine}, max abs error {gate.max_abs}",
            remedy="no bundle was written; report it with the checkpoint's config files",
        )
