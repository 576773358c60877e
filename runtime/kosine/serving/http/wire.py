"""Bytes of requests to values, and vectors to bytes: checked before they are decoded, written by
native code, large answers in pieces from one array."""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
import orjson

from kosine.packed import Float32
from kosine.serving.http.problems import Problem

__all__ = [
    "JSON",
    "Receive",
    "Reply",
    "Send",
    "base64_rows",
    "check_media",
    "check_nesting",
    "decode",
    "float_rows",
    "in_pieces",
    "json_reply",
    "read_body",
    "send_reply",
]

JSON: Final = b"application/json"
# A body over the limit is read up to this many times the limit, and thrown away.
READ_ANYWAY: Final = 4
# Rows that are written at a time: an answer of fewer goes out as one piece.
ROWS_PER_PIECE: Final = 64
# Brackets and quotes that are looked at one by one; a request has far fewer, or is hostile.
TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)

Body = TypeVar("Body")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class Reply:
    """An answer.

    Attributes:
        body: All of it, or its pieces one by one.
        status: Of HTTP.
        media: The Content-Type.
        headers: Further ones.
    """

    body: bytes | Iterator[bytes]
    status: int = 200
    media: bytes = JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def json_reply(value: Any, status: int = 200) -> Reply:
    return Reply(msgspec.json.encode(value), status)


def check_media(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what is not plain JSON.

    Raises:
        Problem: Another Content-Type, or a Content-Encoding.
    """
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != JSON:
        raise Problem(
            "unsupported_media_type",
            "the body must be JSON; send the header Content-Type: application/json",
            close=True,
        )
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Problem("unsupported_media_type", "the body must not be compressed", close=True)


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
    """A request's body.

    Raises:
        Problem: It is over the limit. One that is not far over is read to its end first, so that
            the client gets as far as reading the answer.
        CancelledError: The client went away.
    """
    too_large = Problem(
        "body_too_large",
        f"the body is over {limit} bytes; send it in several requests",
        close=True,
    )
    length = headers.get(b"content-length")
    if length is not None and int(length) > READ_ANYWAY * limit:
        raise too_large
    message = await receive()
    data = message.get("body", b"")
    if not message.get("more_body", False) and len(data) <= limit:
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        return bytes(data)
    parts, size = [data], len(data)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        size += len(message.get("body", b""))
        if size > READ_ANYWAY * limit:
            raise too_large
        if size <= limit:
            parts.append(message.get("body", b""))
    if size > limit:
        raise too_large
    return b"".join(parts)


def check_nesting(data: bytes, depth: int, items: int) -> None:
    """Refuse JSON that is nested too deep or has too many parts, before anything is made of it.

    Raises:
        Problem: It goes over a limit.
    """
    # Nearly every request has few brackets and quotes: counting them is done in no time.
    brackets = data.count(b"[") + data.count(b"{")
    if brackets <= depth and data.count(b'"') <= 2 * items:
        return
    level = parts = 0
    for match in TOKEN.finditer(data):
        byte = data[match.start()]
        if byte in b"]}":
            level -= 1
            continue
        parts += 1
        if byte in b"[{":
            level += 1
            if level > depth:
                raise Problem("invalid", f"the JSON is nested deeper than {depth} levels")
        if parts > items:
            raise Problem(
                "invalid",
                f"the JSON has more than {items} strings and lists; send it in several requests",
            )


def decode(
    decoder: Callable[[bytes], Body], data: bytes, remedies: Mapping[str, str] | None = None
) -> Body:
    """A request's body as the value that a decoder makes of it. `remedies` are told by field.

    Raises:
        Problem: It is no JSON, or of another form.
    """
    try:
        return decoder(data)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        name = path.rstrip("`").lstrip(".").partition("[")[0] or None
        where = f"field {name!r}" if name else "the body"
        remedy = (remedies or {}).get(name or "", "")
        raise Problem("invalid", f"{where}: {message[:200]}{remedy}", param=name) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("invalid", f"the body is no valid JSON: {str(error)[:120]}") from None


def float_rows(vectors: Float32) -> list[bytes]:
    """Each row as JSON, [0.1,...]: the shortest decimals that give the same float32 again."""
    if not vectors.size:
        return [b"[]"] * len(vectors)
    text = orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)
    return [b"[%b]" % row for row in text[2:-2].split(b"],[")]


def base64_rows(vectors: Float32) -> list[bytes]:
    """Each row as a JSON string: base64 of its little-endian float32."""
    rows = vectors.astype("<f4", copy=False)
    return [b'"%b"' % binascii.b2a_base64(row.tobytes(), newline=False) for row in rows]


def in_pieces(
    vectors: Float32,
    rows: Callable[[Float32], list[bytes]],
    before: bytes,
    item: Callable[[int, bytes], bytes],
    after: bytes,
) -> bytes | Iterator[bytes]:
    """`before`, the items with commas between, `after`; in pieces where there are many rows.

    Args:
        vectors: (n, d).
        rows: Writes some of them.
        before, after: Around all.
        item: What is written for a row, given its place and its text.
    """

    def pieces() -> Iterator[bytes]:
        for begin in range(0, len(vectors), ROWS_PER_PIECE):
            texts = rows(vectors[begin : begin + ROWS_PER_PIECE])
            part = b",".join([item(begin + i, text) for i, text in enumerate(texts)])
            yield (b"," if begin else before) + part
        yield after if len(vectors) else before + after

    return b"".join(pieces()) if len(vectors) <= ROWS_PER_PIECE else pieces()


async def send_reply(
    reply: Reply, request_id: bytes, scope: MutableMapping[str, Any], send: Send
) -> None:
    """The answer's head and body; pieces are sent as such where HTTP/1.1 is spoken."""
    headers = [
        (b"content-type", reply.media),
        (b"x-request-id", request_id),
        (b"x-content-type-options", b"nosniff"),
        *reply.headers,
    ]
    body = reply.body
    if not isinstance(body, bytes) and scope["http_version"] == "1.0":
        body = b"".join(body)
    if isinstance(body, bytes):
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if isinstance(body, bytes):
        await send({"type": "http.response.body", "body": body})
        return
    for piece in body:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0)  # others are served between the pieces
    await send({"type": "http.response.body", "body": b""})
