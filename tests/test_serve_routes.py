"""The routes of text-embeddings-inference, Cohere and SageMaker; metrics, logs and the OpenAPI
document."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from kosine.quantization import quantize

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from serve_machine import NAN, PROMPTS, InThread, running, variant

TEXTS = ["한 남자가 기타를 친다.", "A man plays the guitar.", "비행기가 이륙한다."]
SECRET = "주민등록번호"


@pytest.fixture(scope="module")
def prompted(sample_bundle, tmp_path_factory):
    return variant(sample_bundle, tmp_path_factory.mktemp("prompted") / "prompted.kosine")


@pytest.fixture(scope="module")
def service(sample_bundle, prompted, tmp_path_factory):
    log = tmp_path_factory.mktemp("routes") / "log"
    words = (f"ko={sample_bundle}", prompted, "--backend", "onnx", "--log-format", "json")
    with running(log, *words) as found:
        yield found


@pytest.fixture
def post(service):
    def call(path: str, **body: object) -> httpx.Response:
        return httpx.post(service.url + path, json=body, timeout=60)

    return call


def same(found: object, expected: object) -> None:
    np.testing.assert_allclose(np.array(found, np.float32), expected, atol=2e-6)


# text-embeddings-inference


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
def test_embed(post, sample, path):
    answer = post(path, inputs=TEXTS)
    same(answer.json(), sample.encode(TEXTS))
    same(post(path, inputs=TEXTS[0]).json(), sample.encode(TEXTS[:1]))
    same(post(path, inputs=[""]).json(), sample.encode([""]))  # a blank text is a text
    tokens = sum(sample.count_tokens(TEXTS))
    headers = answer.headers
    assert int(headers["x-compute-tokens"]) == tokens
    assert int(headers["x-compute-characters"]) == sum(map(len, TEXTS))
    total = int(headers["x-total-time"])
    for name in ("x-compute-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert 0 <= int(headers[name]) <= total + 1, name


def test_times_are_those_of_the_stages(sample_bundle):
    """A request that waits behind another says so, and how long its own batch took."""
    with InThread(sample_bundle) as service, ThreadPoolExecutor(2) as pool:
        service.engine.gate.clear()
        url = f"{service.url}/embed"
        first = pool.submit(httpx.post, url, json={"inputs": "a"}, timeout=60)
        service.wait(lambda: service.engine.runs == 1)
        second = pool.submit(httpx.post, url, json={"inputs": "b"}, timeout=60)
        service.wait(lambda: service.batcher.stats().queue_requests == 1)
        time.sleep(0.3)
        service.engine.gate.set()
        one, two = first.result().headers, second.result().headers
    assert int(one["x-inference-time"]) >= 290
    assert int(one["x-queue-time"]) < 250
    assert int(two["x-queue-time"]) >= 290
    assert int(two["x-inference-time"]) < 250


def test_embed_options(post, sample):
    same(post("/embed", inputs=TEXTS, dimensions=32).json(), sample.encode(TEXTS, truncate_dim=32))
    raw = sample.encode(TEXTS, normalize_embeddings=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    np.testing.assert_allclose(
        post("/embed", inputs=TEXTS, normalize=False).json(), raw, rtol=1e-4, atol=1e-5
    )
    same(post("/embed", inputs=TEXTS, normalize=None).json(), sample.encode(TEXTS))
    asked = post("/embed", inputs=TEXTS, prompt_name="query", model="prompted")
    same(asked.json(), sample.encode(TEXTS, prompt=PROMPTS["query"]))
    assert np.abs(sample.encode(TEXTS, prompt=PROMPTS["query"]) - sample.encode(TEXTS)).max() > 1e-3


def test_which_end_is_cut(post, sample):
    words = " ".join(str(number) for number in range(400))
    right = post("/embed", inputs=[words, "짧다"])
    same(right.json(), sample.encode([words, "짧다"]))
    left = post("/embed", inputs=[words, "짧다"], truncation_direction="Left")
    ids = post("/tokenize", inputs=words).json()[0]
    kept = [ids[0], *ids[1 - sample.max_tokens :]]
    assert len(kept) == sample.max_tokens
    # The text that begins where the left cut ends is, in the middle of no word, the same text.
    begin = kept[1]["start"]
    if words[begin - 1] == " ":
        same(left.json()[0], sample.encode(words[begin:]))
    same(left.json()[1], sample.encode("짧다"))
    assert int(left.headers["x-compute-tokens"]) == sample.max_tokens + sample.count_tokens("짧다")
    refused = post("/embed", inputs=[words], truncate=False)
    assert refused.status_code == 422
    assert post("/embed", inputs=["짧다"], truncate=False).status_code == 200


@pytest.mark.parametrize("path", ["/similarity", "/"])
def test_similarity(post, sample, path):
    body = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    expected = sample.similarity(sample.encode(TEXTS[:1]), sample.encode(TEXTS[1:]))[0]
    same(post(path, inputs=body).json(), expected)
    queries = sample.encode(TEXTS, prompt=PROMPTS["query"])
    asked = post(path, inputs=body, parameters={"prompt_name": "query"}, model="prompted")
    same(asked.json(), sample.similarity(queries[:1], queries[1:])[0])


def test_tokenize_and_decode(post, sample):
    answer = post("/tokenize", inputs=TEXTS).json()
    for text, tokens in zip(TEXTS, answer, strict=True):
        assert [token["id"] for token in tokens] == sample.prepare([text]).batch.ids.tolist()
        assert set(tokens[0]) == {"id", "text", "special", "start", "stop"}
        assert tokens[0]["special"]
        assert tokens[0]["start"] is None
        for token in tokens[1:-1]:
            assert not token["special"]
            assert token["text"] == text[token["start"] : token["stop"]]
    bare = post("/tokenize", inputs=TEXTS[0], add_special_tokens=False).json()[0]
    assert bare == answer[0][1:-1]
    ids = [[token["id"] for token in tokens] for tokens in answer]
    decoded = post("/decode", ids=ids).json()
    assert decoded[0].replace(" ", "") == TEXTS[0].replace(" ", "")
    assert post("/decode", ids=ids[0]).json() == decoded[:1]
    assert post("/decode", ids=[]).status_code == 400
    assert post("/decode", ids=[1, [2]]).status_code == 422
    assert post("/decode", ids=[2**31 - 1]).status_code == 200  # no token, no text


def test_info(service, sample):
    found = httpx.get(f"{service.url}/info").json()
    assert found["model_id"] == "ko"
    assert found["models"] == ["ko", "prompted"]
    assert found["max_input_length"] == sample.max_tokens
    assert found["fingerprint"] == sample.fingerprint
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": []}, 400, "Empty"),
        ("/embed", {"inputs": 3}, 422, "Validation"),
        ("/embed", {}, 422, "Validation"),
        ("/embed", {"inputs": ["a"] * 2_049}, 422, "Validation"),
        ("/embed", {"inputs": "a\0"}, 422, "Validation"),
        ("/embed", {"inputs": "a", "dimensions": 9_999}, 422, "Validation"),
        ("/embed", {"inputs": "a", "prompt_name": "no"}, 422, "Validation"),
        ("/embed", {"inputs": "a", "model": "no"}, 404, "NotFound"),
        ("/", {"inputs": {"source_sentence": "a"}}, 422, "Validation"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty"),
        ("/tokenize", {"inputs": "a", "prompt_name": "no"}, 422, "Validation"),
    ],
)
def test_tei_errors(post, path, body, status, kind):
    answer = post(path, **body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error_type"] == kind


def test_the_field_that_asks_for_too_many_dimensions_is_named(post):
    assert "dimensions is 9999; " in post("/embed", inputs="a", dimensions=9_999).json()["error"]
    body = {"model": "ko", "texts": TEXTS, "input_type": "search_document"}
    message = post("/v2/embed", **body, output_dimension=9_999).json()["message"]
    assert message.startswith("output_dimension is 9999; ")


def test_nan_is_a_5xx_here_too(sample_bundle):
    with InThread(sample_bundle) as service:
        answer = httpx.post(f"{service.url}/embed", json={"inputs": ["가", NAN]})
        assert answer.status_code == 500
        assert answer.json()["error_type"] == "Backend"


# Cohere


@pytest.mark.parametrize(("kind", "prompt"), [("search_query", "query"), ("clustering", None)])
def test_cohere(post, sample, kind, prompt):
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = post(
        "/v2/embed", model="prompted", texts=TEXTS, input_type=kind, embedding_types=kinds
    ).json()
    expected = sample.encode(TEXTS, prompt=PROMPTS.get(prompt, ""))
    found = answer["embeddings"]
    assert set(found) == set(kinds)
    vectors = np.array(found["float"], np.float32)
    same(vectors, expected)
    for each in kinds[1:5]:
        assert found[each] == quantize(vectors, each, sample.manifest.ranges).tolist()
    decoded = [np.frombuffer(base64.b64decode(row), "<f4") for row in found["base64"]]
    assert np.stack(decoded).tobytes() == vectors.tobytes()
    assert answer["texts"] == TEXTS
    assert answer["meta"]["billed_units"]["input_tokens"] > 0


def test_cohere_options_and_errors(post, sample):
    body = {"model": "ko", "texts": TEXTS, "input_type": "search_document"}
    answer = post("/v2/embed", **body, output_dimension=32).json()
    same(answer["embeddings"]["float"], sample.encode(TEXTS, truncate_dim=32))
    for change in (
        {"texts": []},
        {"input_type": "poetry"},
        {"embedding_types": []},
        {"output_dimension": 9_999},
        {"output_dimension": 9_999, "embedding_types": ["int8"]},
        {"texts": ["긴 " * 500], "truncate": "NONE"},
        {"texts": None},
    ):
        refused = post("/v2/embed", **{**body, **change})
        assert refused.status_code == 400, change
        assert set(refused.json()) == {"message"}
    assert post("/v2/embed", **{**body, "texts": ["긴 " * 500], "truncate": "START"}).is_success


# What operators read


def test_metrics(service, post):
    from prometheus_client.parser import text_string_to_metric_families

    def read() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = httpx.get(f"{service.url}/metrics").text
        assert SECRET not in text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = read()
    post("/embed", inputs=[SECRET] * 3)
    post(f"/{SECRET}", inputs=SECRET)
    after = read()

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    assert grown("kosine_http_requests_total", route="/embed", status="200") == 1
    assert grown("kosine_http_requests_total", route="unknown", status="404") == 1
    assert grown("kosine_http_request_seconds_count", route="/embed") == 1
    assert grown("kosine_batcher_batch_texts_total", model="ko") == 3
    assert grown("kosine_batcher_batch_texts_total", model="prompted") == 0
    assert after["kosine_http_requests_in_progress", ()] == 1  # the scrape itself


def test_no_text_is_logged(service, post):
    """Whatever is sent, wherever: in bodies that work and that do not, in paths and in headers."""
    for path in ("/embed", "/v1/embeddings", f"/{SECRET}", "/v2/embed", "/tokenize"):
        post(path, inputs=SECRET, input=SECRET, model=SECRET, texts=[SECRET], input_type=SECRET)
        headers = {"X-Request-Id": "a b", "Content-Type": "application/json"}
        url = service.url + path
        httpx.post(url, content=f'{{"inputs": "{SECRET}'.encode(), headers=headers)
    post("/embed", inputs=SECRET)
    log = service.log
    assert SECRET not in log
    assert ascii(SECRET)[1:-1] not in log
    lines = [json.loads(line) for line in log.splitlines()]
    answered = [line for line in lines if line["message"] == "POST /embed"]
    assert {"time", "level", "status", "ms", "model", "texts", "tokens", "id"} <= set(answered[-1])
    assert answered[-1]["status"] == 200
    assert answered[-1]["model"] == "ko"
    assert answered[-1]["tokens"] > 0


def test_spans(sample_bundle, monkeypatch):
    """OpenTelemetry's, below the caller's own span, with no text in them."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not here")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = sdk.TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with InThread(sample_bundle) as service:
        body = {"inputs": [SECRET, "b"]}
        headers = {"traceparent": parent}
        assert httpx.post(f"{service.url}/embed", json=body, headers=headers).status_code == 200
        assert httpx.post(f"{service.url}/{SECRET}", json=body).status_code == 404
        service.wait(lambda: len(exporter.get_finished_spans()) == 2)
    span, unknown = exporter.get_finished_spans()
    assert format(span.context.trace_id, "032x") == parent.split("-")[1]
    assert format(span.parent.span_id, "016x") == parent.split("-")[2]
    assert span.attributes["http.route"] == "/embed"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["kosine.texts"] == 2
    assert span.end_time > span.start_time
    assert unknown.attributes["http.route"] == "unknown"
    assert SECRET not in span.to_json() + unknown.to_json()


def test_the_openapi_document_lists_every_route(service):
    value = httpx.get(f"{service.url}/openapi.json").json()
    assert value["openapi"].startswith("3.")
    expected = {
        *("/v1/embeddings", "/v1/models", "/embed", "/similarity", "/", "/invocations"),
        *("/tokenize", "/decode", "/info", "/health", "/ping", "/health/ready", "/health/live"),
        *("/health/startup", "/metrics", "/v2/embed"),
    }
    assert expected <= set(value["paths"])
    embed = value["components"]["schemas"]["EmbedRequest"]
    assert set(embed["required"]) == {"inputs"}


def test_schemathesis(service):
    """Its generated requests, valid and not, against the document that the service gives."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    schema.config.generation.update(
        modes=[schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    )
    checks = [
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
    ]
    tried = 0
    for result in schema.get_all_operations():

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=result.ok().as_strategy())
        def check(case):
            nonlocal tried
            tried += 1
            response = case.call()
            case.validate_response(response, checks=checks)
            asked = case.headers and "X-Deadline-Ms" in case.headers
            assert response.status_code < 500 or (asked and response.status_code == 504)

        check()
    assert tried > 200
