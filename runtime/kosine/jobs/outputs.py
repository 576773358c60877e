"""Vectors to a file as they come, in a form that a later run can go on with.

What is not finished lies beside OUT as `.OUT.part`; `finish` puts it in OUT's place, whole or not
at all. `.part` is the .npy or .jsonl itself; of a Parquet file, whose index stands at its end, it
is an Arrow stream that `finish` turns into Parquet.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from kosine.errors import InputError
from kosine.jobs.inputs import Id, pyarrow

__all__ = ["SUFFIXES", "Output", "Rows", "open_output", "part_of"]

SUFFIXES = (".npy", ".jsonl", ".parquet")
NPY_HEADER = 128  # bytes, for any number of rows
ROW_GROUP = 1 << 14  # rows of a Parquet file that are held at once


class Rows:
    """Rows of one window.

    Attributes:
        first: The number of the first row, from 0.
        ids: As many as rows; None for all of them without an id field.
        vectors: (n, d).
        missing: (n,) bool, rows that have no vector.
    """

    def __init__(
        self,
        first: int,
        ids: list[Id | None] | None,
        vectors: NDArray[Any],
        missing: NDArray[np.bool_],
    ) -> None:
        self.first, self.vectors, self.missing = first, vectors, missing
        self.ids = list(range(first, first + len(vectors))) if ids is None else ids


class Output(Protocol):
    """Where rows go."""

    def append(self, rows: Rows) -> None: ...

    def sync(self) -> int:
        """Bytes that are now certainly on the disk."""

    def finish(self) -> None: ...

    def close(self) -> None: ...


def part_of(path: Path) -> Path:
    """The file that holds what is written so far."""
    return path.with_name(f".{path.name}.part")


def open_output(
    path: Path | None, like: NDArray[Any], metadata: dict[str, str], begin: int = 0, rows: int = 0
) -> Output:
    """Write to a path, or with None to standard output.

    Args:
        path: OUT.npy, OUT.jsonl or OUT.parquet.
        like: (0, d) of the dtype that all vectors have.
        metadata: For the Parquet file.
        begin, rows: Bytes and rows of an earlier run to keep.

    Raises:
        InputError: Another run writes that file.
        MissingExtra: Parquet without pyarrow.
    """
    if path is None:
        return _JsonLines(sys.stdout.buffer)
    if path.suffix.lower() == ".parquet":
        pyarrow("pyarrow.parquet")  # before anything is written
    file = _own(part_of(path), begin)
    if path.suffix.lower() == ".npy":
        return _Npy(file, path, like, rows)
    if path.suffix.lower() == ".parquet":
        return _Parquet(file, path, like, metadata, begin)
    return _JsonLines(file, path)


def _own(part: Path, begin: int) -> BinaryIO:
    """The part, cut to what is kept, for this process alone."""
    file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    with contextlib.suppress(ImportError):  # Windows has no such locks
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise InputError(
                f"another run is writing {part.name!r}", remedy="wait for it, or name another -o"
            ) from None
    file.truncate(begin)
    file.seek(begin)
    return file


class _File:
    """A part, its file, and how one takes the other's place."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path

    def sync(self) -> int:
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def finish(self) -> None:
        self.sync()
        part_of(self.path).replace(self.path)

    def close(self) -> None:
        self.file.close()


class _Npy(_File):
    """Rows behind a header of fixed length, which gets their number at the end."""

    def __init__(self, file: BinaryIO, path: Path, like: NDArray[Any], rows: int) -> None:
        super().__init__(file, path)
        self.like, self.rows = like, rows
        if file.tell() == 0:
            file.write(self._header())

    def append(self, rows: Rows) -> None:
        self.file.write(np.ascontiguousarray(rows.vectors, self.like.dtype).tobytes())
        self.rows += len(rows.vectors)

    def finish(self) -> None:
        self.file.seek(0)
        self.file.write(self._header())
        super().finish()

    def _header(self) -> bytes:
        kind, dim = self.like.dtype.str, self.like.shape[1]
        text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': ({self.rows}, {dim}), }}"
        magic = np.lib.format.magic(1, 0)
        length = NPY_HEADER - len(magic) - 2
        return magic + struct.pack("<H", length) + text.encode().ljust(length - 1) + b"\n"


