"""GET /: a page to try the service on. Nothing in it comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from kosine.serving.http.app import Call, Endpoint
from kosine.serving.http.wire import Reply

__all__ = ["endpoint"]


def endpoint() -> Endpoint:
    data = Path(__file__).with_name("page.html").read_bytes()
    # The one script in it may run, and nothing else, wherever it might come from.
    script = re.search(rb"<script>(.*?)</script>", data, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[1] if script else b"").digest())
    policy = (
        b"default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
        b"script-src 'sha256-%b'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = [(b"content-security-policy", policy % digest), (b"referrer-policy", b"no-referrer")]

    async def handle(_: Call, body: None) -> Reply:  # noqa: ARG001
        return Reply(data, media=b"text/html; charset=utf-8", headers=headers)

    return Endpoint("GET", "/", handle, "A page to try it on", public=True)
