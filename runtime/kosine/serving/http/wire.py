"""Bytes of requests to values, and vectors to bytes: checked before they are decoded, written by
native code, large answers in pieces from one array."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
import orjson

from kosine.packed import Float32
from kosine.serving.http.problems import Problem

__all__ = [
    "JSON",
    "Reply",
    "base64_rows",
    "check_nesting",
    "decode",
    "float_rows",
    "in_pieces",
    "json_reply",
]

JSON: Final = b"application/json"
# Rows that are written at a time: an answer of fewer goes out as one piece.
ROWS_PER_PIECE: Final = 64
# Brackets and quotes that are looked at one by one; a request has far fewer, or is hostile.
TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)

Body = TypeVar("Body")


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
