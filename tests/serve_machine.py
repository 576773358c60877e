"""Services for tests: `kosine serve` in a process of its own, or in a thread of this one with an
engine that does what a test wants."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

import kosine
from hostile import edit_manifest
from kosine import Pooled
from kosine.errors import BackendError
from kosine.serving.http import serve
from kosine.serving.http.models import Model
from kosine.serving.http.settings import Keys, Settings

POISON = "독"  # a text that holds it fails in the engine
NAN = "난"  # a text that holds it comes out NaN
WAIT_S = 60.0
PROMPTS = {"query": "질문: ", "document": "문서: "}


def variant(bundle: Path, folder: Path, default: str | None = None) -> Path:
    """The same model with prompts, of which one may be the default: other vectors."""
    shutil.copytree(bundle, folder)
    edit_manifest(folder, lambda m: m.update(prompts=PROMPTS, default_prompt_name=default))
    return folder


class Running:
    """`kosine serve` in a process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.url = ""

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def wait_for(self, text: str, times: int = 1) -> str:
        """Until the log holds a text so many times."""
        ends = time.monotonic() + WAIT_S
        while self.log.count(text) < times:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < ends, self.log
            time.sleep(0.02)
        return self.log

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(WAIT_S)


def launch(log: Path, *words: object, env: dict[str, str] | None = None) -> Running:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "kosine.cli", "serve", "--port", "0", *map(str, words)],
            stderr=out,
            stdout=out,
            env={**os.environ, **(env or {})},
        )
    return Running(process, log)


@contextlib.contextmanager
def running(log: Path, *words: object, env: dict[str, str] | None = None) -> Iterator[Running]:
    """A started service; killed at the end if it still runs."""
    service = launch(log, *words, env=env)
    try:
        line = service.wait_for("serving at ")
        service.url = line.split("serving at ")[1].split()[0].rstrip('",}')
        yield service
    finally:
        service.process.kill()
        service.process.wait()


class Engine:
    """A backend that can be told to wait, to fail and to give NaN.

    Attributes:
        gate: Batches run while it is set.
        runs: How many batches were begun.
    """

    def __init__(self, encoder: kosine.Encoder) -> None:
        self._inner = encoder.backend
        self.gate = threading.Event()
        self.gate.set()
        self.runs = 0
        self._poison = self._mark(encoder, POISON)
        self._nan = self._mark(encoder, NAN)

    @staticmethod
    def _mark(encoder: kosine.Encoder, text: str) -> set[int]:
        return set(encoder.prepare([text]).batch.ids.tolist()[1:-1])

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def run(self, batch: kosine.Packed) -> Pooled:
        self.runs += 1
        self.gate.wait(WAIT_S)
        rows = [set(batch.take([i]).ids.tolist()) for i in range(len(batch))]
        if any(self._poison <= row for row in rows):
            raise BackendError("the engine fails")
        pooled = self._inner.run(batch)
        vectors = pooled.vectors.copy()
        vectors[[self._nan <= row for row in rows]] = np.nan
        return Pooled(vectors, pooled.norms)


class InThread:
    """A service in a thread, with an `Engine`."""

    def __init__(self, bundle: Path, **settings: object) -> None:
        encoder = kosine.load(bundle, backend="onnx")
        self.engine = Engine(encoder)
        encoder.backend = self.engine  # type: ignore[assignment]
        self.service = serve.make_service({"sample": bundle}, Settings(port=0, **settings), Keys())
        models = self.service.models

        async def load() -> None:
            made = Model("sample", encoder, models.lane, self.service.settings)
            models.by_name["sample"] = made

        models.load = load  # type: ignore[method-assign]
        self.server = serve.make_server(self.service)
        self.address = self.server._listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._thread = threading.Thread(target=self.server.start)

    def __enter__(self) -> InThread:
        self._thread.start()
        ends = time.monotonic() + WAIT_S
        while not self.service.models.by_name:
            assert time.monotonic() < ends
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.gate.set()
        self.server.should_exit = self.service.draining = True
        self._thread.join(WAIT_S)

    @property
    def batcher(self) -> kosine.Batcher:
        return self.service.models.by_name["sample"].batcher

    def wait(self, condition, timeout: float = 10.0) -> None:
        ends = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < ends, self.batcher.stats()
            time.sleep(0.005)


def ask(url: str, texts: object, headers: dict[str, str] | None = None, **more: object):
    """POST /v1/embeddings."""
    body = {"model": "sample", "input": texts, **more}
    return httpx.post(f"{url}/v1/embeddings", json=body, headers=headers, timeout=WAIT_S)


def raw(address: tuple[str, int], data: bytes, timeout: float = 10.0) -> bytes:
    """Send bytes as they are; all that comes back until the connection is closed."""
    with socket.create_connection(address, timeout) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65_536):
                received += part
        return received


def request(body: bytes, path: str = "/v1/embeddings", headers: str = "") -> bytes:
    """An HTTP request that asks for the connection to be closed."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    )
    return head.encode() + body
