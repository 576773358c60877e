"""Ray: a data set embedded by actors on many machines, and an encoder as a Ray Serve deployment.

    import kosine.ray

    vectors = dataset.map_batches(
        kosine.ray.EncodeBatches, fn_constructor_args=("/models/ko.kosine",),
        num_cpus=4, concurrency=(1, 8), batch_size=1024)

    app = serve.deployment(kosine.ray.Embedder).options(
        num_replicas=2, ray_actor_options={"num_cpus": 4}).bind("/models/ko.kosine")

Both run inside Ray's actors only. The bundle's path must lead to the same bundle on every machine.
Each actor computes with as many threads as the CPUs that Ray gave it, on its GPU where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import kosine
from kosine.errors import InputError, KosineError, QueueFull

if TYPE_CHECKING:
    from kosine.encoder import Encoder
    from kosine.packed import Float32

__all__ = ["Embedder", "EncodeBatches"]


def _load(bundle: str, options: Mapping[str, Any]) -> Encoder:
    """The encoder of this actor, within the share of the machine that Ray gave it."""
    resources = import_module("ray").get_runtime_context().get_assigned_resources()
    share = {
        "threads": max(1, int(resources.get("CPU", 1))),
        # Ray hides the other GPUs, so its own is always the first.
        "device": "cuda" if resources.get("GPU") else "cpu",
    }
    return kosine.load(bundle, **{**share, **options})


class EncodeBatches:
    """For `Dataset.map_batches`: adds a column of vectors to each batch. One encoder an actor.

    A batch is a dict of arrays (`batch_format="numpy"`, the default); it comes back with all its
    columns, and with `vector_field`, (rows, dim) float32. Ray runs the batch of a dead actor again.

    Args:
        bundle: Path of the bundle.
        text_field: The column of texts.
        vector_field: The column to add.
        encode: Options of `Encoder.encode`, such as `prompt_name`.
        load: Options of `kosine.load`; `threads` and `device` follow Ray's resources by default.

    Raises:
        InputError: A batch has no such column, or already has one named `vector_field`.
    """

    def __init__(
        self,
        bundle: str,
        *,
        text_field: str = "text",
        vector_field: str = "vector",
        encode: Mapping[str, Any] | None = None,
        load: Mapping[str, Any] | None = None,
    ) -> None:
        self.text_field = text_field
        self.vector_field = vector_field
        self.options = dict(encode or {})
        self.encoder = _load(bundle, load or {})

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self.text_field not in batch or self.vector_field in batch:
            raise InputError(
                f"columns {sorted(batch)} do not suit text_field={self.text_field!r} and "
                f"vector_field={self.vector_field!r}",
                limit="the one is there, the other is not yet",
                remedy="name them by fn_constructor_kwargs",
            )
        texts = batch[self.text_field].tolist()
        return {**batch, self.vector_field: self.encoder.encode(texts, **self.options)}


class Embedder:
    """For `ray.serve.deployment`: a Batcher in each replica.

    Over a handle: `await handle.encode.remote(texts, prompt_name="query")`. Over HTTP: the body of
    text-embeddings-inference, `{"inputs": ["한 문장"], "prompt_name": null}`, answered by a JSON
    list of vectors; 400 for a bad request, 429 where the replica's queue is full, 500 otherwise.

    Args:
        bundle: Path of the bundle.
        batcher: Options of `kosine.Batcher`.
        load: Options of `kosine.load`; `threads` and `device` follow Ray's resources by default.
    """

    def __init__(
        self,
        bundle: str,
        *,
        batcher: Mapping[str, Any] | None = None,
        load: Mapping[str, Any] | None = None,
    ) -> None:
        self.batcher = kosine.Batcher(_load(bundle, load or {}), **(batcher or {}))

    async def encode(self, texts: str | Sequence[str], **options: Any) -> Float32:
        """(dim,) of one text, (n, dim) of several; options are those of `Batcher.aencode`."""
        return await self.batcher.aencode(texts, **options)

    async def __call__(self, request: Any) -> Any:
        reply = import_module("starlette.responses").JSONResponse
        try:
            body = await request.json()
            texts, prompt_name = body["inputs"], body.get("prompt_name")
        except (ValueError, KeyError, TypeError, AttributeError):
            told = {"error": 'the body must be JSON with "inputs"', "error_type": "Validation"}
            return reply(told, 400)
        try:
            vectors = await self.encode(texts, prompt_name=prompt_name)
        except KosineError as error:
            kinds = ((InputError, 400, "Validation"), (QueueFull, 429, "Overloaded"))
            status, kind = next(
                ((status, kind) for each, status, kind in kinds if isinstance(error, each)),
                (500, "Backend"),
            )
            return reply({"error": str(error), "error_type": kind}, status)
        return reply(np.atleast_2d(vectors).tolist())

    def check_health(self) -> None:
        """Ray Serve asks this, and replaces a replica where it raises."""
        health = self.batcher.health()
        if not health.ok:
            raise RuntimeError("the batcher has stopped")
