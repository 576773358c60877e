"""Cohere's /v2/embed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from kosine.errors import InputError
from kosine.packed import Float32
from kosine.quantization import quantize
from kosine.serving.http.app import Call, Endpoint
from kosine.serving.http.embedding import check_dimensions, embed, prompt_for, refuse_long
from kosine.serving.http.models import Model
from kosine.serving.http.stages import TokenIds
from kosine.serving.http.wire import Reply, base64_rows, float_rows

__all__ = ["endpoints"]

Kind = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
ROLES: Final = {"search_query": "query", "search_document": "document"}


class CohereRequest(Struct):
    """What Cohere's clients send for texts.

    Attributes:
        model: The name of a model that is served.
        texts: At least one.
        input_type: Puts the model's prompt for it before the texts, where it has one.
        embedding_types: What vectors are written as; each is answered under its name.
        output_dimension: Keep so many leading dimensions.
        truncate: Which end of an over-long text is cut off; NONE makes it an error.
    """

    model: str
    texts: Annotated[list[str], Meta(min_length=1)]
    input_type: Literal["search_query", "search_document", "classification", "clustering"]
    embedding_types: Annotated[list[Kind], Meta(min_length=1, max_length=6)] = msgspec.field(
        default_factory=lambda: ["float"]
    )
    output_dimension: Annotated[int, Meta(ge=1)] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"


class CohereAnswer(Struct):
    id: str
    embeddings: dict[Kind, Any]
    texts: list[str]
    meta: dict[str, Any]


def endpoints() -> list[Endpoint]:
    return [
        Endpoint(
            "POST",
            "/v2/embed",
            embed_,
            "Vectors, as Cohere's API",
            CohereRequest,
            CohereAnswer,
            shape="cohere",
        )
    ]


async def embed_(call: Call, body: CohereRequest) -> Reply:
    with call.using(body.model) as model:
        texts = body.texts
        call.count(texts)
        name = prompt_for(model, ROLES.get(body.input_type, body.input_type))
        if body.truncate == "NONE":
            await refuse_long(model, texts, name)
        elif body.truncate == "START":
            texts = await model.cut_left(texts, name)
            name = None if isinstance(texts[0], TokenIds) else name
        dim = body.output_dimension
        check_dimensions(model, "output_dimension", dim)
        writers = {kind: _writer(model, kind) for kind in body.embedding_types}
        found = await embed(
            model, texts, deadline=call.deadline, prompt_name=name, truncate_dim=dim
        )
        call.tokens = found.tokens
        parts = [
            b'"%b":[%b]' % (kind.encode(), b",".join(write(found.vectors)))
            for kind, write in writers.items()
        ]
        return Reply(
            b'{"id":%b,"embeddings":{%b},"texts":%b,"meta":{"api_version":{"version":"2"},'
            b'"billed_units":{"input_tokens":%d}}}'
            % (
                msgspec.json.encode(call.request_id.decode()),
                b",".join(parts),
                msgspec.json.encode(body.texts),
                found.tokens,
            )
        )


def _writer(model: Model, kind: str) -> Callable[[Float32], list[bytes]]:
    """What writes vectors of a kind; refused before anything is computed."""
    if kind == "float":
        return float_rows
    if kind == "base64":
        return base64_rows
    ranges = model.manifest.ranges
    if kind in ("int8", "uint8") and ranges is None:
        raise InputError(
            f"embedding_types has {kind!r}, and this model has no ranges for it",
            remedy="export it again, or take binary",
        )
    return lambda vectors: float_rows(quantize(vectors, kind, ranges))
