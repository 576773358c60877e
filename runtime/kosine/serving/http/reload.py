"""POST /reload: the bundles anew, as SIGHUP does."""

from __future__ import annotations

import logging

from msgspec import Struct

from kosine.errors import KosineError
from kosine.serving.http.app import Call, Endpoint
from kosine.serving.http.problems import Problem
from kosine.serving.http.wire import Reply, json_reply

__all__ = ["Reloaded", "endpoint"]

logger = logging.getLogger("kosine")


class Reloaded(Struct):
    """What serves now: fingerprints by model."""

    fingerprints: dict[str, str]


def endpoint() -> Endpoint:
    return Endpoint("POST", "/reload", handle, "Load the bundles anew", answer=Reloaded)


async def handle(call: Call, _: None) -> Reply:
    service = call.service
    if not service.keys:
        # It makes the service work hard, so it is not for everybody.
        raise Problem("not_found", "this route is off, since the service has no API key")
    try:
        models = await service.reload()
    except (KosineError, OSError) as error:
        # It names paths and files: that is for the log alone.
        logger.error("reload failed, the old version goes on: %s", error)
        raise Problem(
            "reload_failed",
            f"a bundle was refused ({type(error).__name__}), the old version goes on; see the log",
        ) from None
    return json_reply(Reloaded({model.name: model.fingerprint for model in models}))
