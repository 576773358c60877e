"""Texts of a file, one record after another: lines, CSV, JSON lines or Parquet.

Lines end at LF or CRLF and nowhere else; a blank line is a text; a byte order mark at the start is
not text. The other kinds hold a text (and an id) in a field of each record. Whatever is wrong with
one record is said in the record, so that a job may end there or go on.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from kosine.errors import InputError, MissingExtra

__all__ = ["Id", "Input", "Record", "open_input", "pyarrow"]

Id: TypeAlias = str | int
KINDS = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
TEXT_FIELD = "text"
MAX_CELL = 1 << 24  # characters of one CSV cell: an open quote swallows no more than that
BATCH = 1024  # rows of a Parquet file that are held as Python objects
CHUNK = 1 << 20


class Record(NamedTuple):
    """One text, or what is wrong with it.

    Attributes:
        number: Of its line (in CSV its last), or of its row in a Parquet file; from 1.
        text: Empty where there is a problem.
        id: What the id field holds; None without an id field.
        problem: To be read after "line 3".
    """

    number: int
    text: str
    id: Id | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """Where texts come from. `records` may be called again, but for standard input."""

    name: str
    kind: str
    text_field: str = TEXT_FIELD
    id_field: str | None = None

    @property
    def title(self) -> str:
        return "standard input" if self.name == "-" else repr(self.name)

    @property
    def unit(self) -> str:
        """What a record's number counts."""
        return "row" if self.kind == "parquet" else "line"

    @property
    def is_file(self) -> bool:
        """Whether it can be read twice."""
        return self.name != "-" and Path(self.name).is_file()

    def records(self) -> Iterator[Record]:
        """The records in their order.

        Raises:
            InputError: No such field, or a file that is not of its kind.
            MissingExtra: Parquet without pyarrow.
        """
        readers = {"lines": _lines, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
        return readers[self.kind](self)

    def measure(self) -> tuple[str, int]:
        """The file's sha256, and about how many records it has (of lines and Parquet: exactly)."""
        digest, ends, last = hashlib.sha256(), 0, b"\n"
        with Path(self.name).open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                ends += chunk.count(b"\n")
                last = chunk[-1:]
        if self.kind == "parquet":
            return digest.hexdigest(), int(_parquet_file(self).metadata.num_rows)
        return digest.hexdigest(), ends + (last != b"\n") - (self.kind == "csv" and ends > 0)


def open_input(name: str, text_field: str | None = None, id_field: str | None = None) -> Input:
    """The input of that name, "-" being standard input; its kind goes by the name's ending.

    Standard input is one text a line, or JSON lines where `text_field` is given.

    Raises:
        InputError: No such file, one of vectors, or fields of a file that has none.
    """
    if name == "-":
        kind = "lines" if text_field is None else "jsonl"
    else:
        path = Path(name)
        if path.is_dir():
            raise InputError(f"{name!r} is a folder", limit="a file", remedy="name a file of texts")
        if not path.exists():
            raise InputError(f"no file {name!r}", remedy="name a file, or - for standard input")
        if path.suffix.lower() == ".npy":
            raise InputError(
                f"{name!r} holds vectors, not texts",
                limit="one text a line, or a .csv, .jsonl or .parquet file",
                remedy="name the file of the texts; stored vectors are for kosine compare",
            )
        kind = KINDS.get(path.suffix.lower(), "lines")
    if kind == "lines" and (text_field is not None or id_field is not None):
        raise InputError(
            "--text-field and --id-field go with records",
            limit="a .csv, .jsonl or .parquet file, or JSON lines on standard input",
            remedy="leave them out: this input is one text a line"
            if name != "-"
            else "name --text-field too: standard input is then read as JSON lines",
        )
    return Input(name, kind, TEXT_FIELD if text_field is None else text_field, id_field)


def pyarrow(name: str) -> Any:
    """A module of the optional package pyarrow.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            "Parquet needs the package pyarrow, which is not installed",
            remedy="pip install 'kosine[parquet]'",
        ) from error


def _open(source: Input) -> BinaryIO:
    return sys.stdin.buffer if source.name == "-" else Path(source.name).open("rb")


def _numbered_lines(source: Input) -> Iterator[tuple[int, bytes]]:
    with _open(source) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                line = line.removeprefix(codecs.BOM_UTF8)
                if not line:  # the mark is all there is
                    return
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _lines(source: Input) -> Iterator[Record]:
    for number, line in _numbered_lines(source):
        try:
            yield Record(number, line.decode())
        except UnicodeDecodeError as error:
            yield Record(number, "", problem=_not_utf8(line, error))


def _not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})"


def _jsonl(source: Input) -> Iterator[Record]:
    for number, line in _numbered_lines(source):
        if not line or line.isspace():
            continue
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield Record(number, "", problem=_not_utf8(line, error))
            continue
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield _record(source, number, value.get(source.text_field), value)
        else:
            yield Record(number, "", problem="is no JSON object")


def _csv(source: Input) -> Iterator[Record]:
    csv.field_size_limit(MAX_CELL)
    with Path(source.name).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # strict: a quote that is never closed is an error, not one text of all that follows.
        rows, whole = csv.reader(file, strict=True), 0
        try:
            header = next((row for row in rows if row), [])
            whole = rows.line_num
            _check_fields(source, header, "its first line names the columns")
            for row in rows:
                whole = rows.line_num
                if not row:
                    continue
                cells = dict(zip(header, row, strict=False))
                text = cells.get(source.text_field)
                if text is not None and any("\udc80" <= c <= "\udcff" for c in text):
                    yield Record(rows.line_num, "", problem="is not UTF-8")
                else:
                    yield _record(source, rows.line_num, text, cells)
        except csv.Error as error:
            raise InputError(
                f"{source.title} is not readable as CSV after line {whole}: {error}",
                limit=f"cells of at most {MAX_CELL} characters",
                remedy="look for a quote that is never closed, or write the file as JSON lines",
            ) from None


def _parquet(source: Input) -> Iterator[Record]:
    arrow, file = pyarrow("pyarrow"), _parquet_file(source)
    schema = file.schema_arrow
    _check_fields(source, schema.names, f"its columns are {', '.join(schema.names)}")
    fields = [source.text_field] + ([] if source.id_field is None else [source.id_field])
    for field in fields:
        kind = schema.field(field).type
        kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
        allowed = arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
        if not allowed and not (field == source.id_field and arrow.types.is_integer(kind)):
            raise InputError(
                f"column {field!r} of {source.title} is of type {kind}",
                limit="strings (ids: whole numbers too)",
                remedy="name another column, or cast this one",
            )
    number = 0
    try:
        for batch in file.iter_batches(batch_size=BATCH, columns=list(dict.fromkeys(fields))):
            columns = batch.to_pydict()
            for i in range(batch.num_rows):
                number += 1
                values = {field: columns[field][i] for field in fields}
                yield _record(source, number, values[source.text_field], values)
    except (arrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _not_parquet(source, error) from None
    finally:
        file.close()


def _parquet_file(source: Input) -> Any:
    arrow = pyarrow("pyarrow")
    try:
        return pyarrow("pyarrow.parquet").ParquetFile(source.name)
    except (arrow.ArrowException, OSError) as error:
        raise _not_parquet(source, error) from None


def _not_parquet(source: Input, error: Exception) -> InputError:
    what = "holds strings that are not UTF-8" if isinstance(error, UnicodeDecodeError) else error
    return InputError(
        f"{source.title} is not readable as Parquet: {what}", remedy="write the file again"
    )


def _check_fields(source: Input, there: list[str], limit: str) -> None:
    for field, option in ((source.text_field, "--text-field"), (source.id_field, "--id-field")):
        if field is not None and field not in there:
            raise InputError(
                f"{source.title} has no column {field!r}", limit=limit, remedy=f"name it: {option}"
            )


def _record(source: Input, number: int, text: Any, values: dict[str, Any]) -> Record:
    """A record of fields, once it is clear that they are a text and an id."""
    key = None if source.id_field is None else values.get(source.id_field)
    if source.id_field is not None and not _is_id(key):
        problem = f"has no id in {source.id_field!r} (a string or a whole number of 64 bits)"
        return Record(number, "", None, problem)
    if not isinstance(text, str):
        return Record(number, "", key, f"has no text in {source.text_field!r}")
    return Record(number, text, key)


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
