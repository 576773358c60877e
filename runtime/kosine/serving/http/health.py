"""Whether the service can serve, for probes: Kubernetes', TEI's and SageMaker's."""

from __future__ import annotations

from kosine.serving.http.app import Call, Endpoint
from kosine.serving.http.wire import Reply, json_reply

__all__ = ["endpoints"]


def endpoints() -> list[Endpoint]:
    summaries = {
        "/health": (ready, "200 while requests are served"),
        "/ping": (ready, "200 while requests are served"),
        "/health/ready": (ready, "200 while requests are served; 503 from SIGTERM on"),
        "/health/startup": (startup, "200 once the models are loaded"),
        "/health/live": (live, "200 unless only a restart can help"),
    }
    return [
        Endpoint("GET", path, handle, summary, public=True)
        for path, (handle, summary) in summaries.items()
    ]


def state(call: Call) -> str:
    service = call.service
    if not service.models.by_name:
        return "starting"
    if not service.models.ready:
        return "broken"
    return "draining" if service.draining else "serving"


async def ready(call: Call, _: None) -> Reply:
    found = state(call)
    return json_reply({"state": found}, 200 if found == "serving" else 503)


async def startup(call: Call, _: None) -> Reply:
    found = state(call)
    return json_reply({"state": found}, 503 if found == "starting" else 200)


async def live(call: Call, _: None) -> Reply:
    found = state(call)
    return json_reply({"state": found}, 503 if found == "broken" else 200)
