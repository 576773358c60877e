"""What is read as texts, and what is refused by name: mappings, tables, bytes, missing values."""

from __future__ import annotations

import collections
import types

import numpy as np
import pytest

from kosine.errors import TextError
from kosine.texts import as_texts, check_characters, check_text


def read(value) -> tuple[list[str], bool, int | None]:
    texts, single, total = as_texts(value)
    return [check_text(text, i) for i, text in enumerate(texts)], single, total


def refusal(value) -> str:
    with pytest.raises(TextError) as caught:
        read(value)
    assert caught.value.limit
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("가", (["가"], True, 1)),
        ("", ([""], True, 1)),
        (np.str_("가"), (["가"], True, 1)),
        (["a", "b"], (["a", "b"], False, 2)),
        (("a", "b"), (["a", "b"], False, 2)),
        ([], ([], False, 0)),
        (np.array(["a", "b"]), (["a", "b"], False, 2)),
        (np.array(["a", "b"], object), (["a", "b"], False, 2)),
        (np.array([], str), ([], False, 0)),
        ((text for text in "ab"), (["a", "b"], False, None)),
        (map(str, [1, 2]), (["1", "2"], False, None)),
        (iter(["a"]), (["a"], False, None)),
        ({1: "a", 2: "b"}.values(), (["a", "b"], False, 2)),
        ({"a": 1, "b": 2}.keys(), (["a", "b"], False, 2)),
        (collections.deque(["a"]), (["a"], False, 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_texts(value, found):
    assert read(value) == found


class Frame:
    """As pandas', polars' and xarray's tables look from outside; a test below asks theirs."""

    columns = ("text",)

    def __iter__(self):
        return iter(self.columns)


class Stored(Frame):
    columns = None
    column_names = ("text",)

    def __iter__(self):
        return iter(self.column_names)


class Interchanged:
    def __dataframe__(self):
        raise AssertionError("nothing is asked of it")

    def __iter__(self):
        return iter(["text"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": "x"}, "sentences is a dict: its keys are no texts; a str or an iterable of str; "),
        (collections.UserDict(a="x"), "sentences is a UserDict: its keys"),
        (collections.ChainMap({"a": "x"}), "sentences is a ChainMap: its keys"),
        (types.MappingProxyType({"a": "x"}), "sentences is a mappingproxy: its keys"),
        (Frame(), "sentences is a Frame: a table of columns; a str or an iterable of str; pass "),
        (Stored(), "sentences is a Stored: a table of columns"),
        (Interchanged(), "sentences is a Interchanged: a table of columns"),
        (b"a", "sentences is a bytes; a str or an iterable of str; decode it first"),
        (bytearray(b"a"), "sentences is a bytearray"),
        (memoryview(b"a"), "sentences is a memoryview"),
        (None, "sentences is missing (None); a str or an iterable of str; pass a list"),
        (float("nan"), "sentences is missing (nan)"),
        (7, "sentences is a int; a str or an iterable of str; pass a list of texts"),
        (np.array("a"), "sentences is a ndarray"),
        (["a", b"b"], "text 1 is a bytes; every text must be a str; pass str, or decode bytes"),
        (np.array([b"a"]), "text 0 is a bytes_"),
        (["a", None], "text 1 is missing (None); every text must be a str; leave it out, or"),
        (["a", "b", float("nan")], "text 2 is missing (nan)"),
        (np.array(["a", np.nan], object), "text 1 is missing (nan)"),
        ([np.float32("nan")], "text 0 is missing (nan)"),
        ([np.datetime64("NaT")], "text 0 is missing (NaT)"),
        (np.ma.array(["a", "b"], mask=[0, 1]), "text 1 is missing (--)"),
        ([1.5], "text 0 is a float"),
        ([["a", "b"]], "text 0 is a list"),
        ([{"a": "b"}], "text 0 is a dict"),
        (np.array([["a"]]), "text 0 is a ndarray"),
        ({"a": "b"}.items(), "text 0 is a tuple"),
    ],
)
def test_refused(value, message):
    assert refusal(value).startswith(message)


def test_errors_call_it_what_the_caller_does():
    with pytest.raises(TextError, match="texts is a dict"):
        as_texts({}, "texts")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab\ud800c", "text 4 has a lone surrogate U+D800 at character 2; texts must be valid"),
        ("\udfff", "text 4 has a lone surrogate U+DFFF at character 0"),
        ("a\0b", "text 4 has a NUL character at 1; texts must not hold U+0000"),
    ],
)
def test_characters_that_no_text_holds(text, message):
    with pytest.raises(TextError) as caught:
        check_text(text, 4)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["", "a", "é", "가", "🙂", "가a🙂\n"])
def test_bytes_are_counted_on_the_way(text):
    assert check_characters(text, "it") == len(text.encode())


# Other people's containers


def test_pandas():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": ["가", "나"], "n": [1, 2]})
    assert refusal(frame).startswith("sentences is a DataFrame: a table of columns; ")
    both = ["가", "나"], False, 2
    assert read(frame["text"]) == both
    assert read(frame.set_index("text").index) == both
    assert read(frame["text"].astype(object)) == both
    assert read(frame["text"].astype("category")) == both
    assert read(frame["text"].to_numpy()) == both
    assert read(pd.Series({"columns": "가", "keys": "나"})) == both  # labels are no attributes
    for dtype in ("object", "string", "str"):
        series = pd.Series(["a", None, "b"], dtype=dtype)
        assert refusal(series).startswith("text 1 is missing (")
    assert refusal(pd.Series(["a", pd.NA], dtype=object)).startswith("text 1 is missing (<NA>)")
    assert refusal(pd.Series([pd.NaT])).startswith("text 0 is missing (NaT)")
    assert refusal(pd.NA).startswith("sentences is missing (<NA>)")


def test_pyarrow():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": ["가", "나"]})
    for value in (table, table.to_batches()[0]):
        assert ": a table of columns; " in refusal(value)
    both = ["가", "나"], False, 2
    assert read(table["text"]) == both
    assert read(table["text"].combine_chunks()) == both
    assert read(table["text"].dictionary_encode()) == both
    assert read(pa.array(["가", "나"], pa.large_string())) == both
    assert read(list(table["text"])) == both
    assert read(pa.scalar("가")) == (["가"], True, 1)
    assert refusal(pa.array(["a", None])).startswith("text 1 is missing (None)")
    assert refusal(pa.array([b"a"])).startswith("text 0 is a bytes")
    assert refusal(pa.scalar(None)).startswith("sentences is missing (None)")


def test_polars():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"text": ["가", "나"]})
    for value in (frame, frame.lazy()):
        assert ": a table of columns; " in refusal(value)
    assert read(frame["text"]) == (["가", "나"], False, 2)
    assert refusal(pl.Series(["a", None])).startswith("text 1 is missing (None)")


def test_datasets():
    datasets = pytest.importorskip("datasets")
    table = datasets.table.InMemoryTable.from_pydict({"text": ["가", "나"]})
    stored = datasets.Dataset(table, fingerprint="none")
    streamed = stored.to_iterable_dataset()
    for value in (stored, streamed):
        assert ": a table of columns; " in refusal(value)
    assert refusal(datasets.DatasetDict(train=stored)).startswith("sentences is a DatasetDict: its")
    assert read(stored["text"]) == (["가", "나"], False, 2)
    assert read(stored[:]["text"]) == (["가", "나"], False, 2)
    assert read(streamed["text"]) == (["가", "나"], False, None)
