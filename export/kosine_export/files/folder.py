"""How the files of a checkpoint's folder are read.

Every file in it is untrusted: sizes are capped before reading, and damage is named by file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kosine.errors import CorruptCheckpoint

__all__ = [
    "MAX_JSON_BYTES",
    "optional_object",
    "read_json",
    "read_object",
    "read_text",
    "require_relative",
    "sha256_of",
    "without_nulls",
]

MAX_JSON_BYTES = 16 * 1024 * 1024


def read_text(path: Path, *, max_bytes: int) -> str:
    """A UTF-8 text file of at most `max_bytes`.

    Raises:
        CorruptCheckpoint: Unreadable, over the cap, or not UTF-8; the message names the file.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise CorruptCheckpoint(
                f"{path.name} has {size} bytes",
                limit=f"at most {max_bytes} bytes are read",
                remedy="check that the file is what its name says",
            )
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCheckpoint(
            f"{path.name} is not UTF-8 (byte {error.start})",
            limit="checkpoint files are UTF-8",
            remedy="save the checkpoint again",
        ) from error
    except OSError as error:
        raise CorruptCheckpoint(
            f"{path.name} cannot be read ({error.strerror or type(error).__name__})",
            remedy="check the file and its permissions",
        ) from error


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """A JSON file of at most `max_bytes`.

    Raises:
        CorruptCheckpoint: Damaged or too large; the message names the file.
    """
    text = read_text(path, max_bytes=max_bytes)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nesting"
        raise CorruptCheckpoint(
            f"{path.name} is not valid JSON ({where})",
            remedy="save or download the checkpoint again",
        ) from error


def read_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CorruptCheckpoint: Damaged, too large, or another kind of JSON value.
    """
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise CorruptCheckpoint(
            f"{path.name} holds a {type(value).__name__}",
            limit="it must hold a JSON object",
            remedy="save or download the checkpoint again",
        )
    return value


def optional_object(path: Path) -> dict[str, Any]:
    """`read_object`, or an empty dict where there is no such file."""
    return read_object(path) if path.is_file() else {}


def require_relative(value: object, *, file: str) -> str:
    """A path that a checkpoint's JSON names, kept inside the checkpoint.

    Raises:
        CorruptCheckpoint: Not a string, absolute, or with `..` in it.
    """
    if isinstance(value, str) and "\0" not in value:
        outside = PureWindowsPath(value).anchor or PurePosixPath(value).is_absolute()
        if not outside and ".." not in PureWindowsPath(value).parts:
            return value
    raise CorruptCheckpoint(
        f"{file} names the path {value!r}",
        limit="paths are relative and stay inside the checkpoint",
        remedy="do not use this checkpoint unless you know why it reaches outside",
    )


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are stated: JSON writers spell "unstated" as null."""
    return {key: item for key, item in value.items() if item is not None}
