"""Puts a service together and runs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kosine.serving.http import cohere, health, openai, openapi, page, reload, tei, traces
from kosine.serving.http.app import Service
from kosine.serving.http.metrics import Metrics
from kosine.serving.http.models import Model, Models
from kosine.serving.http.server import Server, bind
from kosine.serving.http.settings import Keys, Settings

__all__ = ["make_server", "make_service"]

logger = logging.getLogger("kosine")


def make_service(paths: Mapping[str, Path], settings: Settings, keys: Keys) -> Service:
    """The application, with nothing loaded yet: `await service.models.load()` does that."""
    models = Models(paths, settings)
    metrics = Metrics()
    endpoints = [
        *openai.endpoints(settings, paths),
        *tei.endpoints(),
        *cohere.endpoints(),
        *health.endpoints(),
        metrics.endpoint,
        page.endpoint(),
        reload.endpoint(),
    ]
    endpoints.append(openapi.endpoint(endpoints))
    observers = [metrics.observe, *filter(None, [traces.tracer()])]
    service = Service(settings, models, keys, endpoints, observers)
    metrics.watch(service)
    return service


def make_server(service: Service) -> Server:
    """The server for it, listening.

    Raises:
        InputError: The address cannot be had.
    """
    settings = service.settings
    listener = bind(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def load() -> None:
        await service.models.load()
        for model in service.models.by_name.values():
            _say(model)
        logger.info("serving at %s", address)

    async def load_again() -> None:
        for model in await service.reload():
            _say(model)

    app: Any = service
    if settings.cors:
        from starlette.middleware.cors import CORSMiddleware

        app = CORSMiddleware(
            service, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"]
        )
    return Server(service, app, listener, load, load_again)


def _say(model: Model) -> None:
    backend = model.encoder.backend
    logger.info(
        "model %s: %s/%s, %d dimensions, fingerprint %s",
        model.name,
        backend.name,
        backend.dtype,
        model.encoder.dim,
        model.fingerprint,
    )
