"""The server below the application: connections and their deadlines, signals, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kosine.errors import InputError, KosineError
from kosine.serving.http.app import Service

__all__ = ["Connection", "Server", "bind"]

BACKLOG: Final = 2_048
SWEEP_S: Final = 0.5
# How long a connection that has nothing under way is kept during the drain, for a request that is
# already on the way to it.
LINGER_S: Final = 0.5

logger = logging.getLogger("kosine")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: The address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            undo.pop_all()
    except OSError as error:
        raise InputError(
            f"cannot listen at {host}:{port}: {error.strerror}", remedy="choose another --port"
        ) from None
    listener.setblocking(False)
    return listener


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
        if self.receiving is not None and self.flow.read_paused:
            self.receiving = now  # it is the service that does not read
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


class Server(uvicorn.Server):
    """uvicorn's server with our connections, which loses nothing when it ends.

    Args:
        service: The application.
        app: It, or what is wrapped around it.
        listener: Where to listen.
        load: Loads the models, after the server has begun to answer health checks.
        reload: What SIGHUP does.
    """

    def __init__(
        self,
        service: Service,
        app: Any,
        listener: socket.socket,
        load: Callable[[], Awaitable[None]],
        reload: Callable[[], Awaitable[object]],
    ) -> None:
        config = uvicorn.Config(
            app,
            http=type("ServiceConnection", (Connection,), {"service": service}),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=service.settings.keep_alive,  # type: ignore[arg-type]
        )
        super().__init__(config)
        self._service = service
        self._listener = listener
        self._load, self._reload = load, reload
        self._failed: KosineError | OSError | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            KosineError, OSError: The models cannot be loaded.
        """
        self.run(sockets=[self._listener])
        if self._failed is not None:
            raise self._failed

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the business of whoever runs it there
            return
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self.end,
            signal.SIGINT: self.end,
            signal.SIGHUP: lambda: self._spawn(self._reload_again()),
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._spawn(self._load_models())
        self._spawn(self._sweep())

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_models(self) -> None:
        try:
            await self._load()
        except (KosineError, OSError) as error:
            self._failed = error
            self.should_exit = True

    async def _reload_again(self) -> None:
        try:
            await self._reload()
        except (KosineError, OSError) as error:
            logger.error("reload failed, the old version goes on: %s", error)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for connection in self._connections:
                connection.check_deadlines(now)

    @property
    def _connections(self) -> list[Connection]:
        return [c for c in self.server_state.connections if isinstance(c, Connection)]

    def end(self) -> None:
        """Begin the drain; a second time, end at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = self._service.draining = True
        for connection in self._connections:
            if connection.busy and not connection.cycle.response_started:
                connection.cycle.keep_alive = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Answer what has come, then close: readiness is 503 since the signal, and all answers say
        `Connection: close`."""
        settings = self._service.settings
        loop = asyncio.get_running_loop()
        if self._failed is None:
            await asyncio.sleep(settings.drain_delay)
        deadline = loop.time() + settings.drain_timeout
        await self._empty_backlog()
        for server in self.servers:
            server.close()
        linger = loop.time() + LINGER_S
        while self.server_state.connections and not self.force_exit and loop.time() < deadline:
            if loop.time() >= linger:
                for connection in self._connections:
                    connection.close_if_idle()
            await asyncio.sleep(0.02)
        for task in list(self.server_state.tasks):
            task.cancel()  # each is answered 503
        await self._service.models.close(max(0.5, deadline - loop.time()))
        for connection in self._connections:
            connection.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def _empty_backlog(self) -> None:
        """Take the connections that the kernel has made and nobody has accepted: closing the
        listener would reset them."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, _ = self._listener.accept()
            except (BlockingIOError, OSError):
                return
            taken.setblocking(False)
            await loop.connect_accepted_socket(self._new_connection, taken)

    def _new_connection(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state={}, _loop=None
        )
