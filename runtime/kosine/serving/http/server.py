"""The server below the application: the listener, signals, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any, Final

import uvicorn

from kosine.errors import InputError
from kosine.serving.http.app import Service
from kosine.serving.http.connection import Connection

__all__ = ["Server", "bind"]

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
        self._failed: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            Exception: Why the models cannot be loaded.
        """
        self.run(sockets=[self._listener])
        if self._failed is not None:
            raise self._failed

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the business of whoever runs it there
            return
        if sys.platform == "win32":
            with super().capture_signals():
                yield
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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """What a signal does on Windows, which knows no others."""
        self.end()

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
        except Exception as error:  # noqa: BLE001 - a service that never loads must not linger
            self._failed = error
            self.should_exit = True

    async def _reload_again(self) -> None:
        try:
            await self._reload()
        except Exception as error:  # noqa: BLE001 - whatever it is, the old version goes on
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
