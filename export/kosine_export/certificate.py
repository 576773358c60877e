"""The range certificate of a float16 graph: no tensor comes near float16's limit.

ONNX Runtime computes float16 graphs in float32 on a CPU, so its parity there shows rounding
and wiring, and says nothing of overflow. Two things do. The same graph is run with float32 in
place of float16 and the largest |x| of every float16 tensor is measured over the probe texts:
it must stay below 65504 / 8. And one short text goes through onnx's own ReferenceEvaluator, which
computes in real float16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from kosine.backends.onnx.library import import_onnxruntime
from kosine.backends.rows.fill import Rows, fill_rows
from kosine.backends.rows.plan import plan_rows
from kosine.bundle.canary import Comparison, compare
from kosine.bundle.tensorfile import TensorEntry
from kosine.errors import ParityError
from kosine.packed import Packed
from kosine.positions import position_ids
from kosine.spec import EncoderSpec
from kosine_export.graph.packed import packed_graph

__all__ = ["FLOAT16_MAX", "RangeCertificate", "certify", "check_weights"]

FLOAT16_MAX = 65504.0
HEADROOM = 8.0
REFERENCE_MIN_COSINE = 0.9998
REFERENCE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class RangeCertificate:
    """What was measured over `texts` probe texts.

    Attributes:
        largest: The largest |x| of any float16 tensor, and `tensor` its name.
        limit: 65504 / 8.
        reference_cosine: Of one short text in real float16 against float32, -1 where that gave
            NaN.
    """

    texts: int
    tensors: int
    largest: float
    tensor: str
    limit: float
    reference_cosine: float

    @property
    def passed(self) -> bool:
        return self.largest < self.limit and self.reference_cosine >= REFERENCE_MIN_COSINE

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "texts": self.texts,
            "tensors": self.tensors,
            "largest": self.largest,
            "tensor": self.tensor,
            "limit": self.limit,
            "reference_cosine": self.reference_cosine,
        }

    def require(self) -> None:
        """Raise ParityError unless it passed."""
        if self.largest >= self.limit or not np.isfinite(self.largest):
            raise ParityError(
                f"float16 would overflow: |x| reaches {self.largest:.0f} in tensor {self.tensor}",
                limit=f"{self.limit:.0f}, an eighth of float16's largest number",
                remedy="leave target onnx-fp16 out: this model needs float32 or bfloat16",
            )
        if not self.passed:
            raise ParityError(
                f"in real float16 a short text has cosine {self.reference_cosine:.6f}",
                limit=f"at least {REFERENCE_MIN_COSINE}",
                remedy="leave target onnx-fp16 out: this model needs float32 or bfloat16",
            )


def check_weights(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise ParityError where a weight itself does not fit float16."""
    for name, tensor in tensors.items():
        largest = float(np.abs(tensor).max(initial=0.0))
        if not largest < FLOAT16_MAX / HEADROOM:
            raise ParityError(
                f"weight {name} reaches |x| = {largest:.0f}",
                limit=f"{FLOAT16_MAX / HEADROOM:.0f}, an eighth of float16's largest number",
                remedy="leave target onnx-fp16 out: this model needs float32 or bfloat16",
            )


def certify(
    folder: Path,
    spec: EncoderSpec,
    entries: Mapping[str, TensorEntry],
    batch: Packed,
    vectors: NDArray[Any],
) -> RangeCertificate:
    """Measure over a batch of probe texts.

    Args:
        folder: Holds `weights.safetensors` (float32, laid out as `entries`) and
            `fp16/packed.onnx`.
        spec: The encoder.
        entries: Where the float32 weights lie.
        batch: The probe texts, packed.
        vectors: (n, dim) their float32 reference vectors.
    """
    names, largest = _largest(folder, spec, entries, batch)
    at = int(np.argmax(np.where(np.isfinite(largest), largest, np.inf)))
    return RangeCertificate(
        texts=len(batch),
        tensors=len(names),
        largest=float(largest[at]),
        tensor=names[at],
        limit=FLOAT16_MAX / HEADROOM,
        reference_cosine=_in_real_float16(folder, spec, batch, vectors),
    )


def _largest(
    folder: Path, spec: EncoderSpec, entries: Mapping[str, TensorEntry], batch: Packed
) -> tuple[list[str], NDArray[np.float64]]:
    """max |x| of every float16 activation, over the whole batch."""
    model, names = packed_graph(
        spec, entries, max_tokens=spec.embeddings.positions.usable, precision="float16", shadow=True
    )
    graph = model.graph
    peaks = []
    for name in names:
        graph.node.append(helper.make_node("Abs", [name], [f"{name}.abs"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.peak"], keepdims=0)
        )
        peaks.append(f"{name}.peak")
        graph.output.append(helper.make_tensor_value_info(f"{name}.peak", TensorProto.FLOAT, []))
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    path = folder / "range-probe.onnx"  # beside the weights that it refers to
    path.write_bytes(model.SerializeToString())
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = [node.name for node in session.get_inputs()]
        largest = np.zeros(len(peaks))
        for rows in _rows(spec, batch):
            found = session.run(peaks, {name: getattr(rows, name) for name in inputs})
            largest = np.fmax(largest, np.nan_to_num(np.array(found, np.float64), nan=np.inf))
    finally:
        path.unlink()
    return names, largest


def _in_real_float16(
    folder: Path, spec: EncoderSpec, batch: Packed, vectors: NDArray[Any]
) -> float:
    """Cosine of one short probe text computed by onnx's ReferenceEvaluator."""
    lengths = batch.lengths
    longest = np.where(lengths <= REFERENCE_TOKENS, lengths, 0)
    index = int(np.argmax(longest)) if longest.any() else int(np.argmin(lengths))
    model = onnx.load(str(folder / "fp16" / "packed.onnx"))
    evaluator = ReferenceEvaluator(model)
    (rows,) = _rows(spec, batch.take([index]))
    feed = {node.name: getattr(rows, node.name) for node in model.graph.input}
    with np.errstate(all="ignore"):  # overflow is what is looked for
        found: Any = evaluator.run(["vectors"], feed)
        vector = np.asarray(found[0])
    comparison: Comparison = compare(vector, vectors[index : index + 1])
    return comparison.min_cosine


def _rows(spec: EncoderSpec, batch: Packed) -> Sequence[Rows]:
    positions = position_ids(batch.ids, batch.starts, spec.embeddings.positions)
    filler = spec.embeddings.positions.pad_id
    return [fill_rows(batch, positions, plan, filler) for plan in plan_rows(batch.lengths)]
