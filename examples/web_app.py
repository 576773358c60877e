"""Embeddings inside a web service: one Batcher for the life of the app.

    KOSINE_BUNDLE=ko.kosine uvicorn --factory web_app:make_app

The batcher is made in the lifespan, which runs in each worker process after any fork. FastAPI
takes the same `lifespan` and awaits the same call.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import kosine
from kosine import Batcher
from kosine.errors import DeadlineExceeded, InputError, QueueFull


async def embed(request: Request) -> JSONResponse:
    texts = (await request.json())["texts"]
    try:
        vectors = await request.app.state.batcher.aencode(texts, deadline=1.0)
    except InputError as error:
        return JSONResponse({"error": str(error)}, 422)
    except QueueFull as error:
        retry = {"Retry-After": str(math.ceil(error.retry_after))}
        return JSONResponse({"error": str(error)}, 429, headers=retry)
    except DeadlineExceeded as error:
        return JSONResponse({"error": str(error)}, 504)
    return JSONResponse({"vectors": vectors.tolist()})


async def health(request: Request) -> JSONResponse:
    state = request.app.state.batcher.health()
    return JSONResponse(
        {"state": state.state, "waiting": state.queue_requests}, 200 if state.ok else 503
    )


def make_app(bundle: str | None = None) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        encoder = kosine.load(bundle or os.environ["KOSINE_BUNDLE"])
        async with Batcher(encoder) as app.state.batcher:
            yield

    routes = [Route("/embed", embed, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)
