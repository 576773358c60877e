"""A client's connection below the application: limits that hold however slowly it speaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kosine.serving.http.app import Service

__all__ = ["Connection"]


class Connection(HttpToolsProtocol):
    """A client's connection, with limits that hold however slowly it speaks or listens.

    Attributes:
        task: Answers the request under way; broken off when the client goes away.
        receiving: Since when a request is awaited or arriving; None while none is.
        sending: (how many answers were begun, since when one is not taken), or None.
    """

    service: Service

    def connection_made(self, transport: Any) -> None:
        self.task: asyncio.Task[None] | None = None
        self.receiving: float | None = self.loop.time()
        self.sending: tuple[int, float] | None = None
        self._header_bytes = 0
        self._answers = 0
        super().connection_made(transport)
        if len(self.connections) > self.service.settings.max_connections:
            self._refuse(503, b"Retry-After: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        busy = self.busy
        super().connection_lost(exc)
        if busy and self.task is not None:
            self.task.cancel()

    @property
    def busy(self) -> bool:
        """A request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self.receiving is None:
            self.receiving = self.loop.time()
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self.scope["connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():
            return
        super().on_headers_complete()
        self._answers += 1
        if self.service.draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.receiving = None
        if not self.transport.is_closing():
            super().on_message_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.service.settings.max_headers:
            self._refuse(431)

    def _refuse(self, status: int, headers: bytes = b"") -> None:
        """Answer below the application, and close."""
        if not self.transport.is_closing():
            line = b"HTTP/1.1 %d \r\n%bContent-Length: 0\r\nConnection: close\r\n\r\n"
            self.transport.write(line % (status, headers))
            self.transport.close()

    def check_deadlines(self, now: float) -> None:
        """Break off what takes too long. Called for all connections, every half second."""
        settings = self.service.settings
        if self.receiving is not None and (
            self.flow.read_paused or (self.busy and not self.cycle.more_body)
        ):
            # It is the service that does not read; or what came belongs to the next request.
            self.receiving = now
        if self.receiving is not None and now - self.receiving > settings.read_timeout:
            if self.busy and self.cycle.response_started:
                self.transport.abort()
            else:
                self._refuse(408)
        if not self.transport.get_write_buffer_size():
            self.sending = None
        elif self.sending is None or self.sending[0] != self._answers:
            self.sending = (self._answers, now)
        elif now - self.sending[1] > settings.write_timeout:
            self.transport.abort()

    def close_if_idle(self) -> None:
        """Close, unless a request is under way or waits in the socket to be read."""
        if self.busy or self.pipeline or self._begun():
            return
        handle = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError, ValueError):
            peek = socket.socket(fileno=os.dup(handle.fileno()))
            with peek:
                if peek.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return
        self.transport.close()

    def _begun(self) -> bool:
        return self.receiving is not None and self.cycle is not None
