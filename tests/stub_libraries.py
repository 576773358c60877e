"""The part of each library's interface that a recipe touches, where the library is not installed.

They do the least that makes a recipe's result a result: call what the library calls, with what it
passes, and score what comes back. `make test-libraries` has the real ones.
"""

from __future__ import annotations

import pickle
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


def module(name: str, **contents: Any) -> dict[str, ModuleType]:
    """A module by its dotted name, and the packages that it is in."""
    found = ModuleType(name)
    vars(found).update(contents)
    return {name: found}


def keybert() -> dict[str, ModuleType]:
    class BaseEmbedder:
        def __init__(self, embedding_model=None, word_embedding_model=None):
            self.embedding_model = embedding_model
            self.word_embedding_model = word_embedding_model

    class KeyBERT:
        def __init__(self, model):
            assert isinstance(model, BaseEmbedder), "anything else is silently another model"
            self.model = model

        def extract_keywords(self, docs, top_n):
            words = np.array(sorted({word.strip(".") for word in docs.split()}))
            document, each = self.model.embed([docs]), self.model.embed(words)
            scores = (document @ each.T)[0]
            order = np.argsort(-scores)[:top_n]
            return [(str(words[i]), round(float(scores[i]), 4)) for i in order]

    return module("keybert", KeyBERT=KeyBERT) | module("keybert.backend", BaseEmbedder=BaseEmbedder)


def bertopic() -> dict[str, ModuleType]:
    class BaseEmbedder:
        def __init__(self, embedding_model=None, word_embedding_model=None):
            self.embedding_model = embedding_model
            self.word_embedding_model = word_embedding_model

        def embed_documents(self, document, verbose=False):
            return self.embed(document, verbose)

    class BERTopic:
        def __init__(self, embedding_model, umap_model, hdbscan_model):
            assert isinstance(embedding_model, BaseEmbedder), "anything else is another model"
            self.models = embedding_model, umap_model, hdbscan_model

        def fit_transform(self, documents):
            embedder, reducer, clusters = self.models
            vectors = embedder.embed_documents(list(documents), verbose=False)
            assert isinstance(vectors, np.ndarray)
            return clusters.fit_predict(reducer.fit_transform(vectors)).tolist(), None

    return module("bertopic", BERTopic=BERTopic) | module(
        "bertopic.backend", BaseEmbedder=BaseEmbedder
    )


def chromadb() -> dict[str, ModuleType]:
    class EmbeddingFunction:
        pass

    def register_embedding_function(function):
        for name in ("name", "get_config", "build_from_config"):
            assert callable(getattr(function, name))
        return function

    class Collection:
        def __init__(self, embed):
            # What is stored with the collection makes the function that is used from then on.
            self.embed = type(embed).build_from_config(embed.get_config())

        def upsert(self, ids, documents):
            assert all(isinstance(each, str) for each in ids)
            self.documents, self.vectors = documents, np.array(self.embed(input=documents))

        def query(self, query_texts, n_results):
            queries = self.embed.embed_query(input=query_texts)
            assert all(isinstance(query, np.ndarray) for query in queries)
            order = np.argsort(-(np.array(queries) @ self.vectors.T), axis=1)[:, :n_results]
            return {"documents": [[self.documents[i] for i in row] for row in order]}

    class Client:
        def get_or_create_collection(self, name, embedding_function, configuration):
            assert name
            assert configuration == {"hnsw": {"space": "cosine"}}
            return Collection(embedding_function)

    return (
        module("chromadb", EphemeralClient=Client)
        | module("chromadb.utils")
        | module(
            "chromadb.utils.embedding_functions",
            EmbeddingFunction=EmbeddingFunction,
            register_embedding_function=register_embedding_function,
        )
    )


def datasets() -> dict[str, ModuleType]:
    class Dataset(dict):
        @classmethod
        def from_dict(cls, columns):
            return cls(columns)

        def map(self, function, fn_kwargs, batched, num_proc):
            del num_proc
            assert batched
            fn_kwargs = pickle.loads(pickle.dumps(fn_kwargs))  # as it is hashed, and sent
            batches = [slice(i, i + 10) for i in range(0, len(self["text"]), 10)]
            added = [function({"text": self["text"][part]}, **fn_kwargs) for part in batches]
            return Dataset(
                self | {name: np.concatenate([a[name] for a in added]) for name in added[0]}
            )

    return module("datasets", Dataset=Dataset)


def qdrant() -> dict[str, ModuleType]:
    def record(*names):
        return {name: type(name, (SimpleNamespace,), {}) for name in names}

    models = SimpleNamespace(
        **record(
            *("VectorParams", "BinaryQuantization", "BinaryQuantizationConfig"),
            *("SearchParams", "QuantizationSearchParams"),
        ),
        Distance=SimpleNamespace(COSINE="Cosine", EUCLID="Euclid"),
        Datatype=SimpleNamespace(UINT8="uint8"),
    )

    class QdrantClient:
        def __init__(self, location):
            assert location == ":memory:"

        def create_collection(self, name, vectors_config):
            assert name
            self.config = vectors_config

        def upload_collection(self, name, ids, vectors):
            assert name
            self.ids, self.vectors = list(ids), vectors
            for each, config in self.config.items():
                assert vectors[each].shape == (len(self.ids), config.size)

        def query_points(self, name, query, using, limit, search_params=None):
            assert name
            rows = self.vectors[using]
            if self.config[using].distance == "Euclid":
                scores = -np.linalg.norm(rows - query, axis=1)
            else:
                assert search_params.quantization.rescore
                scores = rows @ query
            order = np.argsort(-scores)[:limit]
            points = [SimpleNamespace(id=self.ids[i], score=scores[i]) for i in order]
            return SimpleNamespace(points=points)

    return module("qdrant_client", QdrantClient=QdrantClient, models=models)


def usearch() -> dict[str, ModuleType]:
    class Index:
        def __init__(self, ndim, metric, dtype):
            self.width, self.type = {
                ("hamming", "b1"): (-(-ndim // 8), np.uint8),
                ("l2sq", "i8"): (ndim, np.int8),
            }[metric, dtype]

        def add(self, keys, vectors):
            assert vectors.shape == (len(keys), self.width)
            assert vectors.dtype == self.type
            self.keys, self.vectors = keys, vectors

        def search(self, query, count):
            if self.type == np.uint8:
                apart = np.unpackbits(self.vectors ^ query, axis=1).sum(1)
            else:
                apart = np.square(self.vectors.astype(int) - query).sum(1)
            return SimpleNamespace(keys=self.keys[np.argsort(apart)[:count]])

    return module("usearch") | module("usearch.index", Index=Index)


STUBS = {
    "KeyBERT": keybert,
    "BERTopic": bertopic,
    "Chroma": chromadb,
    "datasets": datasets,
    "qdrant": qdrant,
    "usearch": usearch,
}


def install(name: str, monkeypatch: Any) -> None:
    for path, stub in STUBS[name]().items():
        monkeypatch.setitem(sys.modules, path, stub)
