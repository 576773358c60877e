"""Where a checkpoint's files are, and how untrusted JSON among them is read.

A checkpoint is a local folder or a hub id (`organisation/name`). Every file in it is
untrusted: sizes are capped before reading, and damage is named by file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kosine.errors import CheckpointNotFound, CorruptCheckpoint, InputError

__all__ = [
    "MAX_JSON_BYTES",
    "Located",
    "locate",
    "optional_object",
    "read_json",
    "read_object",
    "read_text",
    "require_relative",
    "sha256_of",
]

MAX_JSON_BYTES = 16 * 1024 * 1024
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_PATTERNS = ("*.json", "*.txt", "*.safetensors")
HUB_PICKLE_PATTERNS = ("*pytorch_model*.bin", "*adapter_model.bin")
# Other runtimes' copies of the same weights, which a reader of safetensors never opens.
HUB_IGNORED = ("onnx/*", "openvino/*", "coreml/*", "tf_model*", "flax_model*")


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint on this machine: its folder, the name it goes by, its revision if any."""

    folder: Path
    name: str
    revision: str | None


def locate(path: str | Path, *, revision: str | None = None, allow_pickle: bool = False) -> Located:
    """Find a checkpoint folder, fetching it from the hub where `path` is a hub id.

    Raises:
        CheckpointNotFound: No such folder, or the hub could not serve the id.
        InputError: `revision` was given for a local folder, which has none.
    """
    folder = Path(path)
    if folder.is_dir():
        if revision is not None:
            raise InputError(
                f"revision {revision!r} was given for the local folder {folder}",
                limit="revisions belong to hub ids",
                remedy="drop the revision, or give the hub id",
            )
        return Located(folder, folder.resolve().name, None)
    text = str(path)
    if folder.exists():
        raise CheckpointNotFound(
            f"{text} is a file",
            limit="a checkpoint is a folder or a hub id such as organisation/name",
            remedy="give the folder that holds it",
        )
    if not isinstance(path, str) or HUB_ID.fullmatch(text) is None:
        raise CheckpointNotFound(
            f"no checkpoint folder at {text}",
            limit="a checkpoint is a folder or a hub id such as organisation/name",
            remedy="check the path",
        )
    return download(text, revision=revision, allow_pickle=allow_pickle)


def download(hub_id: str, *, revision: str | None, allow_pickle: bool) -> Located:
    """Fetch the files that the reader uses, and no others, into the hub cache."""
    from huggingface_hub import snapshot_download

    patterns = [*HUB_PATTERNS, *(HUB_PICKLE_PATTERNS if allow_pickle else ())]
    try:
        folder = Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=list(HUB_IGNORED),
            )
        )
    except Exception as error:
        wanted = hub_id if revision is None else f"{hub_id} at revision {revision}"
        raise CheckpointNotFound(
            f"no folder {hub_id}, and the hub did not serve {wanted} ({type(error).__name__})",
            limit="a checkpoint is a folder or a hub id that can be reached",
            remedy="check the id and the network, or download it elsewhere and give the folder",
        ) from error
    return Located(folder, hub_id, folder.name)


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
