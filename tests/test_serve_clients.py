"""Clients that people have, as they are, against a started service. (OpenAI's own for Python has
test_serve_openai.py to itself.)"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from serve_machine import PROMPTS, running, variant

TEXTS = ["한 남자가 기타를 친다.", "A man plays the guitar.", "비행기가 이륙한다."]
KEY = "a-key-for-clients"


# Some of these leave their connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def service(sample_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    prompted = variant(sample_bundle, folder / "prompted.kosine")
    words = (sample_bundle, prompted, "--backend", "onnx")
    with running(folder / "log", *words, env={"KOSINE_API_KEY": KEY}) as found:
        yield found


def same(found: object, expected: object) -> None:
    np.testing.assert_allclose(np.array(found, np.float32), expected, atol=2e-6)


def test_huggingface_hub(service, sample, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    # The tests' own setting keeps them from model hubs; this service is none.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = hub.InferenceClient(model=service.url, token=KEY)
    same(client.feature_extraction(TEXTS), sample.encode(TEXTS))
    same(client.feature_extraction(TEXTS[0], normalize=True, truncate=True)[0],
         sample.encode(TEXTS[0]))  # fmt: skip
    scores = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    vectors = sample.encode(TEXTS)
    same(scores, vectors[1:] @ vectors[0])


def test_llama_index(service, sample):
    """It sends its token without "Bearer"."""
    tei = pytest.importorskip(
        "llama_index.embeddings.text_embeddings_inference",
        reason="llama-index-embeddings-text-embeddings-inference is not installed",
        exc_type=ImportError,
    )
    client = tei.TextEmbeddingsInference(
        model_name="sample", base_url=service.url, auth_token=KEY, timeout=60
    )
    same(client.get_text_embedding_batch(TEXTS), sample.encode(TEXTS))
    same(client.get_query_embedding(TEXTS[0]), sample.encode(TEXTS[0]))


def test_langchain(service, sample):
    """By default it sends token ids of OpenAI's models: refused, with what to do about it."""
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    openai = pytest.importorskip("openai")
    options = {"model": "sample", "base_url": f"{service.url}/v1", "api_key": KEY}
    client = langchain.OpenAIEmbeddings(check_embedding_ctx_length=False, **options)
    same(client.embed_documents(TEXTS), sample.encode(TEXTS))
    same(client.embed_query(TEXTS[0]), sample.encode(TEXTS[0]))

    # Its own tokenizer would be fetched from elsewhere: this stands in, and gives ids as it does.
    class Ids:
        def encode(self, text: str, **_: object) -> list[int]:
            return list(text.encode())

        encode_ordinary = encode

    import tiktoken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "encoding_for_model", lambda _: Ids())
        patch.setattr(tiktoken, "get_encoding", lambda _: Ids())
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            langchain.OpenAIEmbeddings(**options).embed_documents(TEXTS)


def test_haystack(service, sample):
    pytest.importorskip("haystack", reason="haystack-ai is not installed")
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    options = {
        "model": "sample",
        "api_base_url": f"{service.url}/v1",
        "api_key": Secret.from_token(KEY),
    }
    same(OpenAITextEmbedder(**options).run(TEXTS[0])["embedding"], sample.encode(TEXTS[0]))
    documents = [Document(content=text) for text in TEXTS]
    embedder = OpenAIDocumentEmbedder(progress_bar=False, **options)
    found = embedder.run(documents)["documents"]
    same([document.embedding for document in found], sample.encode(TEXTS))


def test_openai_for_node(service, sample, tmp_path):
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm or node is not installed")
    folder = tmp_path
    (folder / "package.json").write_text('{"type": "module"}')
    installed = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", folder, "openai@7.57.0"],
        capture_output=True,
        cwd=folder,
        timeout=300,
        check=False,
    )
    if installed.returncode:
        pytest.skip("npm cannot install openai here")
    (folder / "ask.js").write_text("""
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL, apiKey: process.env.KEY });
const input = JSON.parse(process.env.TEXTS);
const found = await client.embeddings.create({ model: "prompted", input, input_type: "query" });
const few = await client.embeddings.create(
  { model: "prompted", input, dimensions: 8, encoding_format: "float" });
let refused = null;
try { await client.embeddings.create({ model: "prompted", input: "" }); }
catch (error) { refused = [error.constructor.name, error.status, error.type]; }
console.log(JSON.stringify([found.data.map((row) => row.embedding),
                            few.data.map((row) => row.embedding), refused]));
""")
    env = {**os.environ, "URL": f"{service.url}/v1", "KEY": KEY, "TEXTS": json.dumps(TEXTS)}
    done = subprocess.run(
        [node, "ask.js"], cwd=folder, env=env, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found, few, refused = json.loads(done.stdout)
    same(found, sample.encode(TEXTS, prompt=PROMPTS["query"]))
    same(few, sample.encode(TEXTS, truncate_dim=8))
    assert refused == ["BadRequestError", 400, "invalid_request_error"]
