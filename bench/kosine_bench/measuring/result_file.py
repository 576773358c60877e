"""The result file: its shape, where it goes, and reading it back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kosine.errors import InputError
from kosine_bench import paths
from kosine_bench.measuring import machine

__all__ = ["SCHEMA", "device", "latest", "path_for", "read", "write"]

SCHEMA = 1
SECTIONS = (
    *("made", "machine", "ceilings", "models", "workloads", "contestants", "runs"),
    *("parity", "tuning", "figures", "load"),
)


def path_for(result: dict[str, Any], folder: Path | None = None) -> Path:
    """`<date>-<machine>.json` in `folder` (default: `bench/results`)."""
    name = f"{result['made']['date'][:10]}-{machine.slug(result['machine'])}.json"
    return (folder or paths.results_dir()) / name


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write(result: dict[str, Any], path: Path) -> None:
    """Write a result, one entry of each section a line, so that two of them can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["{", f'"schema": {SCHEMA},']
    for section in SECTIONS:
        content = result[section]
        if isinstance(content, list):
            entries = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in content)
            text = f"[\n{entries}\n]" if content else "[]"
        else:
            text = json.dumps(content, ensure_ascii=False, indent=1)
        lines.append(f'"{section}": {text}{"," if section != SECTIONS[-1] else ""}')
    # A run that is cut off while it writes leaves the file of before.
    part = path.with_name(path.name + ".part")
    part.write_text("\n".join([*lines, "}\n"]), "utf-8")
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """A result file's content.

    Raises:
        InputError: It is not one, or of another schema.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the result {path.name}: {error}",
            remedy="run `kosine bench` to make one",
        ) from error
    missing = [section for section in SECTIONS if section not in result]
    if result.get("schema") != SCHEMA or missing:
        raise InputError(
            f"{path.name} has schema {result.get('schema')} and lacks {missing}",
            limit=f"schema {SCHEMA} with all its sections",
            remedy="run `kosine bench` again",
        )
    return result


def device(result: dict[str, Any]) -> str:
    """ "cpu" or "cuda": what the run measured."""
    return str(result["made"].get("device", "cpu"))


def latest(folder: Path | None = None, *, wanted: str = "cpu") -> Path:
    """The newest full result of device `wanted` in `folder`, by its date; no unfinished one.

    Raises:
        InputError: There is none.
    """
    folder = folder or paths.results_dir()
    full = [
        path
        for path in folder.glob("*.json")
        if not (content := read(path))["made"]["quick"]
        and not content["made"].get("unfinished")
        and device(content) == wanted
    ]
    if not full:
        raise InputError(
            f"no full result of device {wanted!r} in {folder.name}",
            remedy="run `make bench`, which writes one",
        )
    return max(full, key=lambda path: str(read(path)["made"]["date"]))
