"""What counts as texts: a str, or anything that gives strs one by one; and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kosine.errors import TextError

__all__ = ["as_str", "as_texts", "check_characters", "check_text"]

# Tables and mappings would give their column names or keys, which are strs too. pandas, pyarrow,
# polars, datasets, Spark and xarray say so in one of these attributes of the class; nothing of
# theirs is imported. (A Series has keys as well, but gives its values.)
TABLE_ATTRIBUTES = ("__dataframe__", "columns", "column_names")
MISSING_TYPES = ("NAType", "NaTType", "MaskedConstant")


def as_texts(value: Any, what: str = "sentences") -> tuple[Iterable[str], bool, int | None]:
    """Read what a caller passed as one text or many. No text is looked at yet.

    Args:
        value: A str; or a list, an array, a Series, an Arrow column, a generator, ...
        what: What errors call it.

    Returns:
        (the texts, to be gone through once; whether it was one text alone; how many, where
        that is known). Each is still to go through `check_text`.

    Raises:
        TextError: A mapping, a table, bytes, a missing value, or no iterable at all.
    """
    if type(value) is list:  # as most are: nothing below holds for it
        return value, False, len(value)
    value = _plain(value)
    if isinstance(value, str):
        return [value], True, 1
    kind = type(value).__name__
    if isinstance(value, Mapping):
        raise _no_texts(f"{what} is a {kind}: its keys are no texts", "pass list(it.values())")
    if any(hasattr(type(value), name) for name in TABLE_ATTRIBUTES):
        raise _no_texts(f"{what} is a {kind}: a table of columns", "pass one column of it")
    if isinstance(value, bytes | bytearray | memoryview):
        raise _no_texts(f"{what} is a {kind}", "decode it first")
    if _is_missing(value):
        raise _no_texts(f"{what} is missing ({value})", "pass a list of texts")
    try:
        texts = iter(value)
    except TypeError:
        raise _no_texts(f"{what} is a {kind}", "pass a list of texts") from None
    try:
        return texts, False, len(value)
    except TypeError:
        return texts, False, None


def check_text(text: Any, index: int) -> str:
    """A text as a str. `index` is its position, for errors.

    Raises:
        TextError: See `as_str` and `check_characters`.
    """
    checked = as_str(text, f"text {index}")
    check_characters(checked, index)
    return checked


def as_str(text: Any, name: str) -> str:
    """A str, or what an Arrow scalar holds; `name` is what errors call it.

    Raises:
        TextError: A missing value (None, NaN, NA, NaT), bytes, or anything else.
    """
    if isinstance(text, str):
        return text
    text = _plain(text)
    if isinstance(text, str):
        return text
    if _is_missing(text):
        raise TextError(
            f"{name} is missing ({text})",
            limit="every text must be a str",
            remedy="leave it out, or pass '' for a blank text",
        )
    raise TextError(
        f"{name} is a {type(text).__name__}",
        limit="every text must be a str",
        remedy="pass str, or decode bytes first",
    )


def check_characters(text: str, index: int | str) -> int:
    """The bytes of a text in UTF-8. `index` is its position, for errors, or what it is called.

    Raises:
        TextError: A lone surrogate or a NUL.
    """
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise TextError(
            f"{_name(index)} has a lone surrogate U+{ord(text[error.start]):04X} "
            f"at character {error.start}",
            limit="texts must be valid Unicode",
            remedy="decode the source as UTF-8 with errors='replace'",
        ) from None
    if "\0" in text:
        raise TextError(
            f"{_name(index)} has a NUL character at {text.index(chr(0))}",
            limit="texts must not hold U+0000",
            remedy="remove it: it usually means that bytes were decoded wrongly",
        )
    return size


def _name(index: int | str) -> str:
    return index if isinstance(index, str) else f"text {index}"


def _plain(value: Any) -> Any:
    """The Python value that an Arrow scalar stands for; anything else as it is."""
    if isinstance(value, str):
        return value
    as_py = getattr(type(value), "as_py", None)
    return value if as_py is None else as_py(value)


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in MISSING_TYPES:
        return True
    return isinstance(value, float | np.floating | np.datetime64) and bool(value != value)


def _no_texts(problem: str, remedy: str) -> TextError:
    return TextError(problem, limit="a str or an iterable of str", remedy=remedy)
