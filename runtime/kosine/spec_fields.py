"""The values in a spec by their paths, and which of them an engine cannot lower."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from kosine.spec import EncoderSpec

__all__ = ["leaves", "unsupported"]


def leaves(spec: Any, at: str = "") -> Iterator[tuple[str, str, Any, Any]]:
    """Every value in a spec: its path with numbers (`layers[0].norm.eps`), the path without them,
    the value, and the object that holds it.
    """
    for field in fields(spec):
        value = getattr(spec, field.name)
        path = f"{at}.{field.name}" if at else field.name
        parts = [(path, value)]
        if isinstance(value, tuple):
            parts = [(f"{path}[{i}]", part) for i, part in enumerate(value)]
        for where, part in parts:
            if is_dataclass(part):
                yield from leaves(part, where)
            else:
                yield where, _unnumbered(where), part, spec


def _unnumbered(path: str) -> str:
    return ".".join(name.partition("[")[0] for name in path.split("."))


def unsupported(
    spec: EncoderSpec, runs: Mapping[str, Container[Any] | str]
) -> tuple[str, str] | None:
    """What an engine cannot lower, or None where it can lower the whole spec.

    Args:
        runs: By path without numbers, such as "layers.attention.window": the values that the
            engine computes, or the name of the neighbouring field that the value must equal. A
            field that is not named may have any value.

    Returns:
        What the field is ("layers[3].attention.window is 128"), and what it may be.
    """
    for where, path, value, holder in leaves(spec):
        known = runs.get(path)
        if isinstance(known, str):
            if value != getattr(holder, known):
                return f"{where} is {value!r}", f"{known}, {getattr(holder, known)}, is needed"
        elif known is not None and value not in known:
            return f"{where} is {value!r}", f"it runs {_listed(known)}"
    return None


def _listed(known: Container[Any]) -> str:
    if isinstance(known, range):
        return f"multiples of {known.step} from {known.start} to {known[-1]}"
    return ", ".join(map(str, known)) if isinstance(known, tuple) else str(known)
