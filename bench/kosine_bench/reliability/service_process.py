"""An HTTP service in a process of its own, and what it takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ServiceProcess", "free_port", "serving", "started"]

START_S = 300.0


class ServiceProcess:
    """A service that runs.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: tuple[str, int]) -> None:
        self._process = process
        self.address = address

    def resident_bytes(self) -> int:
        """Its resident set (Linux)."""
        fields = Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Processor time that it has used (Linux)."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(command: Sequence[str], port: int) -> Iterator[ServiceProcess]:
    """A command that serves HTTP at a port of this machine; ended in the end."""
    address = ("127.0.0.1", port)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            ends = time.monotonic() + START_S
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    raise RuntimeError(f"{command[:3]} did not start: {log.read()[-500:]!r}")
                time.sleep(0.1)
            yield ServiceProcess(process, address)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def serving(*words: str) -> Iterator[ServiceProcess]:
    """`kosine serve` with these arguments, once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "kosine.cli", "serve", *words, "--no-log-requests"]
    with started([*command, "--port", str(port)], port) as service:
        yield service


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _answers(address: tuple[str, int]) -> bool:
    """Whether it is ready; a service without that route is when it says so with a 404."""
    try:
        with socket.create_connection(address, 5.0) as connection:
            connection.sendall(
                b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            return connection.recv(12).endswith((b"200", b"404"))
    except OSError:
        return False
