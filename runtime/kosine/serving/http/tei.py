"""The routes of text-embeddings-inference, and SageMaker's, which take the same bodies."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from kosine.serving.http.app import Call, Endpoint
from kosine.serving.http.embedding import Embedded, check_dimensions, embed, refuse_long
from kosine.serving.http.models import Model
from kosine.serving.http.problems import Problem
from kosine.serving.http.stages import TokenIds
from kosine.serving.http.wire import Reply, float_rows, in_pieces, json_reply

__all__ = ["endpoints"]

Texts = str | list[str]
Id = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class EmbedRequest(Struct):
    """TEI's body; `model` chooses where several are served.

    Attributes:
        inputs: One text, or several.
        normalize: Vectors of length 1; otherwise of the length that the model gives.
        truncate: Cut over-long texts; None takes the service's default.
        truncation_direction: Which end of an over-long text is cut off.
        prompt_name: A prompt of the model, by name.
        dimensions: Keep so many leading dimensions.
        model: The name of a model that is served.
    """

    inputs: Texts
    normalize: bool | None = True
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    prompt_name: str | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    model: str | None = None


class SimilarityInputs(Struct):
    source_sentence: str
    sentences: list[str]


class SimilarityParameters(Struct):
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    prompt_name: str | None = None


class SimilarityRequest(Struct):
    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None
    model: str | None = None


class EitherRequest(EmbedRequest):
    """The body of /embed or of /similarity."""

    inputs: Texts | SimilarityInputs  # type: ignore[assignment]
    parameters: SimilarityParameters | None = None


class TokenizeRequest(Struct):
    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None
    model: str | None = None


class Token(Struct):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(Struct):
    ids: list[Id | list[Id]]
    skip_special_tokens: bool = True
    model: str | None = None


class Info(Struct):
    """What is served; the names are TEI's, and `fingerprint` is kosine's."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    fingerprint: str
    backend: str
    prompts: list[str]
    models: list[str]


Vectors = list[list[float]]
Scores = list[float]


def endpoints() -> list[Endpoint]:
    return [
        Endpoint("POST", "/embed", embed_, "Vectors, as TEI's", EmbedRequest, Vectors),
        Endpoint("POST", "/similarity", similarity, "Cosines, as TEI's", SimilarityRequest, Scores),
        Endpoint(
            "POST", "/", either, "/embed or /similarity", EitherRequest, list[float | list[float]]
        ),
        Endpoint(
            "POST", "/invocations", either, "SageMaker's", EitherRequest, list[float | list[float]]
        ),
        Endpoint(
            "POST", "/tokenize", tokenize, "Tokens of texts", TokenizeRequest, list[list[Token]]
        ),
        Endpoint("POST", "/decode", decode, "Texts of token ids", DecodeRequest, list[str]),
        Endpoint("GET", "/info", info, "What is served", answer=Info),
    ]


async def either(call: Call, body: EitherRequest) -> Reply:
    if isinstance(body.inputs, SimilarityInputs):
        return await similarity(call, SimilarityRequest(body.inputs, body.parameters, body.model))
    return await embed_(call, body)


async def embed_(call: Call, body: EmbedRequest) -> Reply:
    with call.using(body.model) as model:
        texts = _listed(body.inputs)
        normalize = body.normalize is not False
        found = await _vectors(call, model, texts, body, body.dimensions, normalize)
        data = in_pieces(found.vectors, float_rows, b"[", lambda _, row: row, b"]")
        return Reply(data, headers=_times(call, texts, found))


async def similarity(call: Call, body: SimilarityRequest) -> Reply:
    with call.using(body.model) as model:
        if not body.inputs.sentences:
            raise Problem("empty", "inputs.sentences is empty; send at least one")
        texts = [body.inputs.source_sentence, *body.inputs.sentences]
        found = await _vectors(call, model, texts, body.parameters or SimilarityParameters())
        scores = model.encoder.similarity(found.vectors[:1], found.vectors[1:])
        return Reply(float_rows(scores)[0], headers=_times(call, texts, found))


async def _vectors(
    call: Call,
    model: Model,
    texts: list[str],
    options: EmbedRequest | SimilarityParameters,
    dimensions: int | None = None,
    normalize: bool = True,
) -> Embedded:
    settings = call.service.settings
    call.count(texts)
    check_dimensions(model, "dimensions", dimensions)
    name = options.prompt_name or settings.default_prompt_name
    left = options.truncation_direction.lower() == "left"
    truncate = settings.auto_truncate if options.truncate is None else options.truncate
    if not truncate:
        await refuse_long(model, texts, name)
    elif left:
        texts = await model.cut_left(texts, name)
        name = None if isinstance(texts[0], TokenIds) else name
    found = await embed(
        model,
        texts,
        deadline=call.deadline,
        prompt_name=name,
        truncate_dim=dimensions,
        normalize_embeddings=normalize,
    )
    call.tokens = found.tokens
    return found


def _listed(inputs: Texts) -> list[str]:
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not texts:
        raise Problem("empty", "inputs is an empty list; send at least one text")
    return texts


def _times(call: Call, texts: list[str], found: Embedded) -> list[tuple[bytes, bytes]]:
    """TEI's headers: characters, tokens, and milliseconds by stage."""
    total = time.monotonic() - call.started
    numbers = {
        b"x-compute-time": total,
        b"x-compute-characters": sum(map(len, texts)),
        b"x-compute-tokens": found.tokens,
        b"x-total-time": total,
        b"x-tokenization-time": found.tokenize_s,
        b"x-queue-time": found.queue_s,
        b"x-inference-time": found.run_s,
    }
    return [
        (name, str(value if isinstance(value, int) else round(value * 1e3)).encode())
        for name, value in numbers.items()
    ]


async def tokenize(call: Call, body: TokenizeRequest) -> Reply:
    with call.using(body.model) as model:
        texts = _listed(body.inputs)
        call.count(texts)
        pieces = await model.pieces(texts, body.prompt_name, body.add_special_tokens)
        return json_reply([[Token(*piece) for piece in text] for text in pieces])


async def decode(call: Call, body: DecodeRequest) -> Reply:
    with call.using(body.model) as model:
        given: Any = body.ids
        many = given if any(isinstance(item, list) for item in given) else [given]
        if not all(isinstance(ids, list) for ids in many):
            raise Problem("invalid", "ids mixes numbers and lists; send one kind", param="ids")
        if not given:
            raise Problem("empty", "ids is an empty list; send at least one")
        return json_reply(model.tokenizer.decode_batch(many, body.skip_special_tokens))


async def info(call: Call, _: None) -> Reply:
    settings = call.service.settings
    with call.using(None) as model:
        encoder, manifest = model.encoder, model.manifest
        revision = manifest.source.get("revision")
        return json_reply(
            Info(
                model_id=model.name,
                model_sha=revision if isinstance(revision, str) else None,
                model_dtype=encoder.backend.dtype,
                model_type={"embedding": {"pooling": "+".join(manifest.spec.pooling.modes)}},
                max_concurrent_requests=settings.max_requests,
                max_input_length=encoder.max_tokens,
                max_batch_tokens=settings.batch_tokens or encoder.max_batch_tokens,
                max_client_batch_size=settings.max_items,
                auto_truncate=settings.auto_truncate,
                fingerprint=model.fingerprint,
                backend=encoder.backend.name,
                prompts=list(manifest.prompts),
                models=list(call.service.models.by_name),
            )
        )
