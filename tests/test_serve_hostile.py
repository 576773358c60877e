"""Requests that nobody's client sends: never a 5xx, never a traceback, and the service lives on."""

from __future__ import annotations

import os
import socket
import time

import httpx
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from kosine_bench.reliability.hostile_http import mutations, named_requests, send, status_of
from serve_machine import ask, raw, request, running

CASES = dict(named_requests())
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def service(sample_bundle, tmp_path_factory):
    log = tmp_path_factory.mktemp("hostile") / "log"
    words = (sample_bundle, "--read-timeout", "5")
    with running(log, *words) as found:
        yield found


def assert_unharmed(service, answer: bytes, what: object) -> None:
    """No 5xx, nothing of the inside, and the service answers a good request."""
    assert status_of(answer) < 500, what
    for word in (b"Traceback", b".py", b"/tmp", b"uvicorn", b"msgspec"):
        assert word not in answer, what
    live = raw(
        service.address, b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert status_of(live) == 200, what


def test_there_are_enough():
    assert len(CASES) >= 300


@pytest.mark.parametrize("start", range(0, len(CASES), 60))
def test_named(service, start):
    """Sixty at a time, each by name."""
    for name, data in list(CASES.items())[start : start + 60]:
        # One that takes its time is a megabyte; what has no whole request is not waited for.
        patience = 20.0 if name.startswith(("input", "/")) else 0.2
        assert_unharmed(service, send(service.address, data, patience), name)


def test_what_is_refused_and_what_is_not(service):
    """Of the same requests: the good ones are answered, so the bad ones were really looked at."""
    found = {name: status_of(send(service.address, CASES[name], 20.0)) for name in (
        "input: NUL", "input: joiners", "inputs: empty", "input: empty", "header: text",
        "/embed body: nested 250 000", "inputs: a megabyte of Hangul", "line: expect",
    )}  # fmt: skip
    assert found == {
        "input: NUL": 400,
        "input: joiners": 200,
        "inputs: empty": 200,
        "input: empty": 400,
        "header: text": 415,
        "/embed body: nested 250 000": 422,
        "inputs: a megabyte of Hangul": 422,
        "line: expect": 100,
    }


def fuzz(service, seconds: float, seed: int) -> int:
    ends = time.monotonic() + seconds
    tried = 0
    for data in mutations(seed):
        if time.monotonic() > ends:
            break
        tried += 1
        answer = send(service.address, data, 0.05)
        assert status_of(answer) < 500, (seed, tried, data[:2_000])
        assert b"Traceback" not in answer
        if tried % 50 == 0:
            assert httpx.get(f"{service.url}/health").status_code == 200
    assert ask(service.url, "a").status_code == 200
    assert "failed:" not in service.log
    return tried


def test_mutations_briefly(service):
    assert fuzz(service, 3.0, seed=0) > 20


@pytest.mark.slow
def test_mutations(service):
    """A minute of them."""
    seed = int(os.environ.get("KOSINE_FUZZ_SEED", "1"))
    print(f"{fuzz(service, 60.0, seed)} mutations of seed {seed}")


def p99(service, count: int = 150) -> float:
    with httpx.Client() as client:
        body = {"model": "sample", "input": "잘 지내니"}
        times = []
        for _ in range(count):
            started = time.perf_counter()
            assert client.post(f"{service.url}/v1/embeddings", json=body).status_code == 200
            times.append(time.perf_counter() - started)
    return float(np.percentile(times, 99))


def test_slow_clients_do_not_slow_others(sample_bundle, tmp_path):
    """500 connections that send a request byte by byte, and 100 that do not take their answers: a
    good client's p99 stays within twice what it is without them. Whatever else the machine does
    can only make a ratio worse, so the best of five counts."""
    words = (sample_bundle, "--read-timeout", "60", "--write-timeout", "60")
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    large = request(b'{"model":"sample","input":[' + b'"a",' * 300 + b'"a"]}')
    with running(tmp_path / "log", *words) as service:
        p99(service)
        before = min(p99(service) for _ in range(3))
        slow = [socket.create_connection(service.address) for _ in range(500)]
        readers = []
        try:
            for connection in slow:
                connection.sendall(head)
            for _ in range(100):
                reader = socket.socket()
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                reader.connect(service.address)
                reader.sendall(large)
                readers.append(reader)
            # Until all of them are computed: a good client waits for other people's texts, and that
            # is not what is measured here.
            ends = time.monotonic() + 60
            while service.log.count("texts=301") < 100 and time.monotonic() < ends:
                time.sleep(0.1)
            ratios = []
            for _ in range(5):
                for connection in slow:
                    connection.sendall(b"X")
                ratios.append(p99(service) / before)
                if ratios[-1] <= 2:
                    break
        finally:
            for connection in (*slow, *readers):
                connection.close()
        assert min(ratios) <= 2, ratios
        assert httpx.get(f"{service.url}/health").status_code == 200
