"""OpenAI's routes, asked by OpenAI's own client over real sockets."""

from __future__ import annotations

import asyncio
import shutil

import httpx
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
openai = pytest.importorskip("openai", reason="openai, whose client is tried, is not installed")

from hostile import edit_manifest  # noqa: E402
from serve_machine import PROMPTS, ask, running, variant  # noqa: E402

TEXTS = ["한 남자가 기타를 친다.", "A man plays the guitar.", "비행기가 이륙한다.", "¡Olé! 🎸"]


@pytest.fixture(scope="module")
def prompted(sample_bundle, tmp_path_factory):
    return variant(sample_bundle, tmp_path_factory.mktemp("prompted") / "prompted.kosine")


@pytest.fixture(scope="module")
def service(sample_bundle, prompted, tmp_path_factory):
    log = tmp_path_factory.mktemp("openai") / "log"
    words = (f"ko={sample_bundle}", prompted, "--backend", "onnx")
    with running(log, *words) as found:
        yield found


@pytest.fixture(scope="module")
def client(service):
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


def vectors(answer) -> np.ndarray:
    return np.array([item.embedding for item in answer.data], np.float32)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_what_comes_back_is_what_encode_gives(client, sample, encoding):
    """None is the client's own choice: base64, decoded by the client."""
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="ko", input=TEXTS, **options)
    if encoding == "base64":
        import base64

        rows = [np.frombuffer(base64.b64decode(item.embedding), "<f4") for item in answer.data]
        found = np.stack(rows)
    else:
        found = vectors(answer)
    np.testing.assert_allclose(found, sample.encode(TEXTS), atol=2e-6)
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    assert answer.model == "ko"
    assert answer.object == "list"
    assert {item.object for item in answer.data} == {"embedding"}
    tokens = sum(sample.count_tokens(TEXTS))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_float_and_base64_are_the_same_bits(client):
    a = client.embeddings.create(model="ko", input=TEXTS, encoding_format="float")
    b = client.embeddings.create(model="ko", input=TEXTS)
    assert vectors(a).tobytes() == vectors(b).tobytes()


def test_one_text(client, sample):
    answer = client.embeddings.create(model="ko", input=TEXTS[0])
    np.testing.assert_allclose(vectors(answer)[0], sample.encode(TEXTS[0]), atol=2e-6)


def test_dimensions(client, sample):
    answer = client.embeddings.create(model="ko", input=TEXTS, dimensions=32)
    np.testing.assert_allclose(vectors(answer), sample.encode(TEXTS, truncate_dim=32), atol=2e-6)


@pytest.mark.parametrize(
    ("extra", "prompt"),
    [
        ({"input_type": "query"}, "query"),
        ({"input_type": "document"}, "document"),
        ({"input_type": "passage"}, "document"),
        ({"prompt_name": "query"}, "query"),
    ],
)
def test_prompts(client, sample, extra, prompt):
    answer = client.embeddings.create(model="prompted", input=TEXTS, extra_body=extra)
    expected = sample.encode(TEXTS, prompt=PROMPTS[prompt])
    np.testing.assert_allclose(vectors(answer), expected, atol=2e-6)
    assert np.abs(expected - sample.encode(TEXTS)).max() > 1e-3  # the prompt changes something


def test_the_default_prompt_is_for_requests_that_name_none(sample_bundle, sample, tmp_path):
    """A document is not given the prompt for queries because it has none of its own."""
    folder = shutil.copytree(sample_bundle, tmp_path / "m.kosine")
    edit_manifest(folder, lambda m: m.update(prompts={"query": PROMPTS["query"]}))
    words = (folder, "--backend", "onnx", "--default-prompt-name", "query")
    with running(tmp_path / "log", *words) as service:
        for more, prompt in (
            ({}, PROMPTS["query"]),
            ({"input_type": "query"}, PROMPTS["query"]),
            ({"input_type": "document"}, ""),
        ):
            (item,) = ask(service.url, TEXTS[0], model="m", **more).json()["data"]
            expected = sample.encode(TEXTS[0], prompt=prompt)
            np.testing.assert_allclose(item["embedding"], expected, atol=2e-6)


