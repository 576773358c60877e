"""What the service lets in: keys, addresses, sizes, forms; and its command line."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import time

import httpx
import pytest

from kosine import cli
from kosine.errors import InputError

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from kosine.commands.serve import add_arguments, named
from kosine.serving.http.problems import Problem
from kosine.serving.http.settings import Keys, is_loopback
from kosine.serving.http.wire import check_nesting
from serve_machine import InThread, ask, raw, request, running

KEYS = ("first-key-0123", "second-key-4567")


@pytest.fixture(scope="module")
def thread(sample_bundle):
    limits = {"max_body": 50_000, "max_headers": 4_096, "read_timeout": 1.0, "max_items": 100}
    with InThread(sample_bundle, **limits) as service:
        yield service


# Keys


def test_keys_from_a_file_and_the_environment_and_their_rotation(sample_bundle, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# for the search service\n{KEYS[0]}\n\n")
    words = (sample_bundle, "--api-key-file", file)
    with running(tmp_path / "log", *words, env={"KOSINE_API_KEY": "from-environment"}) as service:

        def code(**headers: str) -> int:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            return ask(service.url, "a", headers).status_code

        for key in (KEYS[0], "from-environment"):
            assert code(Authorization=f"Bearer {key}") == 200
            assert code(Authorization=f"bearer {key}") == 200
            assert code(Authorization=key) == 200  # as llama-index sends it
            assert code(X_Api_Key=key) == 200
            assert code(Authorization="Basic abc", X_Api_Key=key) == 200  # a proxy's, and ours
        for wrong in ("", "Bearer", f"Bearer {KEYS[0]}x", f"Bearer {KEYS[1]}", "Basic abc"):
            assert code(Authorization=wrong) == 401
        assert code() == 401
        # Two keys while clients change from one to the other, then the new one alone.
        for keys, good, bad in ((KEYS, KEYS, ()), (KEYS[1:], KEYS[1:], KEYS[:1])):
            file.write_text("\n".join(keys))
            times = service.log.count("fingerprint")
            if keys == KEYS:
                service.process.send_signal(signal.SIGHUP)
                service.wait_for("fingerprint", times + 1)
            else:
                headers = {"Authorization": f"Bearer {KEYS[0]}"}
                assert httpx.post(f"{service.url}/reload", headers=headers).status_code == 200
            assert [code(Authorization=f"Bearer {key}") for key in good] == [200] * len(good)
            assert [code(Authorization=f"Bearer {key}") for key in bad] == [401] * len(bad)
        # Nothing but what probes ask for is open.
        for path in ("/v1/models", "/metrics", "/info", "/nope", "/openapi.json"):
            answer = httpx.get(service.url + path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ping", "/health/ready", "/health/live", "/health/startup"):
            assert httpx.get(service.url + path).status_code == 200
        for key in (*KEYS, "from-environment"):
            assert key not in service.log


def test_keys_are_checked_all_of_them(tmp_path):
    keys = Keys(given=KEYS)
    assert keys
    assert [keys.accept(key.encode()) for key in (*KEYS, KEYS[0][:-1], "")] == [1, 1, 0, 0]
    assert not Keys()
    file = tmp_path / "keys"
    file.write_text("# none\n")
    with pytest.raises(InputError, match="no key"):
        Keys(file)
    for bad in ("short", "열쇠열쇠열쇠열쇠", "with\nnewline"):
        with pytest.raises(InputError, match="at least 8"):
            Keys(given=[bad])


def test_keys_stay_when_the_new_file_is_wrong(tmp_path):
    file = tmp_path / "keys"
    file.write_text(KEYS[0])
    keys = Keys(file)
    file.write_text("short")
    with pytest.raises(InputError):
        keys.read()
    file.write_bytes(b"\xff\xfe" + KEYS[1].encode("utf-16-le"))
    with pytest.raises(InputError, match="printable ASCII"):
        keys.read()
    assert keys.accept(KEYS[0].encode())
    file.write_text(f"\ufeff{KEYS[1]}\r\n")  # as Notepad writes it
    keys.read()
    assert keys.accept(KEYS[1].encode())


# The command line


def refused(capfd, *words: object) -> str:
    try:
        code = cli.main(["serve", *map(str, words)])
    except SystemExit as stop:
        code = stop.code
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no bundle"),
        (["a.kosine", "b/a.kosine"], "two models are called 'a'"),
        (["=a.kosine"], "names no model"),
        (["a.kosine", "--host", "0.0.0.0"], "--no-auth"),
        (["a.kosine", "--host", "::"], "--no-auth"),
        (["a.kosine", "--host", "10.1.2.3"], "--no-auth"),
        (["a.kosine", "--port", "70000"], "0 to 65535"),
        (["a.kosine", "--payload-limit", "0"], "at least 1"),
        (["a.kosine", "--timeout", "nan"], "0 or more"),
        (["a.kosine", "--api-key-file", "no-such-file"], "no-such-file"),
        (["a.kosine", "--log-format", "xml"], "xml"),
    ],
)
def test_wrong_usage(capfd, words, message):
    assert message in refused(capfd, *words)


def test_a_port_that_is_taken(capfd, sample_bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused(capfd, sample_bundle, "--port", port)


def test_names():
    found = named(["ko=path/x.kosine", "models/ko-sbert.kosine", "plain"])
    assert list(found) == ["ko", "ko-sbert", "plain"]
    assert str(found["ko"]) == "path/x.kosine"


def test_loopback():
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", "127.0.0.1.example.org", ""):
        assert not is_loopback(host)


def test_every_option_can_stand_in_the_environment(sample_bundle, tmp_path, monkeypatch, capfd):
    env = {
        "KOSINE_BUNDLES": f"ko={sample_bundle}",
        "KOSINE_PAYLOAD_LIMIT": "600",
        "KOSINE_LOG_FORMAT": "json",
        "KOSINE_AUTO_TRUNCATE": "false",
        "KOSINE_HOST": "0.0.0.0",
        "KOSINE_NO_AUTH": "1",
        "KOSINE_BACKEND": "onnx",
        "KOSINE_TIMEOUT": "5",
    }
    with running(tmp_path / "log", env=env) as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "ko"
        assert ask(url, "a" * 700, model="ko").status_code == 413
        long = ask(url, "a " * 200, model="ko")
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        lines = [json.loads(line) for line in service.log.splitlines()]
        assert any(line.get("status") == 413 for line in lines)
        assert any("onnx" in line["message"] for line in lines)
    for name, value, message in (
        ("KOSINE_PORT", "many", "invalid int"),
        ("KOSINE_NO_AUTH", "yes please", "KOSINE_NO_AUTH"),
        ("KOSINE_LOG_FORMAT", "xml", "KOSINE_LOG_FORMAT"),
    ):
        monkeypatch.setenv(name, value)
        assert message in refused(capfd, sample_bundle)
        monkeypatch.delenv(name)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


def test_the_environment_says_what_words_say(monkeypatch):
    """Each option by each of its names."""
    tried = 0
    for action in options()._actions:
        for option in set(action.option_strings) - {"-h", "--help"}:
            value = "json" if action.choices else "7"
            words = [option] if action.nargs == 0 else [option, value]
            name = "KOSINE_" + option.lstrip("-").upper().replace("-", "_")
            with monkeypatch.context() as patch:
                patch.setenv(name, "true" if action.nargs == 0 else value)
                found = options().parse_args([])
            typed = options().parse_args(words)
            assert found == typed, option
            on_anyway = option in ("--auto-truncate", "--log-requests")
            assert (found == options().parse_args([])) == on_anyway, option
            tried += 1
    assert tried > 25


@pytest.mark.parametrize(
    ("name", "value", "dest", "expected"),
    [
        ("KOSINE_NO_LOG_REQUESTS", "0", "log_requests", True),
        ("KOSINE_LOG_REQUESTS", "False", "log_requests", False),
        ("KOSINE_JSON_OUTPUT", "false", "log_format", "text"),
        ("KOSINE_CORS_ALLOW_ORIGIN", "https://a.b https://c.d", "cors_allow_origin", 2),
        # What Kubernetes writes where a Service is called kosine is no port of ours.
        ("KOSINE_PORT", "tcp://10.0.0.7:80", "port", 8080),
    ],
)
def test_values_of_the_environment(monkeypatch, name, value, dest, expected):
    monkeypatch.setenv(name, value)
    found = getattr(options().parse_args([]), dest)
    assert (len(found) if isinstance(found, list) else found) == expected


def test_what_is_typed_beats_the_environment(monkeypatch):
    monkeypatch.setenv("KOSINE_PORT", "9000")
    monkeypatch.setenv("KOSINE_JSON_OUTPUT", "1")
    found = options().parse_args(["--port", "7", "--log-format", "text"])
    assert (found.port, found.log_format) == (7, "text")


# Sizes and forms


def test_a_body_over_the_limit(thread):
    answer = ask(thread.url, "a" * 60_000)
    assert answer.status_code == 413
    assert "50000 bytes" in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"


def test_a_body_far_over_the_limit_is_not_read(thread):
    head = request(b"", headers="X: y\r\n").replace(b"Content-Length: 0", b"Content-Length: 9" * 1)
    head = head.replace(b"Content-Length: 9", b"Content-Length: 999999999999")
    answer = raw(thread.address[:2], head)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_chunked_body_over_the_limit(thread):
    def parts():
        for _ in range(100):
            yield b"a" * 4_096

    headers = {"Content-Type": "application/json"}
    try:
        answer = httpx.post(f"{thread.url}/v1/embeddings", content=parts(), headers=headers)
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # refused while it was still sending
    assert ask(thread.url, "a").status_code == 200


def test_headers_over_the_limit(thread):
    for size in (5_000, 500_000):
        lines = "".join(f"X-{n}: {'a' * 50}\r\n" for n in range(size // 60))
        assert b" 431 " in raw(thread.address[:2], request(b"{}", headers=lines))[:20]
    assert b" 431 " in raw(thread.address[:2], b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\n\r\n")[:20]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_forms(thread, headers, code):
    body = b'{"model":"sample","input":"a"}'
    answer = httpx.post(f"{thread.url}/v1/embeddings", content=body, headers=headers)
    assert answer.status_code == code


@pytest.mark.parametrize(
    ("body", "limits", "good"),
    [
        (b"[" * 16 + b"]" * 16, (16, 100), True),
        (b"[" * 17 + b"]" * 17, (16, 100), False),
        (b"[" * 250_000, (16, 100), False),
        (b'{"a":' * 17 + b"1" + b"}" * 17, (16, 100), False),
        (b'["' + b"[" * 1_000 + b'"]', (16, 100), True),  # in a text they are no brackets
        (b'["' + b'\\"[' * 1_000 + b'"]', (16, 100), True),
        (b'["\\\\",' * 20 + b"]" * 20, (16, 100), False),
        (b"[" + b'"",' * 99 + b'""]', (16, 101), True),
        (b"[" + b'"",' * 101 + b'""]', (16, 101), False),
        (b"[" + b"[]," * 500 + b"[]]", (16, 100), False),
    ],
)
def test_nesting(body, limits, good):
    if good:
        check_nesting(body, *limits)
        return
    with pytest.raises(Problem) as caught:
        check_nesting(body, *limits)
    assert caught.value.kind == "invalid"


def test_hostile_nesting_is_refused_in_no_time():
    """However a body of 2 MB is filled, looking at it stops early."""
    for part in (b'"",', b"[],", b"[", b'"\\"",', b"]["):
        body = b"[" + part * (2_000_000 // len(part))
        started = time.perf_counter()
        with pytest.raises(Problem):
            check_nesting(body, 16, 2_112)
        assert time.perf_counter() - started < 0.5


def test_too_many_items(thread):
    assert ask(thread.url, ["a"] * 100).status_code == 200
    for count in (101, 1_000):
        answer = ask(thread.url, ["a"] * count)
        assert answer.status_code == 400
    many = ["a"] * 101
    cohere = {"model": "sample", "texts": many, "input_type": "clustering"}
    for path, body, code in (
        ("/embed", {"inputs": many}, 422),
        ("/tokenize", {"inputs": many}, 422),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": many}}, 422),
        ("/v2/embed", cohere, 400),
    ):
        answer = httpx.post(thread.url + path, json=body)
        assert (answer.status_code, "at most 100" in answer.text) == (code, True), path


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nope", 404),
        ("POST", "/v1/nope", 404),
        ("GET", "/v1/embeddings", 405),
        ("DELETE", "/v1/models", 405),
        ("HEAD", "/health", 200),
        ("OPTIONS", "/v1/embeddings", 405),
    ],
)
def test_routes_that_are_none(thread, method, path, code):
    answer = httpx.request(method, thread.url + path)
    assert answer.status_code == code
    if code > 200:
        assert "error" in answer.json()
        assert isinstance(answer.json()["error"], dict) == path.startswith("/v1/")
    allow = {"/v1/embeddings": "POST", "/v1/models": "GET, HEAD"}.get(path)
    assert answer.headers.get("allow") == (allow if code == 405 else None)


def test_errors_before_a_route_is_found_have_its_interface_s_form(sample_bundle, tmp_path, thread):
    """Cohere's client reads no error of TEI's, whatever is wrong."""
    assert set(httpx.get(f"{thread.url}/v2/embed").json()) == {"message"}
    with running(tmp_path / "log", sample_bundle, env={"KOSINE_API_KEY": KEYS[0]}) as service:
        forms = {
            path: httpx.post(service.url + path, json={}).json()
            for path in ("/v2/embed", "/v1/embeddings", "/embed")
        }
    assert set(forms["/v2/embed"]) == {"message"}
    assert forms["/v1/embeddings"]["error"]["code"] == "invalid_api_key"
    assert forms["/embed"]["error_type"] == "Unauthorized"


def test_a_model_that_is_none_is_named_so(thread):
    answer = httpx.get(f"{thread.url}/v1/models/nope")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "sample" in error["message"]


def test_an_id_comes_back_and_answers_name_no_server(thread):
    answer = ask(thread.url, "a", {"X-Request-Id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert "server" not in answer.headers
    made = ask(thread.url, "a", {"X-Request-Id": "no\x7fno good"[3:] * 200})
    assert len(made.headers["x-request-id"]) < 40


def test_a_request_that_never_arrives_is_broken_off(thread):
    for part in (b"", b"POST /v1/emb", request(b"{}")[:-1], b"\r\n" * 3):
        started = time.monotonic()
        answer = raw(thread.address[:2], part)
        assert 0.9 < time.monotonic() - started < 4, part
        assert answer.startswith(b"HTTP/1.1 408"), part


def test_connections_are_capped(sample_bundle):
    with InThread(sample_bundle, max_connections=5) as service:
        held = [socket.create_connection(service.address[:2]) for _ in range(5)]
        time.sleep(0.2)
        assert raw(service.address[:2], b"").startswith(b"HTTP/1.1 503")
        for connection in held:
            connection.close()
        time.sleep(0.2)
        assert ask(service.url, "a").status_code == 200


def test_an_answer_that_nobody_takes_is_broken_off(sample_bundle):
    """A client that asks for megabytes and does not read them."""
    with InThread(sample_bundle, write_timeout=1.0) as service:
        body = json.dumps({"model": "sample", "input": ["a"] * 2_000}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.connect(service.address[:2])
            connection.sendall(request(body))
            service.wait(lambda: service.service.in_progress == 1)
            service.wait(lambda: service.service.in_progress == 0, timeout=30)
            service.wait(lambda: not service.server.server_state.connections, timeout=10)


def test_cross_origin_is_off_unless_named(sample_bundle, thread):
    origin = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in ask(thread.url, "a", origin).headers
    with InThread(sample_bundle, cors=("https://example.org",)) as service:
        answer = ask(service.url, "a", origin)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        other = ask(service.url, "a", {"Origin": "https://other.org"})
        assert "access-control-allow-origin" not in other.headers
        preflight = httpx.options(
            f"{service.url}/v1/embeddings",
            headers={**origin, "Access-Control-Request-Method": "POST"},
        )
        assert preflight.status_code == 200
