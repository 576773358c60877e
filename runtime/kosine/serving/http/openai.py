"""OpenAI's routes: /v1/embeddings and /v1/models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from kosine.serving.http.app import Call, Endpoint
from kosine.serving.http.embedding import check_dimensions, embed, prompt_for, refuse_long
from kosine.serving.http.models import Model
from kosine.serving.http.problems import Problem
from kosine.serving.http.settings import Settings
from kosine.serving.http.wire import Reply, base64_rows, float_rows, in_pieces, json_reply

__all__ = ["endpoints"]

MAX_INPUTS = 2_048
# Whose ids they are cannot be told: LangChain, for one, sends those of OpenAI's models.
NO_TOKENS = (
    "; token ids are not taken: send texts (LangChain: check_embedding_ctx_length=False), or "
    "start the service with --token-input and send ids of this model's own vocabulary"
)
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class EmbeddingsRequest(Struct):
    """What OpenAI's clients send; `input_type` and `prompt_name` are kosine's.

    Attributes:
        model: The name of a model that is served.
        input: One text, or several.
        encoding_format: What vectors are written as: numbers, or base64 of little-endian float32.
        dimensions: Keep so many leading dimensions.
        user: Ignored.
        input_type: Put the model's prompt for queries or for documents before the texts.
        prompt_name: A prompt of the model, by name.
    """

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    input_type: Literal["query", "document", "passage"] | None = None
    prompt_name: str | None = None


class TokensRequest(EmbeddingsRequest):
    """The same, where token ids of the model's own vocabulary are taken too."""

    input: str | list[str | TokenId | list[TokenId]]  # type: ignore[assignment]


class Embedding(Struct):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ModelEntry(Struct):
    """A model; what follows `owned_by` is kosine's."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimensions: int
    max_tokens: int
    engine: str
    fingerprint: str
    prompts: list[str]


class ModelList(Struct):
    object: Literal["list"]
    data: list[ModelEntry]


def endpoints(settings: Settings, names: Iterable[str]) -> list[Endpoint]:
    body = TokensRequest if settings.token_input else EmbeddingsRequest
    return [
        Endpoint(
            "POST",
            "/v1/embeddings",
            embeddings,
            "Vectors, as OpenAI's API",
            body=body,
            answer=EmbeddingsAnswer,
            shape="openai",
            remedies={} if settings.token_input else {"input": NO_TOKENS},
        ),
        Endpoint("GET", "/v1/models", models, "What is served", answer=ModelList, shape="openai"),
        *map(_model_endpoint, names),
    ]


async def embeddings(call: Call, body: EmbeddingsRequest) -> Reply:
    with call.using(body.model) as model:
        texts = _texts(model, body.input)
        call.count(texts)
        if body.prompt_name or body.input_type is None:
            name = body.prompt_name or call.service.settings.default_prompt_name
        else:
            name = prompt_for(model, body.input_type)
        if not call.service.settings.auto_truncate:
            await refuse_long(model, texts, name)
        check_dimensions(model, "dimensions", body.dimensions)
        found = await embed(
            model,
            texts,
            deadline=call.deadline,
            prompt_name=name,
            truncate_dim=body.dimensions,
        )
        call.tokens = found.tokens
        rows = base64_rows if body.encoding_format == "base64" else float_rows
        data = in_pieces(
            found.vectors,
            rows,
            b'{"object":"list","data":[',
            lambda i, row: b'{"object":"embedding","index":%d,"embedding":%b}' % (i, row),
            b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
            % (msgspec.json.encode(model.name), found.tokens, found.tokens),
        )
        return Reply(data)


def _texts(model: Model, given: str | Sequence[Any]) -> list[str]:
    """The input as texts, by OpenAI's rules."""
    if isinstance(given, str):
        given = [given]
    elif given and all(isinstance(item, int) for item in given):
        given = [given]  # one text, as ids
    if not given:
        raise Problem("empty", "input is an empty list; send at least one text", param="input")
    if len(given) > MAX_INPUTS:
        raise Problem(
            "invalid",
            f"input has {len(given)} items; at most {MAX_INPUTS} go in one request",
            param="input",
        )
    if all(isinstance(item, str) for item in given):
        if "" in given:
            raise Problem(
                "invalid",
                f"input {list(given).index('')} is an empty string; leave it out",
                param="input",
            )
        return list(given)
    if not all(isinstance(item, list) for item in given):
        raise Problem("invalid", "input mixes texts and token ids; send one kind", param="input")
    return [model.checked_ids(ids, i) for i, ids in enumerate(given)]


async def models(call: Call, _: None) -> Reply:
    entries = map(_entry, call.service.models.by_name.values())
    return json_reply(ModelList("list", list(entries)))


def _model_endpoint(name: str) -> Endpoint:
    """/v1/models/NAME."""

    async def handle(call: Call, _: None) -> Reply:
        with call.using(name) as model:
            return json_reply(_entry(model))

    path = f"/v1/models/{name}"
    return Endpoint("GET", path, handle, f"The model {name}", answer=ModelEntry, shape="openai")


def _entry(model: Model) -> ModelEntry:
    return ModelEntry(
        id=model.name,
        object="model",
        created=model.loaded,
        owned_by="kosine",
        dimensions=model.encoder.dim,
        max_tokens=model.encoder.max_tokens,
        engine=f"{model.encoder.backend.name}/{model.encoder.backend.dtype}",
        fingerprint=model.fingerprint,
        prompts=list(model.manifest.prompts),
    )
