"""The Python model of a repository that `kosine export --triton` wrote; runs inside Triton.

It needs `pip install kosine` beside Triton's Python backend. Triton's dynamic batcher hands it the
requests of many clients; it tokenises them, lays them out in packed rows, asks the graph's own
model for the vectors, and answers each request with its rows. A request that cannot be tokenised
gets an error of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from kosine.backends.rows.buckets import Piece, fill_piece, pieces
from kosine.backends.rows.fill import Rows, fill_rows
from kosine.backends.rows.loop import RowLoop
from kosine.backends.rows.plan import RowPlan, plan_rows
from kosine.bundle import Bundle
from kosine.computing import compute_in_batches
from kosine.encoder import Encoder
from kosine.errors import BackendError, KosineError
from kosine.packed import Float32, Int32, Packed, Pooled
from kosine.threads import usable_cpus

__all__ = ["GraphModel", "TritonPythonModel"]

# Triton's own module, which only its Python backend has.
triton: Any = import_module("triton_python_backend_utils")


class GraphModel:
    """A `kosine.backend.Backend` whose rectangles another model of this Triton computes.

    Args:
        bundle: The part of the bundle that tokenising and layout need.
        graph: Name of the graph's model.
        inputs: Names of its inputs.
        profiles: Whether it is a TensorRT plan, which takes the shapes of its profiles only.
    """

    name = "triton"
    device = "triton"

    def __init__(self, bundle: Bundle, graph: str, inputs: Sequence[str], profiles: bool) -> None:
        self.graph = graph
        self.inputs = tuple(inputs)
        self.dim = bundle.manifest.dim
        self.dtype = "float16" if profiles else "float32"
        self.threads = usable_cpus()
        self._profiles = bundle.manifest.plans[0].profiles if profiles else ()
        self._rows = RowLoop(bundle.manifest)
        self.batch_tokens = max((p.max_rows * p.width for p in self._profiles), default=8_192)

    def run(self, batch: Packed) -> Pooled:
        if self._profiles:
            return self._rows.run(batch, pieces(batch.lengths, self._profiles), self._run_piece)
        return self._rows.run(batch, plan_rows(batch.lengths), self._run_plan)

    def close(self) -> None:
        """Nothing: the graph's model belongs to Triton."""

    def _run_plan(self, batch: Packed, positions: Int32, plan: RowPlan) -> tuple[Float32, Float32]:
        return self._ask(fill_rows(batch, positions, plan, self._rows.pad_id))

    def _run_piece(self, batch: Packed, positions: Int32, piece: Piece) -> tuple[Float32, Float32]:
        vectors, norms = self._ask(fill_piece(batch, positions, piece, self._rows.pad_id))
        return vectors[: len(piece.indices)], norms[: len(piece.indices)]

    def _ask(self, rows: Rows) -> tuple[Float32, Float32]:
        response = triton.InferenceRequest(
            model_name=self.graph,
            requested_output_names=["vectors", "norms"],
            inputs=[triton.Tensor(name, getattr(rows, name)) for name in self.inputs],
        ).exec()
        if response.has_error():
            raise BackendError(
                f"Triton's model {self.graph!r} failed: {response.error().message()}",
                remedy="see Triton's log",
            )
        found = [
            triton.get_output_tensor_by_name(response, name).as_numpy()
            for name in ("vectors", "norms")
        ]
        return found[0], found[1]


class TritonPythonModel:
    """What Triton's Python backend looks for in this file."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        stated = {name: value["string_value"] for name, value in parameters.items()}
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        bundle = Bundle(folder)
        self.backend = GraphModel(
            bundle, stated["graph"], stated["inputs"].split(","), stated["profiles"] == "yes"
        )
        self.encoder = Encoder(bundle, self.backend)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order."""
        batches: list[Packed | None] = []
        responses: list[Any] = []
        for request in requests:
            try:
                batches.append(self._tokenise(request))
                responses.append(None)
            except (KosineError, UnicodeDecodeError) as error:
                batches.append(None)
                responses.append(_error(error))
        good = [batch for batch in batches if batch is not None]
        if not good:
            return responses
        try:
            pooled = self._compute(_joined(good))
            answers = iter(np.split(pooled.vectors, np.cumsum([len(b) for b in good])[:-1]))
            shares = [next(answers) if batch is not None else None for batch in batches]
        except KosineError:
            # Each alone, so that only the guilty one fails.
            for place, batch in enumerate(batches):
                if batch is not None:
                    try:
                        responses[place] = _answer(self._compute(batch).vectors)
                    except KosineError as error:
                        responses[place] = _error(error)
            return responses
        return [
            response if share is None else _answer(share)
            for response, share in zip(responses, shares, strict=True)
        ]

    def _tokenise(self, request: Any) -> Packed:
        texts = triton.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        prompt = triton.get_input_tensor_by_name(request, "prompt_name")
        name = None if prompt is None else bytes(prompt.as_numpy().reshape(-1)[0]).decode()
        return self.encoder.prepare(
            [bytes(text).decode("utf-8") for text in texts], prompt_name=name or None
        ).batch

    def _compute(self, batch: Packed) -> Pooled:
        encoder = self.encoder
        return compute_in_batches(
            encoder.compute, batch, encoder.dim, self.backend.batch_tokens, None, lambda _: None
        )


def _joined(batches: Sequence[Packed]) -> Packed:
    """Several batches, end to end."""
    begins = np.cumsum([0, *(batch.num_tokens for batch in batches)])
    starts = [batch.starts[:-1] + begin for batch, begin in zip(batches, begins[:-1], strict=True)]
    skip = None
    if any(batch.skip is not None for batch in batches):
        skip = np.concatenate(
            [np.zeros(len(b), np.int32) if b.skip is None else b.skip for b in batches]
        )
    return Packed(
        np.concatenate([batch.ids for batch in batches]),
        np.concatenate([*starts, begins[-1:]]).astype(np.int32),
        skip,
    )


def _answer(vectors: Float32) -> Any:
    tensor = triton.Tensor("embedding", np.ascontiguousarray(vectors))
    return triton.InferenceResponse(output_tensors=[tensor])


def _error(error: Exception) -> Any:
    # A UnicodeDecodeError's own message shows bytes of the text.
    told = str(error) if isinstance(error, KosineError) else "a text is not UTF-8"
    return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(told))
