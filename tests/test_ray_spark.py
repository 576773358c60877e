"""The adapters for Ray and Spark, without them: what they give to an actor and to a worker.

With the real ones on clusters of several workers: tests/libraries/ray_trial.py, spark_trial.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kosine
import kosine.ray
import kosine.spark
from kosine.errors import InputError, MissingExtra, QueueFull

TEXTS = ["한 문장", "다른 문장", "", "비행기가 이륙하고 있다."]


@pytest.fixture
def in_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an actor with two CPUs and no GPU sees of Ray."""
    context = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 2.0})
    fake = SimpleNamespace(get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", fake)


@pytest.fixture(scope="module")
def vectors(sample_bundle: Any) -> np.ndarray:
    return kosine.load(sample_bundle, backend="onnx", dtype="float32").encode(TEXTS)


LOAD = {"backend": "onnx", "dtype": "float32"}


@pytest.mark.usefixtures("in_ray")
def test_a_batch_keeps_its_columns_and_gains_one(sample_bundle, vectors):
    actor = kosine.ray.EncodeBatches(str(sample_bundle), load=LOAD)
    assert actor.encoder.backend.threads == 2
    ids = np.arange(len(TEXTS))
    done = actor({"id": ids, "text": np.array(TEXTS, object)})
    assert list(done) == ["id", "text", "vector"]
    np.testing.assert_array_equal(done["id"], ids)
    assert done["vector"].dtype == np.float32
    np.testing.assert_allclose(done["vector"], vectors, atol=2e-6)


@pytest.mark.usefixtures("in_ray")
def test_columns_that_do_not_suit_are_named(sample_bundle):
    actor = kosine.ray.EncodeBatches(str(sample_bundle), load=LOAD, text_field="body")
    with pytest.raises(InputError, match="text_field='body'"):
        actor({"text": np.array(TEXTS, object)})
    with pytest.raises(InputError, match="vector_field='vector'"):
        actor({"body": np.array(TEXTS, object), "vector": np.zeros(4)})


def request(body: Any) -> Any:
    async def read() -> Any:
        return json.loads(body) if isinstance(body, str) else body

    return SimpleNamespace(json=read)


@pytest.mark.usefixtures("in_ray")
def test_a_replica_answers_like_tei(sample_bundle, vectors, monkeypatch):
    pytest.importorskip("starlette", reason="starlette is not installed")
    replica = kosine.ray.Embedder(str(sample_bundle), load=LOAD)

    def ask(body: Any) -> tuple[int, Any]:
        reply = asyncio.run(replica(request(body)))
        return reply.status_code, json.loads(reply.body)

    with replica.batcher:
        replica.check_health()
        status, found = ask({"inputs": TEXTS})
        assert status == 200
        np.testing.assert_allclose(found, vectors, atol=2e-6)
        assert np.shape(ask({"inputs": "한 문장"})[1]) == (1, vectors.shape[1])
        for bad in ("{", {"input": "x"}, [1], {"inputs": [3]}, {"inputs": "x", "prompt_name": "?"}):
            status, told = ask(bad)
            assert (status, told["error_type"]) == (400, "Validation"), bad

        async def full(*_: Any, **__: Any) -> None:
            raise QueueFull("the queue is full", retry_after=1.0)

        monkeypatch.setattr(replica.batcher, "aencode", full)
        status, told = ask({"inputs": "한 문장"})
        assert (status, told["error_type"]) == (429, "Overloaded")
    with pytest.raises(RuntimeError, match="stopped"):
        replica.check_health()


def test_nulls_stay_null_in_spark(sample_bundle, vectors, monkeypatch):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    task = SimpleNamespace(cpus=lambda: 1)
    pyspark = SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: task))
    functions = ModuleType("pyspark.sql.pandas.functions")
    functions.pandas_udf = lambda function, kind: (function, kind)
    monkeypatch.setitem(sys.modules, "pyspark", pyspark)
    monkeypatch.setitem(sys.modules, functions.__name__, functions)
    broadcast = SimpleNamespace(broadcast=lambda value: SimpleNamespace(value=value))
    function, kind = kosine.spark.encode_udf(
        SimpleNamespace(sparkContext=broadcast), str(sample_bundle), load=LOAD
    )
    assert kind == "array<float>"
    columns = (TEXTS, [None, TEXTS[0]], [])
    batches = [pandas.Series(column, dtype=object) for column in columns]
    whole, holed, empty = function(iter(batches))
    np.testing.assert_allclose(np.stack(list(whole)), vectors, atol=2e-6)
    assert holed[0] is None
    np.testing.assert_allclose(holed[1], vectors[0], atol=2e-6)
    assert len(empty) == 0


def test_without_spark_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pyspark\[sql\]'"):
        kosine.spark.encode_udf(None, "ko.kosine")
