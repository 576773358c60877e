"""JSON from an untrusted file as frozen dataclasses, each value checked against its annotation.

Every complaint names the path to the bad value. Unknown keys are refused: a key that is not
understood might change what the others mean.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kosine.errors import ManifestError

__all__ = ["bad", "build", "parse", "shown"]

MAX_DEPTH = 16


def parse(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`: UTF-8, keys unique, and nothing that cannot be written again."""
    try:
        value = json.loads(
            text.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique
        )
        # What cannot be written again: lone surrogates as \\u escapes, 1e999.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise bad(
            "$", f"not JSON in UTF-8 with unique keys ({type(error).__name__})", "a JSON object"
        ) from None
    if _depth(value) > MAX_DEPTH:
        raise bad("$", "nested too deeply", f"at most {MAX_DEPTH} levels")
    if not isinstance(value, dict):
        raise bad("$", f"a {type(value).__name__}", "a JSON object")
    return value


def build(kind: type[Any], value: Any, at: str) -> Any:
    """Make a dataclass from a JSON object, each field checked against its annotation."""
    if not isinstance(value, dict):
        raise bad(at, f"a {type(value).__name__}", "an object")
    hints = get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise bad(at, f"an object with key {unknown[0][:40]!r}", f"of {', '.join(hints)}")
    missing = [
        f.name
        for f in fields(kind)
        if f.name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise bad(f"{at}.{missing[0]}", "no value", "required")
    return kind(
        **{name: _convert(hints[name], part, f"{at}.{name}") for name, part in value.items()}
    )


def _convert(hint: Any, value: Any, at: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if type(None) in parts:  # X | None
        if value is None:
            return None
        return _convert(next(part for part in parts if part is not type(None)), value, at)
    if origin is tuple:
        items = _expect(list, value, at)
        return tuple(_convert(parts[0], item, f"{at}[{i}]") for i, item in enumerate(items))
    if origin is list:
        items = _expect(list, value, at)
        return [_convert(parts[0], item, f"{at}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        mapping = _expect(dict, value, at)
        return {key: _convert(parts[1], item, f"{at}.{key[:40]}") for key, item in mapping.items()}
    if origin is Literal:
        if value not in parts or type(value) is not str:
            raise bad(at, repr(value)[:40], f"one of {', '.join(parts)}")
        return value
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise bad(at, shown(value), "a float") from None
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise bad(at, f"a {type(value).__name__}", f"a {hint.__name__}")
        return value
    return build(hint, value, at)


def _expect(kind: type[Any], value: Any, at: str) -> Any:
    if not isinstance(value, kind):
        raise bad(at, f"a {type(value).__name__}", f"a {kind.__name__}")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: which of two equal ones counts is up to the reader."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _depth(value: Any) -> int:
    """Levels of objects and lists, counted level by level: recursion is what it guards."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            part for item in level for part in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def shown(value: object) -> str:
    """A number for a message, however many digits it has."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} digits)"


def bad(at: str, value: str, limit: str) -> ManifestError:
    return ManifestError(
        f"manifest.json: {at} is {value}",
        limit=f"expected {limit}",
        remedy="export the bundle again with `kosine export`",
    )
