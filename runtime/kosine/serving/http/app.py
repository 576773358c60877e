"""The service as an ASGI application: which request may do what, and what each is answered."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from traceback import extract_tb
from typing import Any, Final

import msgspec

from kosine.errors import DeadlineExceeded
from kosine.serving.http.models import Model, Models
from kosine.serving.http.problems import Problem, problem_of, told
from kosine.serving.http.settings import Keys, Settings
from kosine.serving.http.wire import (
    Receive,
    Reply,
    Send,
    check_media,
    check_nesting,
    decode,
    read_body,
    send_reply,
)

__all__ = ["Call", "Endpoint", "Service"]

# How errors look of what is no route, or not for whoever asks.
SHAPES_OF: Final = {"/v1/": "openai", "/v2/": "cohere"}
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

logger = logging.getLogger("kosine.http")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route.

    Attributes:
        method, path: Of its requests.
        handle: Answers them.
        summary: What it is for, in a line.
        body: The form of a request's JSON; None where there is none.
        answer: The form of the answer's JSON; None where it is something else.
        shape: How its errors look.
        public: It needs no key.
        remedies: By field of the body, what is added to the error of a wrong one.
    """

    method: str
    path: str
    handle: Callable[[Call, Any], Awaitable[Reply]]
    summary: str
    body: Any = None
    answer: Any = None
    shape: str = "tei"
    public: bool = False
    remedies: Mapping[str, str] = field(default_factory=dict)
    decoder: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.body is not None:
            object.__setattr__(self, "decoder", msgspec.json.Decoder(self.body).decode)


class Call:
    """One request, as its handler sees it.

    Attributes:
        service: That was asked.
        headers: By name, in small letters, as bytes.
        deadline: By `time.monotonic`.
        request_id: The client's own or a new one.
        model, texts, tokens: What is logged of it.
    """

    __slots__ = ("deadline", "headers", "model", "request_id", "service", "started", "texts",
                 "tokens")  # fmt: skip

    def __init__(self, service: Service, headers: dict[bytes, bytes]) -> None:
        self.service = service
        self.headers = headers
        self.started = time.monotonic()
        self.deadline = self.started + service.settings.timeout
        given = headers.get(b"x-request-id")
        known = given is not None and REQUEST_ID.fullmatch(given)
        self.request_id = given if given and known else service.new_id()
        self.model = "-"
        self.texts = self.tokens = 0

    def count(self, texts: Sequence[object]) -> None:
        """Note how many texts it brings.

        Raises:
            Problem: More than go in one request.
        """
        self.texts = len(texts)
        most = self.service.settings.max_items
        if self.texts > most:
            raise Problem("invalid", f"{self.texts} texts; at most {most} go in one request")

    @contextmanager
    def using(self, name: str | None) -> Iterator[Model]:
        """The version of a model that answers this request, whatever is loaded meanwhile.

        Raises:
            Problem: There is no such model, or none is loaded yet.
        """
        models = self.service.models
        model = models.find(name)
        if model is None:
            if not models.by_name:
                raise Problem("unavailable", "the model is being loaded; retry", retry_after=1.0)
            raise Problem(
                "not_found",
                f"there is no such model; there is: {', '.join(models.by_name)}",
                param="model",
                code="model_not_found",
            )
        self.model = model.name
        with model.used():
            yield model


