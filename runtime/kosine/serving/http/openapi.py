"""The OpenAPI document, made of the same table that requests are routed by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kosine.serving.http.app import Call, Endpoint
from kosine.serving.http.problems import KINDS, SHAPES, Problem
from kosine.serving.http.wire import Reply, json_reply

__all__ = ["endpoint"]

ERRORS = {
    "openai": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "tei": {
        "type": "object",
        "required": ["error", "error_type"],
        "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
    },
    "cohere": {
        "type": "object",
        "required": ["message"],
        "properties": {"message": {"type": "string"}},
    },
}


def endpoint(endpoints: Sequence[Endpoint]) -> Endpoint:
    """GET /openapi.json, for these routes."""
    value = document(endpoints)

    async def handle(_: Call, body: None) -> Reply:  # noqa: ARG001
        return json_reply(value)

    return Endpoint("GET", "/openapi.json", handle, "This document")


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document as JSON's values."""
    forms = [form for each in endpoints for form in (each.body, each.answer) if form is not None]
    schemas, components = msgspec.json.schema_components(
        forms, ref_template="#/components/schemas/{name}"
    )
    found = iter(schemas)
    paths: dict[str, Any] = {}
    for each in endpoints:
        operation: dict[str, Any] = {
            "summary": each.summary,
            "operationId": f"{each.method.lower()}{each.path.replace('/', '_')}",
            "parameters": [
                {
                    "name": "X-Deadline-Ms",
                    "in": "header",
                    "description": "Milliseconds in which the answer is useful.",
                    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
                }
            ],
            "security": [] if each.public else [{"key": []}],
        }
        if each.body is not None:
            content = {"application/json": {"schema": next(found)}}
            operation["requestBody"] = {"required": True, "content": content}
        answer = {} if each.answer is None else {"application/json": {"schema": next(found)}}
        operation["responses"] = {
            "200": {"description": "The answer.", **({"content": answer} if answer else {})},
            **_errors(each),
        }
        paths.setdefault(each.path, {})[each.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "kosine serve", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {**components, **{f"Error_{name}": form for name, form in ERRORS.items()}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _errors(each: Endpoint) -> dict[str, Any]:
    """The error answers of a route, by status."""
    schema = {"$ref": f"#/components/schemas/Error_{each.shape}"}
    if each.path.startswith(("/health", "/ping")):
        schema = {}
    statuses = sorted({SHAPES[each.shape](Problem(kind, ""))[0] for kind in KINDS})
    return {
        str(status): {
            "description": "An error.",
            "content": {"application/json": {"schema": schema}},
        }
        for status in statuses
    }
