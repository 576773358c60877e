"""text-embeddings-inference as a child process or a server that is already running."""

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

from kosine_bench.contestants.contestant import Absent, Checkpoint, Float32

__all__ = ["Server"]

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
            *("--pooling", "mean", "--hostname", "127.0.0.1", "--port", str(port)),
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
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

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
