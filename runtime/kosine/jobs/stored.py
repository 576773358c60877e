"""Vectors that `kosine embed` wrote to a file earlier, read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kosine.errors import InputError
from kosine.jobs.inputs import pyarrow
from kosine.jobs.outputs import SUFFIXES

__all__ = ["Stored", "read_stored"]


class Stored(NamedTuple):
    """Attributes:
    vectors: (n, d) finite floats.
    fingerprint: Of what made them; None where the file does not tell.
    """

    vectors: NDArray[Any]
    fingerprint: str | None


def read_stored(path: Path) -> Stored | None:
    """What is in a .npy, .jsonl or .parquet file; None for any other path.

    Raises:
        InputError: No such file, no floats, or a row without a vector.
        MissingExtra: Parquet without pyarrow.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES or path.is_dir():
        return None
    if not path.exists():
        raise InputError(f"no file {str(path)!r}", remedy="name a file of vectors, or a bundle")
    try:
        stored = {".npy": _npy, ".jsonl": _json_lines, ".parquet": _parquet}[kind](path)
    except InputError:
        raise
    except (ValueError, EOFError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise _no_vectors(path, "no vectors that can be read") from error
    vectors = stored.vectors
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.shape[1]:
        raise _no_vectors(path, f"{vectors.dtype} of shape {vectors.shape}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InputError(
            f"row {int(np.argmin(finite))} of {str(path)!r}, counted from 0, is not finite",
            limit="a vector for every text",
            remedy="leave those texts out of both files",
        )
    return stored


def _npy(path: Path) -> Stored:
    return Stored(np.load(path, mmap_mode="r", allow_pickle=False), None)


def _json_lines(path: Path) -> Stored:
    rows = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            vector = json.loads(line)["vector"]
            rows.append(None if vector is None else np.array(vector))
    like = next((row for row in rows if row is not None), np.empty(0))
    dtype = np.dtype(np.float32) if like.dtype.kind == "f" else like.dtype
    missing = np.full(like.shape, np.nan, np.float32)  # what embed could not encode
    vectors = np.stack([missing if row is None else row.astype(dtype) for row in rows])
    return Stored(vectors, None)


def _parquet(path: Path) -> Stored:
    table = pyarrow("pyarrow.parquet").read_table(path, columns=["vector"])
    column = table["vector"].combine_chunks()
    width = column.type.list_size
    numbers = np.dtype(column.type.value_type.to_pandas_dtype())
    if numbers.kind != "f":
        raise _no_vectors(path, f"vectors of {numbers}")
    flat = column.values.to_numpy(zero_copy_only=False)  # null becomes NaN
    fingerprint = (table.schema.metadata or {}).get(b"kosine.fingerprint")
    return Stored(flat.reshape(-1, width), None if fingerprint is None else fingerprint.decode())


def _no_vectors(path: Path, what: str) -> InputError:
    return InputError(
        f"{str(path)!r} holds {what}",
        limit="(n, d) floats in a .npy, .jsonl or .parquet file",
        remedy="name what kosine embed wrote with --precision float32",
    )
