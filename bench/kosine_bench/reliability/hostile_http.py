"""Requests that nobody's client sends: some by name, and mutations of good ones without end."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Iterator

__all__ = ["BODIES", "ROUTES", "mutations", "named_requests", "send", "status_of"]

# Good bodies by route: what mutations start from.
ROUTES: dict[str, dict[str, object]] = {
    "/v1/embeddings": {"model": "sample", "input": ["가나다", "b"], "dimensions": 8},
    "/embed": {"inputs": ["가나다", "b"], "truncate": True, "normalize": True},
    "/": {"inputs": "가나다"},
    "/invocations": {"inputs": {"source_sentence": "가", "sentences": ["나"]}},
    "/similarity": {"inputs": {"source_sentence": "가", "sentences": ["나", "다"]}},
    "/tokenize": {"inputs": ["가나다"], "add_special_tokens": True},
    "/decode": {"ids": [[2, 5, 3], [2, 3]]},
    "/v2/embed": {
        "model": "sample",
        "texts": ["가"],
        "input_type": "search_query",
        "embedding_types": ["float", "int8"],
    },
}


def request(
    body: bytes,
    path: str = "/v1/embeddings",
    *,
    method: str = "POST",
    headers: bytes = b"Content-Type: application/json\r\n",
    length: bytes | None = None,
) -> bytes:
    """An HTTP request that asks for the connection to be closed."""
    size = str(len(body)).encode() if length is None else length
    head = b"%b %b HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: %b\r\nConnection: close\r\n\r\n"
    return head % (method.encode(), path.encode(), headers, size) + body


def _field(value: bytes) -> bytes:
    return b'{"model":"sample","input":' + value + b"}"


# Bodies that are wrong for every route.
BODIES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "number": b"3",
    "huge number": b"1" + b"0" * 400,
    "string": b'"a"',
    "list": b"[]",
    "list of objects": b"[{}]",
    "empty object": b"{}",
    "not closed": b'{"inputs": "a"',
    "closed twice": b'{"inputs": "a"}}',
    "two values": b'{"inputs": "a"} {"inputs": "b"}',
    "comments": b'{"inputs": "a" /* no */}',
    "single quotes": b"{'inputs': 'a'}",
    "trailing comma": b'{"inputs": "a",}',
    "NaN": b'{"inputs": NaN, "input": NaN}',
    "Infinity": b'{"inputs": -Infinity}',
    "nested 17": b"[" * 17 + b"]" * 17,
    "nested 250 000": b"[" * 250_000,
    "nested objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "nested ids": b'{"ids":[[[[1]]]],"inputs":[[[["a"]]]],"input":[[["a"]]],"texts":[[["a"]]]}',
    "fields null": b'{"inputs":null,"input":null,"texts":null,"ids":null,"model":null}',
    "fields objects": b'{"inputs":{},"input":{},"texts":{},"ids":{},"model":{}}',
    "fields numbers": b'{"inputs":1,"input":1.5,"texts":2,"ids":3,"model":4}',
    "fields true": b'{"inputs":true,"input":true,"texts":true,"ids":true,"model":true}',
    "lists of null": b'{"inputs":[null],"input":[null],"texts":[null],"ids":[null]}',
    "ids huge": b'{"ids":[99999999999999999999],"inputs":[1],"input":[1],"texts":[1]}',
    "ids negative": b'{"ids":[-1],"inputs":[-1],"input":[-1],"texts":[-1]}',
    "ids fractions": b'{"ids":[1.5],"inputs":[1.5],"input":[1.5],"texts":[1.5]}',
    "UTF-16": '{"inputs":"a"}'.encode("utf-16"),
    "UTF-32": '{"inputs":"a"}'.encode("utf-32"),
    "byte order mark": b'\xef\xbb\xbf{"inputs":"a"}',
    "no UTF-8": b'{"inputs":"\xff\xfe","input":"\xff","texts":["\xff"]}',
    "overlong UTF-8": b'{"inputs":"\xc0\x80","input":"\xc0\x80","texts":["\xc0\x80"]}',
    "control characters": b'{"inputs":"\x01","input":"\x01","texts":["\x01"]}',
    "bad escape": b'{"inputs":"\\x","input":"\\x","texts":["\\x"]}',
    "surrogate": b'{"inputs":"\\ud800","input":"\\ud800","texts":["\\ud800"]}',
    "many fields": b'{"inputs":"a"' + b',"x%d":1' % 7 * 3_000 + b"}",
    "long field": b'{"' + b"a" * 100_000 + b'":1}',
    "zeros": b"\0" * 1_000,
    "form": b"inputs=a&input=b",
    "XML": b"<inputs>a</inputs>",
    "gzip": bytes.fromhex("1f8b0800000000000003"),
}

INPUTS: dict[str, bytes] = {
    "NUL": b'"a\\u0000b"',
    "lone surrogate": b'"\\udc00"',
    "surrogates swapped": b'"\\udc00\\ud800"',
    "empty": b'""',
    "empty list": b"[]",
    "one empty": b'["a",""]',
    "a megabyte": b'"' + b"a" * 1_000_000 + b'"',
    "a megabyte of spaces": b'"' + b" " * 1_000_000 + b'"',
    "a megabyte of Hangul": b'"' + "가".encode() * 330_000 + b'"',
    "combining marks": b'"' + "a\u0301".encode() * 10_000 + b'"',
    "only marks": b'"' + "\u0301".encode() * 10_000 + b'"',
    "joiners": b'"' + "👨\u200d👩\u200d👧".encode() * 1_000 + b'"',
    "right to left": '"\u202eabc\u202d"'.encode(),
    "private use": '"\ue000\uf8ff"'.encode(),
    "noncharacters": '"\ufffe\uffff"'.encode(),
    "special tokens": b'"[CLS][SEP][MASK][UNK][PAD]"',
    "2 049 texts": json.dumps(["a"] * 2_049).encode(),
    "500 000 texts": b"[" + b'"",' * 499_999 + b'""]',
    "600 000 numbers": b"[" + b"1," * 599_999 + b"1]",
    "600 000 lists": b"[" + b"[]," * 599_999 + b"[]]",
    "a list in a list": b'[["a"]]',
    "mixed": b'["a",1,null,{},[]]',
    "an object": b'{"text":"a"}',
    "escapes": b'"' + b"\\u0041" * 50_000 + b'"',
    "backslashes": b'"' + b"\\\\" * 400_000 + b'"',
    "quotes": b'"' + b'\\"' * 400_000 + b'"',
}

OPTIONS: dict[str, bytes] = {
    f"{name} {value}": b'"a","%b":%b' % (name.encode(), value.encode())
    for name in ("dimensions", "encoding_format", "input_type", "prompt_name", "user", "model")
    for value in ("0", "-1", "1e9", "1.5", '"no"', "[]", "{}", "true", '"\\ud800"', "9" * 30)
}

HEADERS: dict[str, bytes] = {
    "no content type": b"",
    "text": b"Content-Type: text/plain\r\n",
    "form": b"Content-Type: multipart/form-data; boundary=x\r\n",
    "XML": b"Content-Type: application/xml\r\n",
    "two types": b"Content-Type: application/json, text/html\r\n",
    "type of bytes": b"Content-Type: \xff\xfe\r\n",
    "charset UTF-16": b"Content-Type: application/json; charset=utf-16\r\n",
    **{
        f"encoding {name}": b"Content-Type: application/json\r\nContent-Encoding: %b\r\n"
        % name.encode()
        for name in ("gzip", "br", "deflate", "zstd", "gzip, gzip", "nonsense")
    },
    **{
        f"deadline {name}": b"Content-Type: application/json\r\nX-Deadline-Ms: %b\r\n"
        % name.encode("latin-1")
        for name in ("0", "-1", "1.5", "1e3", "soon", "", "\xb2", "9" * 50, "0x10", "+5", "1 2")
    },
    **{
        f"id {name!r}"[:30]: b"Content-Type: application/json\r\nX-Request-Id: %b\r\n"
        % name.encode("latin-1")
        for name in ("", " ", "\xff", '"', "a b", "<script>", "a" * 5_000, "\t", "{}", "%0d%0a")
    },
    **{
        f"key {name!r}"[:30]: b"Content-Type: application/json\r\nAuthorization: %b\r\n"
        % name.encode("latin-1")
        for name in (
            "Bearer",
            "Bearer  ",
            "\xff",
            "Basic \xff",
            "Bearer " + "a" * 9_000,
            "Bearer a b",
        )
    },
}

GOOD = _field(b'"a"')
LINES: dict[str, bytes] = {
    "no bytes": b"",
    "a newline": b"\r\n",
    "newlines": b"\r\n" * 1_000,
    "zeros": b"\0" * 1_000,
    "noise": random.Random(0).randbytes(2_000),
    "TLS": bytes.fromhex("160301020001000001fc0303") + b"\0" * 200,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/3.0": b"GET /health HTTP/3.0\r\n\r\n",
    "no version": b"GET / \r\n\r\n",
    "lower case": b"get /health HTTP/1.1\r\nConnection: close\r\n\r\n",
    "unknown method": b"FETCH /health HTTP/1.1\r\nConnection: close\r\n\r\n",
    "CONNECT": b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "absolute": b"GET http://example.org/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "only a path": b"/health",
    "spaces": b"GET  /health  HTTP/1.1\r\n\r\n",
    "upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "upgrade to h2c": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nHost\r\n\r\n",
    "folded": b"GET /health HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
    "space before colon": b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
    "NUL in header": b"GET /health HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "bytes in header": b"GET /health HTTP/1.1\r\nX: \xff\xfe\r\nConnection: close\r\n\r\n",
    "long header": b"GET /health HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "length negative": request(GOOD, length=b"-1"),
    "length plus": request(GOOD, length=b"+5"),
    "length hex": request(GOOD, length=b"0x10"),
    "length word": request(GOOD, length=b"many"),
    "length huge": request(GOOD, length=b"9" * 40),
    "length 2**63": request(GOOD, length=b"9223372036854775808"),
    "length none": request(GOOD, length=b""),
    "length short": request(GOOD, length=b"3"),
    "length twice": request(GOOD, headers=b"Content-Length: 3\r\n"),
    "length list": request(GOOD, length=b"3, 3"),
    "length and chunks": request(GOOD, headers=b"Transfer-Encoding: chunked\r\n"),
    **{
        f"chunk {name}": b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + data
        for name, data in {
            "word": b"zz\r\na\r\n0\r\n\r\n",
            "negative": b"-1\r\na\r\n0\r\n\r\n",
            "huge": b"f" * 20 + b"\r\na",
            "without end": b"1\r\na1\r\na",
            "extensions": b"1;" + b"a" * 50_000 + b"\r\na\r\n0\r\n\r\n",
            "trailers": b"0\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
            "of one byte": b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n",
        }.items()
    },
    "coding unknown": request(GOOD, headers=b"Transfer-Encoding: gzip\r\n"),
    "expect": request(GOOD, headers=b"Content-Type: application/json\r\nExpect: 100-continue\r\n"),
    "expect nonsense": request(GOOD, headers=b"Expect: the-unexpected\r\n"),
    **{
        f"path {path[:24]!r}": b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path
        for path in (
            *(b"//", b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/%00", b"/%ff%fe"),
            *(b"/health%0d%0aX: y", b"/health?" + b"a=b&" * 1_000, b"/health#x", b"/%", b"/\xff"),
            *(b"/v1/embeddings/", b"/V1/EMBEDDINGS", b"/health/ready/../live", b"/;/health"),
        )
    },
    "pipelined noise": request(GOOD) + b"\xff" * 1_000,
    "body after GET": b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
    b"Connection: close\r\n\r\nabc",
}


def named_requests() -> Iterator[tuple[str, bytes]]:
    """(name, bytes to send) of every hostile request."""
    for path in ROUTES:
        for name, body in BODIES.items():
            yield f"{path} body: {name}", request(body, path)
    for name, value in INPUTS.items():
        yield f"input: {name}", request(_field(value))
        yield f"inputs: {name}", request(b'{"inputs":' + value + b"}", "/embed")
    for name, value in OPTIONS.items():
        yield f"option: {name}", request(_field(value))
    for name, headers in HEADERS.items():
        yield f"header: {name}", request(GOOD, headers=headers)
    for name, data in LINES.items():
        yield f"line: {name}", data


def mutations(seed: int) -> Iterator[bytes]:
    """Good requests, changed at random in their JSON, their bytes, or their lines."""
    draw = random.Random(seed)
    values: list[object] = [None, True, -1, 0, 2**63, 1e308, "", "가", "\0", [], {}, [[]], ["", 1]]
    while True:
        path, good = draw.choice(list(ROUTES.items()))
        body = dict(good)
        kind = draw.random()
        if kind < 0.4:
            for _ in range(draw.randint(1, 3)):
                body[draw.choice([*body, "model", "parameters", "x"])] = draw.choice(values)
            yield request(json.dumps(body).encode(), path)
            continue
        data = bytearray(
            json.dumps(body, ensure_ascii=False).encode() if kind < 0.8 else b""
        ) or bytearray(request(json.dumps(body).encode(), path))
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(data))
            match draw.randrange(4):
                case 0:
                    data[at] = draw.randrange(256)
                case 1:
                    del data[at : at + draw.randint(1, 8)]
                case 2:
                    data[at:at] = draw.choice([b'"', b"[", b"{", b"\\", b"\0", b"\r\n", b"\xff"])
                case _:
                    data[at:at] = data[at : at + draw.randint(1, 40)]
            if not data:
                data = bytearray(b"x")
        yield request(bytes(data), path) if kind < 0.8 else bytes(data)


def send(address: tuple[str, int], data: bytes, patience: float = 0.5) -> bytes:
    """Send bytes, and read until the connection closes or nothing comes for `patience` seconds."""
    received = b""
    with socket.create_connection(address, 10.0) as connection:
        connection.settimeout(10.0)
        with contextlib.suppress(OSError):
            connection.sendall(data)
        # What is no whole request gets no answer for now; the server has deadlines for these.
        connection.settimeout(patience)
        with contextlib.suppress(OSError):
            while part := connection.recv(65_536):
                received += part
                connection.settimeout(1.0)
    return received


def status_of(answer: bytes) -> int:
    """The status of an answer; 0 where none came."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