def test_long_texts_are_cut_and_counted_as_they_ran(client, sample):
    text = "긴 문장입니다. " * 500
    answer = client.embeddings.create(model="ko", input=text)
    assert answer.usage.prompt_tokens == sample.max_tokens
    np.testing.assert_allclose(vectors(answer)[0], sample.encode(text), atol=2e-6)


def test_as_many_texts_as_openai_takes_are_split_not_refused(client, sample):
    texts = [f"{number}번째 문장" for number in range(2_048)]
    answer = client.embeddings.create(model="ko", input=texts)
    np.testing.assert_allclose(vectors(answer), sample.encode(texts), atol=2e-6)
    few = client.embeddings.create(model="ko", input=texts[:150], encoding_format="float")
    np.testing.assert_allclose(vectors(few), sample.encode(texts[:150]), atol=2e-6)  # in pieces
    assert answer.usage.total_tokens == sum(sample.count_tokens(texts))


def test_models(client, sample):
    found = client.models.list().data
    assert [model.id for model in found] == ["ko", "prompted"]
    assert {model.object for model in found} == {"model"}
    assert found[0].dimensions == sample.dim
    assert found[0].fingerprint == sample.fingerprint
    for model in found:
        assert client.models.retrieve(model.id).model_dump() == model.model_dump()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no")


def test_each_model_answers_by_its_name(client):
    for name in ("ko", "prompted"):
        assert client.embeddings.create(model=name, input="a").model == name


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"input": []}, "input", "empty list"),
        ({"input": ""}, "input", "empty string"),
        ({"input": ["a", ""]}, "input", "input 1 is an empty string"),
        ({"input": ["a"] * 2_049}, "input", "at most 2048"),
        ({"input": "a", "dimensions": 257}, "dimensions", "256"),
        ({"input": "a", "dimensions": 0}, "dimensions", ">= 1"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
        ({"input": "a\0b"}, None, "NUL"),
        ({"input": [1, 2, 3]}, "input", "check_embedding_ctx_length=False"),
        ({"input": [[1, 2, 3]]}, "input", "--token-input"),
        ({"input": "a", "extra_body": {"prompt_name": "no"}}, None, "'query'"),
    ],
)
def test_what_is_refused(client, options, param, message):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="ko", **options)
    error = caught.value.body
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert caught.value.body["code"] == "model_not_found"
    assert "ko, prompted" in caught.value.body["message"]


def test_a_lone_surrogate_is_a_400(service):
    body = b'{"model":"ko","input":"\\ud800"}'
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{service.url}/v1/embeddings", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_many_at_once_get_their_own(service, sample):
    texts = [f"{number}번 문장" for number in range(200)]
    expected = sample.encode(texts)

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
            return await asyncio.gather(
                *(client.embeddings.create(model="ko", input=text) for text in texts)
            )

    found = np.concatenate([vectors(answer) for answer in asyncio.run(main())])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_token_ids_where_they_are_asked_for(sample_bundle, sample, tmp_path):
    pieces = [sample.prepare([text]).batch.ids.tolist() for text in TEXTS]
    with running(tmp_path / "log", sample_bundle, "--token-input", "--backend", "onnx") as service:
        for given in (pieces, pieces[0], TEXTS):
            answer = ask(service.url, given).json()
            found = np.array([item["embedding"] for item in answer["data"]], np.float32)
            expected = sample.encode(TEXTS)[: len(found)]
            np.testing.assert_allclose(found, expected, atol=2e-6)
        for given in ([1, "a"], [[10**9]], [[-1]], [[]], [[1], "a"], [[[1]]]):
            answer = ask(service.url, given)
            assert answer.status_code == 400, given
            assert answer.json()["error"]["type"] == "invalid_request_error"
