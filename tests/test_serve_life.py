"""What the service does when there is too much, when clients leave, when engines fail, and at the
end: over real sockets."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

import kosine
from kosine.errors import InputError

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from kosine.serving.http.models import Models
from kosine.serving.http.settings import Settings
from serve_machine import (
    NAN,
    POISON,
    InThread,
    ask,
    launch,
    raw,
    request,
    running,
)


@pytest.fixture
def thread(sample_bundle):
    with InThread(sample_bundle) as service:
        yield service


def status(url: str, path: str = "/health/ready") -> int:
    return httpx.get(url + path).status_code


# Too much


def test_a_full_queue_is_429_with_retry_after(sample_bundle):
    """The bound holds, everybody who was let in is answered, and the others are told when."""
    with InThread(sample_bundle, queue_tokens=512) as service:
        assert ask(service.url, "warm").status_code == 200
        service.engine.gate.clear()
        text = "가나다라 " * 100  # 128 tokens when cut
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask, service.url, text)]
            service.wait(lambda: service.engine.runs == 2)  # holds one text, and waits
            asked += [pool.submit(ask, service.url, text) for _ in range(11)]
            service.wait(lambda: sum(future.done() for future in asked) == 7)
            assert service.batcher.stats().queue_tokens == 512
            service.engine.gate.set()
            answers = [future.result() for future in asked]
        kinds = sorted(answer.status_code for answer in answers)
        assert kinds == [200] * 5 + [429] * 7
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] == "overloaded"


def test_requests_in_progress_are_bounded(sample_bundle):
    with InThread(sample_bundle, max_requests=2) as service:
        service.engine.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            held = [pool.submit(ask, service.url, "a") for _ in range(2)]
            service.wait(lambda: service.service.in_progress == 2)
            refused = ask(service.url, "a")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert status(service.url) == 200  # health checks go through
            service.engine.gate.set()
            assert [future.result().status_code for future in held] == [200, 200]


def test_a_large_request_waits_its_turn_and_others_go_between(sample_bundle, sample):
    """1 000 texts of a queue that holds 1 024 tokens: in parts, and nobody is shut out."""
    texts = [f"{number}번째 문장" for number in range(1_000)]
    with InThread(sample_bundle, queue_tokens=1_024) as service, ThreadPoolExecutor(1) as pool:
        large = pool.submit(ask, service.url, texts)
        service.wait(lambda: service.engine.runs > 3)
        between = [ask(service.url, "사이").status_code for _ in range(5)]
        assert not large.done()
        answer = large.result()
    assert 200 in between
    assert set(between) <= {200, 429}
    found = np.array([item["embedding"] for item in answer.json()["data"]], np.float32)
    np.testing.assert_allclose(found, sample.encode(texts), atol=2e-6)


# Deadlines and clients that leave


def test_a_deadline_by_header(thread):
    thread.engine.gate.clear()
    started = time.monotonic()
    answer = ask(thread.url, "a", {"X-Deadline-Ms": "200"})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert 0.15 < time.monotonic() - started < 5
    thread.engine.gate.set()
    assert ask(thread.url, "a", {"X-Deadline-Ms": "5000"}).status_code == 200


def test_a_deadline_where_nothing_is_computed(thread, monkeypatch):
    model = thread.service.models.by_name["sample"]

    async def slow(*_: object) -> list[object]:
        await asyncio.sleep(0.1)
        return []

    monkeypatch.setattr(model, "pieces", slow)
    for milliseconds, code in ((20, 504), (20_000, 200)):
        headers = {"X-Deadline-Ms": str(milliseconds)}
        answer = httpx.post(f"{thread.url}/tokenize", json={"inputs": "a"}, headers=headers)
        assert answer.status_code == code


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1e3", "9999999999"])
def test_a_deadline_that_is_none(thread, value):
    assert ask(thread.url, "a", {"X-Deadline-Ms": value}).status_code == 400


@pytest.mark.parametrize("texts", [1, 700])
def test_a_client_that_goes_away_frees_its_place(thread, texts):
    """Cancelled in the batcher, whether its texts wait or are still to come."""
    thread.engine.gate.clear()
    body = {"model": "sample", "input": [f"{n}번 문장" for n in range(texts)]}
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(ask, thread.url, "held")  # in the engine; the others wait behind it
        thread.wait(lambda: thread.engine.runs == 1)
        with socket.create_connection(thread.address[:2]) as connection:
            connection.sendall(request(json.dumps(body).encode()))
            thread.wait(lambda: thread.batcher.stats().queue_requests > 0)
        thread.wait(lambda: thread.batcher.stats().queue_requests == 0)
        thread.wait(lambda: thread.service.in_progress == 1)
        thread.engine.gate.set()
        assert held.result().status_code == 200
    stats = thread.batcher.stats()
    assert stats.cancelled >= 1
    assert stats.completed == 1


# Engines that fail


def test_nan_and_failures_are_5xx_for_their_own_request_and_never_null(thread, sample):
    texts = [f"{number}번째 문장" for number in range(20)] + [NAN, POISON]
    for _ in range(3):
        with ThreadPoolExecutor(len(texts)) as pool:
            answers = list(pool.map(lambda text: ask(thread.url, text), texts))
        for text, answer in zip(texts, answers, strict=True):
            assert b"null" not in answer.content.replace(b'"param":null', b"")
            if text in (NAN, POISON):
                assert answer.status_code == 500
                assert answer.json()["error"]["type"] == "server_error"
                assert answer.json()["error"]["code"] == "backend"
            else:
                found = answer.json()["data"][0]["embedding"]
                np.testing.assert_allclose(found, sample.encode(text), atol=2e-6)


def test_a_failed_answer_says_nothing_of_the_machine(thread):
    answer = ask(thread.url, POISON).text
    for word in ("Traceback", "/", ".py", "onnx", "kosine.", "uvicorn"):
        assert word not in answer


def test_health_is_503_when_the_runner_cannot_run(thread):
    assert [status(thread.url, path) for path in ("/health", "/health/live")] == [200, 200]
    thread.batcher.close()
    for path in ("/health", "/health/ready", "/health/live", "/ping"):
        assert status(thread.url, path) == 503
    assert status(thread.url, "/health/startup") == 200
    assert ask(thread.url, "a").status_code == 503


# The beginning


def test_health_while_the_model_is_loaded(sample_bundle):
    service = InThread(sample_bundle)
    go, load = threading.Event(), service.service.models.load

    async def slow_load() -> None:
        await asyncio.to_thread(go.wait)
        await load()

    service.service.models.load = slow_load
    with ThreadPoolExecutor(1) as pool:
        entered = pool.submit(service.__enter__)
        service.wait(lambda: service.server.started)
        try:
            found = {p: status(service.url, f"/health/{p}") for p in ("live", "ready", "startup")}
            assert found == {"live": 200, "ready": 503, "startup": 503}
            refused = ask(service.url, "a")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        finally:
            go.set()
            entered.result()
            ready = [status(service.url, f"/health/{p}") for p in ("live", "ready", "startup")]
            service.__exit__()
    assert ready == [200, 200, 200]


def test_it_is_not_ready_before_the_last_model_is(sample_bundle, monkeypatch):
    """Nor does one of them stay behind where another cannot be loaded."""
    kept: list[weakref.ref[kosine.Encoder]] = []
    names = iter(["a", "b", "a", "b"])

    async def main() -> None:
        models = Models({"a": sample_bundle, "b": sample_bundle}, Settings())

        def load(*_: object) -> kosine.Encoder:
            name = next(names)
            assert not models.by_name
            if name == "b" and not kept[1:]:
                raise InputError("no such luck")
            encoder = kosine.load(sample_bundle, backend="onnx")
            kept.append(weakref.ref(encoder))
            return encoder

        monkeypatch.setattr("kosine.serving.http.models.load_verified", load)
        with pytest.raises(InputError):
            await models.load()
        await asyncio.sleep(0.1)
        assert [ref() for ref in kept] == [None]
        await models.load()
        assert list(models.by_name) == ["a", "b"]
        await models.close(10)

    asyncio.run(main())


def test_whatever_happens_while_it_loads_ends_it(sample_bundle):
    service = InThread(sample_bundle)

    async def load() -> None:
        raise RuntimeError("out of something")

    service.service.models.load = load
    with pytest.raises(RuntimeError, match="out of something"):
        service.server.start()


def test_a_bundle_that_cannot_be_used_ends_it_with_one_line(sample_bundle, tmp_path):
    broken = shutil.copytree(sample_bundle, tmp_path / "broken.kosine")
    weights = broken / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    service = launch(tmp_path / "log", broken)
    assert service.process.wait(60) == 2
    assert "sha256" in service.log.splitlines()[-1]
    assert "Traceback" not in service.log
    service = launch(tmp_path / "log", tmp_path / "no-such.kosine")
    assert service.process.wait(60) == 2
    assert service.log.count("\n") == 1
    assert "no-such.kosine" in service.log


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_under_load_loses_nothing(sample_bundle, tmp_path, number):
    """Clients that keep their connections, clients that make new ones, and connections that the
    server has not accepted yet: each request that was sent before the listener was closed is
    answered; from the signal on with `Connection: close`."""
    lost, answered, closed = [], [], []
    words = (sample_bundle, "--backend", "onnx", "--drain-delay", "1.5")
    with running(tmp_path / "log", *words) as service:
        stop = threading.Event()

        def work(keep: bool) -> None:
            client = httpx.Client(timeout=30)
            while not stop.is_set():
                body = {"model": "sample", "input": "끝까지 답한다"}
                try:
                    answer = client.post(f"{service.url}/v1/embeddings", json=body)
                except httpx.ConnectError:
                    return  # nobody listens any more: nothing was accepted
                except httpx.HTTPError as error:
                    lost.append(error)
                    return
                answered.append(answer.status_code)
                if answer.headers.get("connection") == "close":
                    closed.append(answer)
                if not keep:
                    client.close()
                    client = httpx.Client(timeout=30)

        threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(8)]
        for thread in threads:
            thread.start()
        while len(answered) < 100:
            time.sleep(0.01)
        assert not closed
        started = time.monotonic()
        service.process.send_signal(number)
        time.sleep(0.1)
        assert status(service.url) == 503
        assert service.process.wait(30) == 0
        assert time.monotonic() - started < 10
        stop.set()
        for thread in threads:
            thread.join()
    assert not lost
    assert set(answered) == {200}
    assert closed
    assert "Traceback" not in service.log


def test_a_drain_ends_at_its_deadline(sample_bundle):
    with InThread(sample_bundle, drain_timeout=1.0) as service, ThreadPoolExecutor(1) as pool:
        service.engine.gate.clear()
        held = pool.submit(ask, service.url, "a")
        service.wait(lambda: service.engine.runs == 1)
        started = time.monotonic()
        service.server.should_exit = service.service.draining = True
        answer = held.result()
        assert answer.status_code == 503
        assert 0.5 < time.monotonic() - started < 8
        service.engine.gate.set()


def test_a_connection_with_half_a_request_does_not_hold_up_the_end(sample_bundle, tmp_path):
    with (
        running(tmp_path / "log", sample_bundle, "--drain-timeout", "2") as service,
        socket.create_connection(service.address) as connection,
    ):
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Le")
        time.sleep(0.1)
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 8


def test_pipelined_requests_are_answered_in_order(thread):
    one = request(b'{"model":"sample","input":"a"}').replace(b"Connection: close\r\n", b"")
    two = request(b'{"model":"sample","input":""}')
    answer = raw(thread.address[:2], one + two)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.index(b"200 OK") < answer.index(b"400 Bad Request")


def test_the_next_request_may_come_slowly_while_one_is_answered(sample_bundle):
    """Its first bytes are there, and the deadline for its arrival passes: the one under way is
    answered all the same."""
    with InThread(sample_bundle, read_timeout=0.5) as service:
        service.engine.gate.clear()
        one = request(b'{"model":"sample","input":"a"}').replace(b"Connection: close\r\n", b"")
        with socket.create_connection(service.address[:2], 10) as connection:
            connection.sendall(one + b"POST /v1/emb")
            service.wait(lambda: service.engine.runs == 1)
            time.sleep(2)
            service.engine.gate.set()
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
