"""safetensors files read in place and written with every tensor on a 64-byte boundary.

The format: 8 bytes little-endian header length, a JSON header of
`name -> {dtype, shape, data_offsets}`, then the data. Reading is here, and not left to the
safetensors package, because ONNX external data needs absolute byte offsets, and writing
because ONNX Runtime and the native engine want aligned tensors. Both stay inside the
published format, so any safetensors reader opens these files.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kosine.errors import IntegrityError

__all__ = ["ALIGNMENT", "Mapped", "TensorEntry", "TensorFile", "map_file", "write_tensors"]

ALIGNMENT = 64
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_DIMENSIONS = 8
DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "I64": np.dtype("<i8"),
        "I32": np.dtype("<i4"),
        "I8": np.dtype("i1"),
        "U8": np.dtype("u1"),
    }
)
Mapped: TypeAlias = mmap.mmap | bytes  # bytes where a file is empty
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `offset` counts bytes from the start of the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFile:
    """A safetensors file, its header checked and its data memory-mapped read-only.

    Args:
        path: The file.
        data: Its bytes, where they are mapped already; otherwise it is mapped here.

    Raises:
        IntegrityError: The header is damaged, or an entry overlaps, leaves a hole, or reaches
            outside the file.
    """

    def __init__(self, path: str | Path, data: Mapped | None = None) -> None:
        self.path = Path(path)
        if data is None:
            with self.path.open("rb") as file:
                data = map_file(file.fileno())
        self._data = data
        self._size = len(data)
        if self._size < 8:
            raise self._damaged(f"is {self._size} bytes long", "at least 8 bytes")
        length = struct.unpack_from("<Q", data)[0]
        if length > min(MAX_HEADER_BYTES, self._size - 8):
            raise self._damaged(
                f"states a header of {length} bytes",
                f"at most {min(MAX_HEADER_BYTES, self._size - 8)}",
            )
        self.entries: Mapping[str, TensorEntry] = MappingProxyType(
            self._parse(data[8 : 8 + length])
        )

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only view of the mapped file."""
        try:
            entry = self.entries[name]
        except KeyError:
            raise IntegrityError(
                f"{self.path.name} has no tensor {name!r}", remedy="export the bundle again"
            ) from None
        flat = np.frombuffer(
            self._data, entry.dtype, count=entry.nbytes // entry.dtype.itemsize, offset=entry.offset
        )
        return flat.reshape(entry.shape)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Every tensor by name, as views."""
        return {name: self[name] for name in self.entries}

    def _parse(self, header: bytes) -> dict[str, TensorEntry]:
        try:
            # Decoded here: json.loads would take UTF-16 too, which other readers do not.
            parsed = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            raise self._damaged("has a header that is not JSON with unique keys") from None
        if not isinstance(parsed, dict):
            raise self._damaged("has a header that is not an object")
        parsed.pop("__metadata__", None)
        data_at = 8 + len(header)
        entries = [self._entry(name, value, data_at) for name, value in parsed.items()]
        end = data_at
        for entry in sorted(entries, key=lambda item: (item.offset, item.nbytes)):
            if entry.offset != end:
                raise self._damaged(f"has a hole or an overlap before tensor {entry.name[:60]!r}")
            end += entry.nbytes
        if end != self._size:
            raise self._damaged(f"is {self._size} bytes long", f"its header accounts for {end}")
        return {entry.name: entry for entry in entries}

    def _entry(self, name: str, value: Any, data_at: int) -> TensorEntry:
        try:
            dtype = DTYPES[value["dtype"]]
            shape = tuple(value["shape"])
            begin, end = value["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise self._damaged(f"has an unreadable entry for tensor {name[:60]!r}") from None
        if len(shape) > MAX_DIMENSIONS:
            raise self._damaged(
                f"gives tensor {name[:60]!r} {len(shape)} dimensions", f"at most {MAX_DIMENSIONS}"
            )
        numbers = (*shape, begin, end)
        if not all(type(number) is int and 0 <= number <= self._size for number in numbers):
            raise self._damaged(f"has numbers out of range in the entry for tensor {name[:60]!r}")
        count = 1
        for size in shape:
            count *= size
        if end - begin != count * dtype.itemsize:
            raise self._damaged(f"gives tensor {name[:60]!r} {end - begin} bytes for shape {shape}")
        return TensorEntry(name, dtype, shape, data_at + begin, end - begin)

    def _damaged(self, what: str, limit: str = "") -> IntegrityError:
        return IntegrityError(
            f"{self.path.name} {what}", limit=limit, remedy="export or copy the bundle again"
        )


def map_file(descriptor: int) -> Mapped:
    """A file's bytes, mapped read-only; they stay after the descriptor was closed."""
    if not os.fstat(descriptor).st_size:
        return b""  # nothing cannot be mapped
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: which of two equal ones counts is up to the reader."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> dict[str, TensorEntry]:
    """Write arrays as a safetensors file and say where each one went.

    The header is padded with spaces, and each tensor that does not end on a 64-byte boundary
    is followed by a `_pad.N` uint8 tensor, since the format allows no holes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks: list[NDArray[Any]] = []
    at = 0
    for name, value in tensors.items():
        if name == "__metadata__" or name.startswith("_pad."):
            raise ValueError(f"tensor name {name!r} is reserved")
        array = np.ascontiguousarray(value).reshape(value.shape)
        if array.dtype not in NAMES:
            raise TypeError(f"tensor {name!r} has dtype {array.dtype}, known: {sorted(DTYPES)}")
        at = _append(header, chunks, name, array, at)
        if at % ALIGNMENT:
            filler = np.zeros(-at % ALIGNMENT, np.uint8)
            at = _append(header, chunks, f"_pad.{len(chunks)}", filler, at)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    entries = {}
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for chunk in chunks:
            file.write(chunk.data)
        file.flush()
        os.fsync(file.fileno())
    for name, value in tensors.items():
        begin, end = header[name]["data_offsets"]
        dtype = NAMES[np.dtype(value.dtype)]
        entries[name] = TensorEntry(
            name, DTYPES[dtype], tuple(value.shape), 8 + len(text) + begin, end - begin
        )
    return entries


def _append(
    header: dict[str, Any], chunks: list[NDArray[Any]], name: str, array: NDArray[Any], at: int
) -> int:
    header[name] = {
        "dtype": NAMES[array.dtype],
        "shape": list(array.shape),
        "data_offsets": [at, at + array.nbytes],
    }
    chunks.append(array)
    return at + array.nbytes
