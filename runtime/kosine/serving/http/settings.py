"""What a service is started with: its limits, deadlines and keys."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kosine.errors import InputError

__all__ = ["Keys", "Settings", "is_loopback"]

MIN_KEY_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """How the service behaves; times in seconds, sizes in bytes.

    Attributes:
        host, port: Where it listens; port 0 takes any that is free.
        engine: What `kosine.load` is given: backend, dtype, device, threads.
        batch_tokens, queue_tokens: As the Batcher's.
        auto_truncate: Cut over-long texts where the request does not say.
        default_prompt_name: For requests that name none.
        token_input: Take token ids of the model's own vocabulary as input.
        max_items: Most texts in a request.
        max_body: Most bytes of a request's body.
        max_headers: Most bytes of a request's line and headers.
        max_depth: Deepest nesting of a request's JSON.
        max_requests: Most requests in progress.
        max_connections: Most open connections.
        timeout: Until a request is answered, unless its header asks for less.
        read_timeout: From the first byte of a request to its last.
        write_timeout: Until an answer is taken by the client.
        keep_alive: How long a connection without a request stays open.
        drain_delay: How long everything goes on after SIGTERM, while readiness says 503.
        drain_timeout: From the end of that delay until what is unanswered is broken off.
        cors: Origins that may call from a browser.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    engine: dict[str, Any] = field(default_factory=dict)
    batch_tokens: int | None = None
    queue_tokens: int = 65_536
    auto_truncate: bool = True
    default_prompt_name: str | None = None
    token_input: bool = False
    max_items: int = 2_048
    max_body: int = 2_000_000
    max_headers: int = 16_384
    max_depth: int = 16
    max_requests: int = 512
    max_connections: int = 1_024
    timeout: float = 60.0
    read_timeout: float = 20.0
    write_timeout: float = 30.0
    keep_alive: float = 75.0
    drain_delay: float = 0.0
    drain_timeout: float = 25.0
    cors: tuple[str, ...] = ()


class Keys:
    """The API keys, several at once while they are rotated; their digests only are kept.

    Args:
        file: One key a line; blank lines and those that begin with "#" are left out.
        given: Further keys, from the environment.

    Raises:
        InputError: A key is too short or not ASCII, or the file holds none.
    """

    def __init__(self, file: Path | None = None, given: Sequence[str] = ()) -> None:
        self._file, self._given = file, tuple(given)
        self._digests: list[bytes] = []
        self.read()

    def read(self) -> None:
        """Read the file again. Where that fails, the old keys stay."""
        keys = list(self._given)
        if self._file is not None:
            lines = self._file.read_text("utf-8-sig", "replace").split("\n")
            found = [line.strip() for line in lines]
            found = [line for line in found if line and not line.startswith("#")]
            if not found:
                raise InputError(f"{str(self._file)!r} holds no key", remedy="write one a line")
            keys += found
        for key in keys:
            if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
                raise InputError(
                    f"an API key has {len(key)} characters",
                    limit=f"at least {MIN_KEY_CHARACTERS} printable ASCII characters",
                    remedy="make one, for example with: openssl rand -hex 32",
                )
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: bytes) -> bool:
        """Whether it is one of the keys; takes as long whichever it is, or if it is none."""
        digest = hashlib.sha256(key).digest()
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