class _JsonLines:
    """One object a row: its id and its vector, null where there is none."""

    def __init__(self, file: BinaryIO, path: Path | None = None) -> None:
        self.file = file
        self.into = None if path is None else _File(file, path)

    def append(self, rows: Rows) -> None:
        vectors = rows.vectors
        if vectors.dtype.kind == "f":  # the shortest digits that give the same float32 again
            cells = vectors.astype("U").tolist()
        else:
            cells = [list(map(str, row)) for row in vectors.tolist()]
        for key, row, missing in zip(rows.ids, cells, rows.missing.tolist(), strict=True):
            vector = "null" if missing else f"[{', '.join(row)}]"
            line = f'{{"id": {json.dumps(key, ensure_ascii=False)}, "vector": {vector}}}\n'
            self.file.write(line.encode("utf-8", "backslashreplace"))

    def sync(self) -> int:
        if self.into is None:
            self.file.flush()
            return 0
        return self.into.sync()

    def finish(self) -> None:
        if self.into is None:
            self.file.flush()
        else:
            self.into.finish()

    def close(self) -> None:
        if self.into is not None:
            self.into.close()


class _Parquet(_File):
    """An Arrow stream of (id, vector), in the end turned into Parquet with its metadata."""

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        like: NDArray[Any],
        metadata: dict[str, str],
        begin: int,
    ) -> None:
        super().__init__(file, path)
        self.arrow, self.like, self.metadata = pyarrow("pyarrow"), like, metadata
        self.schema = self._read_schema() if begin else None

    def append(self, rows: Rows) -> None:
        arrow = self.arrow
        first = next((key for key in rows.ids if key is not None), 0)
        kind = arrow.string() if isinstance(first, str) else arrow.int64()
        schema = self._schema(kind)
        try:
            ids = arrow.array(rows.ids, schema.field("id").type)
        except (arrow.ArrowInvalid, arrow.ArrowTypeError):
            raise InputError(
                "some ids are strings and some are numbers",
                limit="one type in a column of Parquet",
                remedy="write .jsonl, or make all of them strings",
            ) from None
        flat = np.ascontiguousarray(rows.vectors, self.like.dtype).reshape(-1)
        vectors = arrow.FixedSizeListArray.from_arrays(
            arrow.array(flat), self.like.shape[1], mask=arrow.array(rows.missing)
        )
        batch = arrow.record_batch([ids, vectors], schema=schema)
        self.file.write(batch.serialize())

    def finish(self) -> None:
        schema = self._schema(self.arrow.int64())
        self.sync()
        beside = self.path.with_name(f".{self.path.name}.whole")
        parquet = pyarrow("pyarrow.parquet")
        metadata = {**(schema.metadata or {}), **self.metadata}
        self.file.seek(0)
        try:
            stream = self.arrow.ipc.open_stream(self.file)
            with parquet.ParquetWriter(beside, schema.with_metadata(metadata)) as writer:
                held, count = [], 0
                for batch in stream:
                    held.append(batch.replace_schema_metadata(metadata))
                    count += batch.num_rows
                    if count >= ROW_GROUP:
                        writer.write_table(self.arrow.Table.from_batches(held))
                        held, count = [], 0
                if held:
                    writer.write_table(self.arrow.Table.from_batches(held))
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)
        part_of(self.path).unlink()

    def _schema(self, ids: Any) -> Any:
        """That of the stream; of `ids` where nothing is written yet."""
        if self.schema is None:
            arrow = self.arrow
            item = arrow.from_numpy_dtype(self.like.dtype)
            vector = arrow.list_(arrow.field("element", item), self.like.shape[1])
            self.schema = arrow.schema([("id", ids), ("vector", vector)])
            self.file.write(self.schema.serialize())
        return self.schema

    def _read_schema(self) -> Any:
        at = self.file.tell()
        self.file.seek(0)
        try:
            return self.arrow.ipc.open_stream(self.file).schema
        finally:
            self.file.seek(at)
