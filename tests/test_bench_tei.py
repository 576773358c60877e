"""The text-embeddings-inference client, against a server that speaks its protocol."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler

import pytest

from kosine_bench.contestants import tei
from kosine_bench.contestants.contestant import Absent, Checkpoint

NOWHERE = Checkpoint(Path("checkpoint"), Path("converted"))


@pytest.fixture(autouse=True)
def cls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "pooling", "cls")


HANDLER = """
import json
from http.server import BaseHTTPRequestHandler


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200 if self.path == "/health" else 404, b"")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "bad" in body["inputs"]:
            self.answer(413, b'{"error": "too long"}')
            return
        assert self.path == "/embed" and body["normalize"] and body["truncate"]
        self.answer(200, json.dumps([[float(len(t)), 1.0] for t in body["inputs"]]).encode())

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
"""


@pytest.fixture
def url() -> Iterator[str]:
    names: dict[str, type[BaseRequestHandler]] = {}
    exec(HANDLER, names)
    server = ThreadingHTTPServer(("127.0.0.1", 0), names["Handler"])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_running_server_is_used(url: str) -> None:
    server = tei.Server(NOWHERE, 1, {"KOSINE_BENCH_TEI_URL": url})
    assert server.embed(["한", "두 개"]).tolist() == [[1, 1], [3, 1]]
    with pytest.raises(RuntimeError, match="413"):
        server.embed(["bad"])
    assert (server.cpu_seconds(), server.peak_rss()) == (0, 0)
    server.close()


def test_no_binary_means_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Absent, match=r"compose\.yaml"):
        tei.Server(NOWHERE, 1, {})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_binary_is_started_and_ended(tmp_path: Path) -> None:
    binary = tmp_path / "text-embeddings-router"
    binary.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from http.server import ThreadingHTTPServer\n"
        f"{HANDLER}\n"
        "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
        "assert sys.argv[sys.argv.index('--model-id') + 1] == 'checkpoint'\n"
        "assert sys.argv[sys.argv.index('--pooling') + 1] == 'cls'\n"
        "ThreadingHTTPServer(('127.0.0.1', port), Handler).serve_forever()\n",
        "utf-8",
    )
    binary.chmod(0o755)
    server = tei.Server(NOWHERE, 1, {"KOSINE_BENCH_TEI": str(binary)})
    try:
        assert server.embed(["한"]).tolist() == [[1, 1]]
        assert server.cpu_seconds() > 0
        assert server.peak_rss() > 2**20
    finally:
        server.close()
    assert server.cpu_seconds() == 0


def test_a_binary_that_ends_at_once_is_absent(tmp_path: Path) -> None:
    binary = tmp_path / "text-embeddings-router"
    binary.write_text("#!/bin/sh\nexit 3\n")
    binary.chmod(0o755)
    with pytest.raises(Absent, match="exited with 3"):
        tei.Server(NOWHERE, 1, {"KOSINE_BENCH_TEI": str(binary)})


def test_a_server_that_never_gets_healthy_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tei, "START_SECONDS", 0.2)
    with pytest.raises(Absent, match="no healthy server"):
        tei.Server(NOWHERE, 1, {"KOSINE_BENCH_TEI_URL": "http://127.0.0.1:9"})