class Service:
    """The application.

    Args:
        settings: Its limits and deadlines.
        models: What it serves.
        keys: Who may ask; without any, everybody.
        endpoints: Its routes.
        observers: Each is told of every answered request: (call, route, status, seconds).

    Attributes:
        draining: Since SIGTERM.
        in_progress: Requests that are not answered.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        keys: Keys,
        endpoints: Iterable[Endpoint],
        observers: Iterable[Callable[[Call, str, int, float], None]] = (),
    ) -> None:
        self.settings = settings
        self.models = models
        self.keys = keys
        self.draining = False
        self.in_progress = 0
        self.endpoints = list(endpoints)
        self._observers = tuple(observers)
        self._routes: dict[str, dict[str, Endpoint]] = {}
        for endpoint in self.endpoints:
            self._routes.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        self._ids = itertools.count(1)
        self._id_prefix = secrets.token_hex(4)

    async def reload(self) -> list[Model]:
        """Read the keys and load the bundles anew.

        Raises:
            KosineError, OSError: Keys or a bundle cannot be used. Then the old ones go on.
        """
        self.keys.read()
        return await self.models.reload()

    def new_id(self) -> bytes:
        return b"%b-%d" % (self._id_prefix.encode(), next(self._ids))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        connection = scope.get("connection")
        if connection is not None:
            connection.task = asyncio.current_task()
        call = Call(self, dict(scope["headers"]))
        path = scope["path"]
        route, shape = "unknown", SHAPES_OF.get(path[:4], "tei")
        self.in_progress += 1
        try:
            try:
                endpoint = self._endpoint(scope["method"], path, call)
                route, shape = endpoint.path, endpoint.shape
                body = await self._body(endpoint, call, receive)
                reply = await endpoint.handle(call, body)
                if body is not None and time.monotonic() > call.deadline:
                    raise DeadlineExceeded("the deadline has passed", remedy="allow more time")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
                reply = self._refusal(error, shape, call)
            status = reply.status
            await send_reply(reply, call.request_id, scope, send)
        except asyncio.CancelledError:
            # The client went away, or the time for draining is over.
            status = 499
            problem = Problem("unavailable", "the service is ending; retry", retry_after=1.0)
            reply = self._refusal(problem, shape, call)
            await send_reply(reply, call.request_id, scope, send)
        finally:
            self.in_progress -= 1
        seconds = time.monotonic() - call.started
        for observe in self._observers:
            observe(call, route, status, seconds)
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "%s %s",
                scope["method"] if route != "unknown" else "-",
                route,
                extra={
                    "fields": {
                        "status": status,
                        "ms": round(seconds * 1e3, 2),
                        "model": call.model,
                        "texts": call.texts,
                        "tokens": call.tokens,
                        "id": call.request_id.decode(),
                    }
                },
            )

    def _endpoint(self, method: str, path: str, call: Call) -> Endpoint:
        """Where a request goes, if it may."""
        methods = self._routes.get(path)
        if methods is None:
            self._authorize(call)
            if path.startswith("/v1/models/"):
                with call.using(path.removeprefix("/v1/models/")):  # says that there is none
                    pass
            raise Problem("not_found", "there is no such route; GET /openapi.json lists them")
        endpoint = methods.get("GET" if method == "HEAD" else method)
        if endpoint is None or not endpoint.public:
            self._authorize(call)
        if endpoint is None:
            allow = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise Problem("method_not_allowed", f"this route takes {allow}", allow=allow)
        return endpoint

    def _authorize(self, call: Call) -> None:
        if not self.keys:
            return
        headers = call.headers
        given = headers.get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        own = key.strip() if scheme.lower() == b"bearer" else given
        if not any([self.keys.accept(own), self.keys.accept(headers.get(b"x-api-key", b""))]):
            raise Problem(
                "invalid_api_key",
                "the API key is missing or wrong; send it as: Authorization: Bearer KEY",
                close=True,
            )

    async def _body(self, endpoint: Endpoint, call: Call, receive: Receive) -> Any:
        """A request's body, read within the limits and decoded."""
        settings, headers = self.settings, call.headers
        asked = headers.get(b"x-deadline-ms")
        if asked is not None:
            if not asked.isdigit() or len(asked) > 9 or int(asked) == 0:
                raise Problem("invalid", "X-Deadline-Ms takes a whole number of milliseconds")
            call.deadline = min(call.deadline, call.started + int(asked) / 1e3)
        if endpoint.decoder is None:
            return None
        if self.in_progress > settings.max_requests:
            raise Problem(
                "overloaded",
                f"{settings.max_requests} requests are in progress; retry",
                retry_after=1.0,
                close=True,
            )
        check_media(headers)
        data = await read_body(receive, headers, settings.max_body)
        check_nesting(data, settings.max_depth, settings.max_items + 64)
        return decode(endpoint.decoder, data, endpoint.remedies)

    def _refusal(self, error: Exception, shape: str, call: Call) -> Reply:
        problem = problem_of(error)
        if problem.kind in ("internal", "backend"):
            # Not what it says: that may hold a text. Where it happened is enough to find it.
            places = [f"{frame.name}:{frame.lineno}" for frame in extract_tb(error.__traceback__)]
            logger.error(
                "request %s failed: %s at %s",
                call.request_id.decode(),
                type(error).__name__,
                " > ".join(places[-6:]),
            )
        status, data = told(problem, shape)
        return Reply(data, status, headers=problem.headers)
