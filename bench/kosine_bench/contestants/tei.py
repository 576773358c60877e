"""text-embeddings-inference as a child process or a server that is already running."""

# ruff: noqa: ARG002  an interface's arguments are not all of use to every class

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from kosine_bench.contestants.contestant import Absent, Checkpoint, Contestant, Float32, Setting
from kosine_bench.contestants.process_memory import process_memory

__all__ = ["Server", "TextEmbeddingsInference"]

START_SECONDS = 120.0


class Server:
    """A text-embeddings-inference server and one keep-alive connection to it.

    Raises:
        Absent: No URL was named and no binary is found, or the server does not come up.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int, environ: Mapping[str, str]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        url = environ.get("KOSINE_BENCH_TEI_URL")
        if not url:
            binary = environ.get("KOSINE_BENCH_TEI") or shutil.which("text-embeddings-router")
            if not binary:
                raise Absent(
                    "text-embeddings-router is not on the PATH; bench/compose.yaml says how to"
                    " get it"
                )
            url = self._start(binary, checkpoint, threads, environ)
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "127.0.0.1", parts.port or 80, timeout=120
        )
        self._wait(url)

    def _start(
        self, binary: str, checkpoint: Checkpoint, threads: int, environ: Mapping[str, str]
    ) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        command = [
            *(binary, "--model-id", str(checkpoint.folder), "--dtype", "float32"),
            *("--pooling", checkpoint.pooling, "--hostname", "127.0.0.1", "--port", str(port)),
            *("--tokenization-workers", str(threads), "--max-client-batch-size", "64"),
        ]
        variables = {
            **environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "RAYON_NUM_THREADS": str(threads),
        }
        self._process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        return f"http://127.0.0.1:{port}"

    def _wait(self, url: str) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            if self._process and self._process.poll() is not None:
                raise Absent(f"text-embeddings-router exited with {self._process.returncode}")
            try:
                self._connection.request("GET", "/health")
                response = self._connection.getresponse()
                response.read()
                if response.status == 200:
                    return
            except OSError:
                self._connection.close()
            if time.monotonic() > end:
                self.close()
                raise Absent(f"no healthy server at {url} after {START_SECONDS:.0f} s")
            time.sleep(0.1)

    def embed(self, texts: Sequence[str]) -> Float32:
        """(n, dim) unit rows of at most 64 texts."""
        body = json.dumps({"inputs": list(texts), "normalize": True, "truncate": True})
        self._connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"/embed answered {response.status}: {content[:200]!r}")
        vectors: Float32 = np.array(json.loads(content), np.float32)
        return vectors

    def cpu_seconds(self) -> float:
        """CPU time of the server's process; 0 for one that this process did not start."""
        if not self._process:
            return 0.0
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_rss(self) -> int:
        """Peak resident bytes of the server's process; 0 for one not started here."""
        if not self._process:
            return 0
        return process_memory(self._process.pid, "VmHWM")

    def close(self) -> None:
        self._connection.close()
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class TextEmbeddingsInference(Contestant):
    """text-embeddings-inference over HTTP: its binary where found, or a server already running.

    `KOSINE_BENCH_TEI_URL` names a running server (see `bench/compose.yaml`), which must serve
    the same checkpoint; `KOSINE_BENCH_TEI` or the PATH names the binary.
    """

    name = "tei-float32"
    label = "text-embeddings-inference fp32"
    precision = "float32"
    engine = False
    serves = True
    server: Server | None = None

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        self.server = Server(checkpoint, threads, os.environ)
        self.dim = checkpoint.dim

    def settings(self, mode: str) -> list[Setting]:
        return [Setting(32)]

    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        vectors = np.empty((len(texts), self.dim), np.float32)
        for group in setting.groups([len(text) for text in texts]):
            vectors[group] = self._running.embed([texts[i] for i in group])
        return vectors

    def cpu_seconds(self) -> float:
        return super().cpu_seconds() + self._running.cpu_seconds()

    def peak_rss(self) -> int:
        return self._running.peak_rss()

    @property
    def _running(self) -> Server:
        if self.server is None:
            raise RuntimeError("the server was not started")
        return self.server

    def close(self) -> None:
        if self.server:
            self.server.close()
