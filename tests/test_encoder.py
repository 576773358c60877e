"""The encoder's surface: what goes in, what comes out, in which order, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import kosine
from hostile import edit_manifest, small_bundle
from kosine import Encoder, Pooled
from kosine.bundle import Bundle
from kosine.encoder import WINDOW
from kosine.errors import (
    BackendUnavailable,
    InputError,
    MissingTarget,
    NonFiniteVector,
    TextError,
    TextTooLong,
    UnknownOption,
    UnknownPrompt,
)
from kosine.quantization import BITS, INTEGERS, PRECISIONS, dequantize, quantize
from native_machine import needs_native

TEXTS = [
    "한 남자가 기타를 치고 있다.",
    "",
    "비행기가 이륙하고 있다. " * 30,
    "고양이",
    "남자가 악기를 연주하고 있다.",
]
SECRET = "주민등록번호구백구십구"


class Stub:
    """A backend whose vectors tell the token ids apart; it can be told to fail."""

    name, dtype, device, dim = "stub", "float32", "cpu", 4
    threads, batch_tokens = 1, 2048

    def __init__(self, bad=lambda _: False):
        self.bad = bad
        self.batches = []

    def run(self, batch):
        self.batches.append(batch.lengths.tolist())
        sentences = [batch.take([i]).ids.tolist() for i in range(len(batch))]
        rows = [np.nan * np.ones(4) if self.bad(s) else self.row(s) for s in sentences]
        rows = np.array(rows, np.float32)
        norms = np.sqrt(np.square(rows).sum(axis=1))
        return Pooled(rows / norms[:, None], norms)

    @staticmethod
    def row(sentence):
        return [len(sentence), sentence[1], sum(sentence), 1 + hash(tuple(sentence)) % 97]


@pytest.fixture
def small(tmp_path):
    """Encoders on the small bundle and a stub: prompts "query" and "passage"."""

    def make(backend=None, manifest=None, normalize=False, **options):
        path = tmp_path / f"b{len(list(tmp_path.iterdir()))}.kosine"
        small_bundle(path)
        prompts = {"query": "가 ", "passage": "나 ", "corpus": "다 ", "empty": ""}
        edit_manifest(path, lambda value: value.update({"prompts": prompts, **(manifest or {})}))
        edit_manifest(path, lambda value: value["spec"].update(normalize=normalize))
        return Encoder(Bundle(path), backend or Stub(), **options)

    return make


@pytest.fixture(autouse=True)
def nothing_was_said_before(monkeypatch):
    monkeypatch.setattr("kosine.counting._told_of_unknown", {})


def close(a, b, atol=2e-6):
    np.testing.assert_allclose(a, b, atol=atol)


# Forms of input


def test_on_a_gpu_windows_are_tokenised_ahead_and_nothing_else_changes(small):
    texts = [f"{TEXTS[i % 5]} {i}" for i in range(2 * WINDOW + 7)]
    here, ahead = Stub(), Stub()
    ahead.device = "cuda:0"
    found = [small(backend).encode(texts) for backend in (here, ahead)]
    np.testing.assert_array_equal(*found)
    assert here.batches == ahead.batches
    texts[WINDOW + 5] = None
    for backend in (here, ahead):
        with pytest.raises(TextError, match=rf"{WINDOW + 5}\b"):
            small(backend).encode(texts)


def test_a_str_gives_one_dimension(sample):
    vector = sample.encode(TEXTS[0])
    assert vector.shape == (sample.dim,)
    assert vector.dtype == np.float32
    close(vector, sample.encode([TEXTS[0]])[0])


def test_any_iterable_of_str_gives_rows_in_its_order(sample):
    rows = sample.encode(TEXTS)
    assert rows.shape == (len(TEXTS), sample.dim)
    assert np.abs(np.linalg.norm(np.float64(rows), axis=1) - 1).max() <= 1e-6
    for form in (
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        (text for text in TEXTS),
        dict(enumerate(TEXTS)).values(),
    ):
        close(sample.encode(form), rows)
    alone = np.stack([sample.encode(text) for text in TEXTS])
    close(alone, rows)
    # The test can tell the rows apart, so it sees a wrong order.
    assert (rows @ rows.T - np.eye(len(TEXTS))).max() < 0.99


@pytest.mark.parametrize("empty", [[], (), np.array([], str), iter(())])
@pytest.mark.parametrize(
    ("options", "shape", "dtype"),
    [
        ({}, (0, 256), np.float32),
        ({"truncate_dim": 10}, (0, 10), np.float32),
        ({"precision": "int8"}, (0, 256), np.int8),
        ({"precision": "ubinary", "truncate_dim": 12}, (0, 2), np.uint8),
    ],
)
def test_nothing_gives_no_rows(sample, empty, options, shape, dtype):
    found = sample.encode(empty, **options)
    assert found.shape == shape
    assert found.dtype == dtype


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "sentences is missing (None); a str or an iterable of str; pass a list"),
        ({"a": "b"}, "sentences is a dict: its keys are no texts; a str or an iterable of str; "),
        (7, "sentences is a int"),
        (np.array("x"), "sentences is a ndarray"),
        (b"bytes", "sentences is a bytes; a str or an iterable of str; decode it first"),
        (["a", None], "text 1 is missing (None)"),
        (["a"] * (WINDOW + 3) + [np.nan], f"text {WINDOW + 3} is missing (nan)"),
        (["a", b"b"], "text 1 is a bytes"),
        ([["a", "b"]], "text 0 is a list"),
        (np.array([["a"]]), "text 0 is a ndarray"),
        (["a"] * (WINDOW + 3) + [1], f"text {WINDOW + 3} is a int"),
        (
            ["a", f"{SECRET}\ud83d"],
            f"text 1 has a lone surrogate U+D83D at character {len(SECRET)}",
        ),
        ([f"{SECRET}\0"], f"text 0 has a NUL character at {len(SECRET)}"),
        ([SECRET * 20_000], "text 0 has 220000 characters, and no word of its first 262144 bytes"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(small, bad, message):
    with pytest.raises(TextError) as caught:
        small().encode(bad)
    assert str(caught.value).startswith(message)
    assert caught.value.limit
    assert caught.value.remedy
    assert SECRET not in str(caught.value)


def test_a_larger_cap_may_be_asked_for(sample_bundle):
    encoder = kosine.load(sample_bundle, max_text_bytes=20)
    assert encoder.encode(["가" * 6]).shape == (1, 256)
    with pytest.raises(TextError, match=r"has 7 characters, .* at most 20 bytes are tokenised"):
        encoder.encode(["가" * 7])


def test_texts_over_the_cap_are_cut_like_other_long_ones(sample):
    long = "비행기가 이륙하고 있다. " * 40
    longer = long * 500
    assert len(longer.encode()) > 600_000
    close(sample.encode([longer, "고양이"]), sample.encode([long, "고양이"]))
    before = sample.counts()["truncated_texts"]
    sample.encode(longer)
    assert sample.counts()["truncated_texts"] == before + 1
    with pytest.raises(TextTooLong, match="text 1 has 280000 characters"):
        sample.encode(["고양이", longer], truncate=False)
    with pytest.raises(TextError, match="text 0 has 280000 characters"):
        sample.count_tokens(longer)


def test_every_door_reads_texts_alike(sample):
    for call in (sample.encode, sample.encode_query, sample.prepare, sample.count_tokens):
        for bad in ({"a": "b"}, b"a", None, [None]):
            with pytest.raises(TextError):
                call(bad)
    assert sample.prepare("고양이").batch.ids.tolist() == (
        sample.prepare(iter(["고양이"])).batch.ids.tolist()
    )
    assert sample.count_tokens(iter(["고양이"])) == [sample.count_tokens("고양이")]


def test_a_series_has_a_total_in_the_progress_bar(sample, monkeypatch):
    pd = pytest.importorskip("pandas")
    totals = []

    @contextlib.contextmanager
    def bar(total, _show, _long):
        totals.append(total)
        yield None

    monkeypatch.setattr("kosine.encoder.progress_bar", bar)
    frame = pd.DataFrame({"text": TEXTS})
    close(sample.encode(frame["text"]), sample.encode(np.array(TEXTS)))
    sample.encode(text for text in TEXTS)
    sample.encode("고양이")
    assert totals == [len(TEXTS), len(TEXTS), None, 1]
    with pytest.raises(TextError, match="sentences is a DataFrame: a table of columns"):
        sample.encode(frame)


def test_arrow_columns_are_texts(sample):
    pa = pytest.importorskip("pyarrow")
    close(sample.encode(pa.table({"text": TEXTS})["text"]), sample.encode(TEXTS))
    close(sample.encode(pa.scalar(TEXTS[0])), sample.encode(TEXTS[0]))


# Prompts


def ids_of(encoder, *args, role="encode", **options):
    """The token ids that the stub saw last."""
    seen = []
    backend = encoder.backend
    run = backend.run
    backend.run = lambda batch: seen.append(batch.ids.tolist()) or run(batch)
    try:
        getattr(encoder, role)(*args, **options)
    finally:
        backend.run = run
    return seen[-1]


QUERY, PASSAGE, CORPUS = 4, 5, 6


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, [0, 6, 2]),
        ({"prompt_name": "query"}, [0, QUERY, 6, 2]),
        ({"prompt_name": "empty"}, [0, 6, 2]),
        ({"prompt": "나 "}, [0, 5, 6, 2]),
        ({"prompt": ""}, [0, 6, 2]),
        ({"prompt": "나 ", "prompt_name": "query"}, [0, 5, 6, 2]),  # the text beats the name
        ({"prompt": "", "prompt_name": "query"}, [0, 6, 2]),
    ],
)
def test_prompts(small, options, ids):
    encoder = small()
    assert ids_of(encoder, ["다"], **options) == ids
    assert ids_of(encoder, "다", **options) == ids
    batch = encoder.prepare(["다"], **options).batch
    assert batch.ids.tolist() == ids
    assert encoder.count_tokens("다", **options) == len(ids)


def test_the_default_prompt(small):
    encoder = small(manifest={"default_prompt_name": "query"})
    assert ids_of(encoder, ["다"]) == [0, QUERY, 6, 2]
    assert ids_of(encoder, ["다"], prompt_name="passage") == [0, PASSAGE, 6, 2]
    assert ids_of(encoder, ["다"], prompt="") == [0, 6, 2]
    assert encoder.count_tokens("다") == 4
    without = small(manifest={"prompts": {"x": "나 "}, "default_prompt_name": "x"})
    for role in ("encode_query", "encode_document"):
        assert ids_of(without, ["다"], role=role) == [0, PASSAGE, 6, 2]


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"query": "가 ", "document": "나 ", "passage": "다 "}, [0, 4, 6, 2], [0, 5, 6, 2]),
        ({"passage": "나 ", "corpus": "다 "}, [0, 6, 2], [0, 5, 6, 2]),
        ({"corpus": "나 "}, [0, 6, 2], [0, 5, 6, 2]),
        ({"document": "", "passage": "나 "}, [0, 6, 2], [0, 6, 2]),
        ({}, [0, 6, 2], [0, 6, 2]),
    ],
)
def test_roles_take_the_prompts_that_there_are(small, prompts, query, document):
    encoder = small(manifest={"prompts": prompts})
    seen = []
    run = encoder.backend.run
    encoder.backend.run = lambda batch: seen.append(batch.ids.tolist()) or run(batch)
    encoder.encode_query(["다"])
    encoder.encode_document("다")
    encoder.encode_query(["다"], prompt="나 ")
    encoder.encode_document(["다"], prompt="")
    assert seen == [query, document, [0, 5, 6, 2], [0, 6, 2]]
    assert encoder.encode_query("다", truncate_dim=2).shape == (2,)


@pytest.mark.parametrize("name", ["querry", "", 7, ["query"], ("query",)])
def test_an_unknown_prompt_name_lists_the_known(small, name):
    encoder = small()
    for call in (encoder.encode, encoder.encode_query, encoder.count_tokens, encoder.prepare):
        with pytest.raises(UnknownPrompt) as caught:
            call(["다"], prompt_name=name)
        assert repr(name) in caught.value.problem
        assert "'query', 'passage', 'corpus', 'empty'" in caught.value.limit
        assert "--prompt NAME=TEXT" in caught.value.remedy
    with pytest.raises(UnknownPrompt, match="the bundle has: none"):
        small(manifest={"prompts": {}}).encode(["다"], prompt_name="query")


def test_a_prompt_is_a_str(small):
    with pytest.raises(InputError, match="prompt is a list; a str"):
        small().encode(["다"], prompt=["query: "])


# Output


@pytest.mark.parametrize("dim", [1, 7, 64, 255, 256])
def test_truncate_then_normalise(sample, dim):
    whole = np.float64(sample.encode(TEXTS))
    found = sample.encode(TEXTS, truncate_dim=dim)
    cut = whole[:, :dim]
    close(found, cut / np.linalg.norm(cut, axis=1, keepdims=True))
    assert found.shape == (len(TEXTS), dim)
    assert found.flags.c_contiguous
    assert np.abs(np.linalg.norm(np.float64(found), axis=1) - 1).max() <= 1e-6


@pytest.mark.parametrize("dim", [0, -1, 257, np.int64(0), True, np.True_, 2.0, "2"])
def test_truncate_dim_has_limits(sample, dim):
    with pytest.raises(InputError, match=re.escape(f"truncate_dim is {dim!r}; 1 to 256")):
        sample.encode(TEXTS, truncate_dim=dim)


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16])
def test_whole_numbers_may_be_numpys(sample, kind):
    expected = sample.encode(TEXTS, truncate_dim=7, batch_size=2)
    np.testing.assert_array_equal(
        sample.encode(TEXTS, truncate_dim=kind(7), batch_size=kind(2)), expected
    )


def test_lengths_can_be_had_back(sample):
    unit = sample.encode(TEXTS)
    plain = sample.encode(TEXTS, normalize_embeddings=False)
    norms = np.linalg.norm(plain, axis=1, keepdims=True)
    assert norms.min() > 1.2
    np.testing.assert_allclose(plain / norms, unit, atol=1e-6)
    cut = sample.encode(TEXTS, normalize_embeddings=False, truncate_dim=9)
    np.testing.assert_allclose(cut, plain[:, :9], rtol=1e-6)


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("sentence_transformers")
    from conftest import SAMPLE
    from factories import referee

    return referee(SAMPLE)


@pytest.mark.parametrize(
    "options",
    [
        {"normalize_embeddings": True},
        {"normalize_embeddings": False},
        {"normalize_embeddings": True, "truncate_dim": 100},
        {"normalize_embeddings": False, "truncate_dim": 100},
        {"normalize_embeddings": True, "prompt": "질문: "},
    ],
    ids=str,
)
def test_it_is_what_sentence_transformers_gives(sample, theirs, options):
    expected = np.stack([theirs.encode(text, show_progress_bar=False, **options) for text in TEXTS])
    np.testing.assert_allclose(sample.encode(TEXTS, **options), expected, rtol=1e-4, atol=2e-5)


def test_a_checkpoint_that_normalises_has_no_other_length(small):
    encoder = small(normalize=True)
    unit = encoder.encode(["가", "나 다"])
    np.testing.assert_array_equal(encoder.encode(["가", "나 다"], normalize_embeddings=False), unit)
    cut = encoder.encode(["가", "나 다"], normalize_embeddings=False, truncate_dim=2)
    np.testing.assert_array_equal(cut, unit[:, :2])
    again = encoder.encode(["가", "나 다"], truncate_dim=2)
    close(np.linalg.norm(again, axis=1), 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(sample, precision):
    whole = sample.encode(TEXTS)
    found = sample.encode(TEXTS, precision=precision)
    ranges = sample.manifest.ranges
    np.testing.assert_array_equal(found, quantize(whole, precision, ranges))
    assert sample.encode(TEXTS[0], precision=precision).shape == found.shape[1:]
    alone = np.concatenate([sample.encode([text], precision=precision) for text in TEXTS])
    if precision == "float32":
        return
    # Rounding may tip over where a batch differs in the last bit; ranges of the batch would
    # change nearly everything.
    assert (alone != found).mean() < 0.005


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_given_ranges_are_used_as_sentence_transformers_uses_them(sample, precision):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.util.quantization import quantize_embeddings

    whole = sample.encode(TEXTS, truncate_dim=32)
    ranges = np.stack([whole.min(axis=0) - 0.1, whole.max(axis=0)])
    expected = quantize_embeddings(whole, precision, ranges=ranges)
    found = sample.encode(TEXTS, truncate_dim=32, precision=precision, ranges=ranges)
    np.testing.assert_array_equal(found, expected)
    as_mapping = {"min": ranges[0], "max": ranges[1]}
    again = sample.encode(TEXTS, truncate_dim=32, precision=precision, ranges=as_mapping)
    np.testing.assert_array_equal(again, expected)


def test_the_bundles_ranges_fit_its_vectors(sample):
    """Not clipped, and not a few steps wide: 12 deviations in 256 steps make 21 of one."""
    for dim in (None, 64):
        texts = ["오늘 서울의 낮 기온은 12도입니다.", "계약을 해지할 수 있나요?", *TEXTS[3:]]
        values = sample.encode(texts, precision="uint8", truncate_dim=dim).astype(int)
        assert ((values == 0) | (values == 255)).mean() < 0.001
        assert 17 < values.std() < 25


def test_integers_of_lengths_need_ranges(sample, small):
    with pytest.raises(InputError, match="needs ranges, and the bundle has none"):
        sample.encode(TEXTS, precision="int8", normalize_embeddings=False)
    normalised = small(normalize=True)
    options = {"precision": "int8", "normalize_embeddings": False}
    assert normalised.encode(["가"], **options).shape == (1, 4)  # of length 1 all the same
    with pytest.raises(InputError, match="needs ranges, and the bundle has none"):
        normalised.encode(["가"], truncate_dim=2, **options)


def test_ranges_of_whole_vectors_serve_truncated_ones(sample):
    for dim in (8, 64):
        options = {"precision": "int8", "truncate_dim": dim}
        found = sample.encode(TEXTS, **options)
        given = sample.encode(TEXTS, ranges=sample.manifest.ranges, **options)
        np.testing.assert_array_equal(given, found)
        back = dequantize(found, "int8", sample.manifest.ranges)
        close(back, sample.encode(TEXTS, truncate_dim=dim), atol=0.02)


def test_ranges_that_are_too_short(sample):
    ranges = {end: values[:8] for end, values in sample.manifest.ranges.items()}
    with pytest.raises(InputError, match=r"ranges of shapes \(8,\) .* for 256 dimensions"):
        sample.encode(TEXTS, precision="int8", ranges=ranges)


@pytest.mark.parametrize("precision", INTEGERS)
def test_clipping_is_counted_and_told_once(small, caplog, precision):
    encoder = small()
    narrow = {"min": [-0.01] * 4, "max": [0.01] * 4}
    wide = {"min": [-1.0] * 4, "max": [1.0] * 4}
    unit = encoder.encode(["가", "나"])
    outside = int((np.abs(unit) > 0.01).sum())
    with caplog.at_level(logging.WARNING, "kosine"):
        encoder.encode(["가", "나"] * 200, precision=precision, ranges=wide)
        encoder.encode("가", precision="ubinary")
        assert encoder.counts()["integer_components"] == 4 * 400
        assert encoder.counts()["clipped_components"] == 0
        assert not caplog.records
        for _ in range(3):
            encoder.encode(["가", "나"] * 10, precision=precision, ranges=narrow)
    assert encoder.counts()["clipped_components"] == 30 * outside
    assert encoder.counts()["integer_components"] == 4 * 460
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{10 * outside} of {4 * 420} integer components lie outside")
    assert "--calibrate" in message


def test_a_bundle_without_ranges_says_so(small):
    encoder = small(manifest={"ranges": None})
    with pytest.raises(InputError, match="the bundle has none"):
        encoder.encode([], precision="int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4'; known: float32, int8"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"precision": ""}, "unknown precision ''"),
        ({"precision": 0}, "unknown precision 0"),
        ({"batch_size": 0}, "batch_size is 0; at least 1"),
        ({"batch_size": -5}, "batch_size is -5"),
        ({"batch_size": True}, "batch_size is True; at least 1"),
        ({"batch_size": 2.0}, "batch_size is 2.0; at least 1"),
    ],
)
def test_options_are_judged_before_anything_runs(small, options, message):
    encoder = small()
    with pytest.raises(InputError) as caught:
        encoder.encode(iter(["가"]), **options)
    assert str(caught.value).startswith(message)
    assert encoder.backend.batches == []


# Batches


@pytest.mark.parametrize("batch_size", [None, 1, 2, 7, 100])
def test_batch_size_changes_the_calls_and_not_the_vectors(small, batch_size):
    encoder = small(max_batch_tokens=60)
    texts = ["가 나 다 " * n for n in range(9)] * 3
    expected = small().encode(texts)
    np.testing.assert_array_equal(encoder.encode(texts, batch_size=batch_size), expected)
    batches = encoder.backend.batches
    assert sum(map(len, batches)) == len(texts)
    assert all(sum(batch) <= 60 for batch in batches)
    if batch_size is not None:
        assert max(map(len, batches)) <= batch_size
    assert max(map(len, batches)) > 1 or batch_size == 1


def test_a_text_over_the_token_budget_goes_alone(small):
    encoder = small(max_batch_tokens=5)
    encoder.encode(["가 " * 9, "나", "다"])
    assert encoder.backend.batches == [[11], [3], [3]]


@pytest.mark.parametrize("budget", [0, -1])
def test_the_token_budget_has_a_limit(small, budget):
    with pytest.raises(InputError, match=f"max_batch_tokens is {budget}; at least 1"):
        small(max_batch_tokens=budget)


def test_generators_are_consumed_in_windows(small):
    """At most one window is read ahead of what has been encoded, and texts are let go."""
    encoder = small()
    taken = encoded = ahead = 0
    run = encoder.backend.run

    def counted(batch):
        nonlocal encoded
        pooled = run(batch)
        encoded += len(batch)
        return pooled

    encoder.backend.run = counted

    class Text(str):
        __slots__ = ("__weakref__",)
        alive = 0

        def __new__(cls, value):
            cls.alive += 1
            return super().__new__(cls, value)

        def __del__(self):
            type(self).alive -= 1

    most_alive = 0

    def texts():
        nonlocal taken, ahead, most_alive
        for i in range(10_000):
            taken += 1
            ahead = max(ahead, taken - encoded)
            most_alive = max(most_alive, Text.alive)
            yield Text("가 " * (i % 5))

    vectors = encoder.encode(texts())
    gc.collect()
    assert vectors.shape == (10_000, 4)
    assert taken == encoded == 10_000
    assert ahead <= WINDOW
    assert most_alive <= 2 * WINDOW
    expected = [encoder.encode("가 " * n) for n in range(5)]
    np.testing.assert_array_equal(vectors, np.tile(expected, (2000, 1)))


def test_a_generator_that_fails_fails_the_call(small):
    def texts():
        yield "가"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        small().encode(texts())


# Counting and reporting


def test_count_tokens(sample):
    assert sample.count_tokens("") == 2
    counts = sample.count_tokens(TEXTS)
    assert counts == [sample.count_tokens(text) for text in TEXTS]
    assert counts[2] > sample.max_tokens  # before truncation
    assert sample.count_tokens("고양이", prompt="개 ") > sample.count_tokens("고양이")
    assert sample.count_tokens([]) == []


def test_counts_add_up_over_calls(small):
    encoder = small()
    assert encoder.counts() == dict.fromkeys(
        (
            "texts",
            "tokens",
            "truncated_texts",
            "unknown_tokens",
            "integer_components",
            "clipped_components",
        ),
        0,
    )
    encoder.encode(["가", "라 라", "가 " * 50])
    encoder.encode("나")
    encoder.prepare(["다"])
    assert encoder.counts() == {
        "texts": 5,
        "tokens": 3 + 4 + 16 + 3 + 3,
        "truncated_texts": 1,
        "unknown_tokens": 2,
        "integer_components": 0,
        "clipped_components": 0,
    }
    encoder.count_tokens(["가"])
    assert encoder.counts()["texts"] == 5


def test_truncation_may_be_refused(sample):
    with pytest.raises(TextTooLong, match=r"text 2 has \d+ tokens; at most 128.*truncate=True"):
        sample.encode(TEXTS, truncate=False)
    close(sample.encode(TEXTS[:2], truncate=False), sample.encode(TEXTS[:2]))


@pytest.mark.parametrize(
    ("texts", "warned"),
    [
        (["라"], True),  # 1 of 3
        (["라 라 라 가 가 가 가"], True),  # 3 of 9
        (["가 가 라", "라"], False),  # 2 of 8
        (["라 라 라 가 가 가 가 가"], False),  # exactly 3 of 10
        (["가"] * WINDOW + ["라 라 라"] * (2 * WINDOW), True),
        ([], False),
    ],
)
def test_a_warning_for_unknown_tokens(small, caplog, texts, warned):
    with caplog.at_level(logging.DEBUG, "kosine"):
        encoder = small()
        encoder.encode(texts)
    records = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(records) == warned
    if warned:
        unknown = sum(text.count("라") for text in texts)
        assert records[0].name == "kosine"
        assert f"{unknown} of {encoder.counts()['tokens']} tokens are [UNK]" in caplog.text


def test_one_warning_a_process(small, caplog):
    """Services would say it with every request, through either door and from every thread."""
    encoders = [small(), small()]

    def many(i):
        encoders[i % 2].encode(["라 라 라"])
        encoders[i % 2].prepare(["라 라 라"])

    with caplog.at_level(logging.WARNING, "kosine"), ThreadPoolExecutor(8) as pool:
        list(pool.map(many, range(50)))
    assert caplog.text.count("tokens are [UNK]") == 1
    assert sum(encoder.counts()["unknown_tokens"] for encoder in encoders) == 50 * 2 * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_says_it_once_for_itself(small):
    encoder = small()
    encoder.encode(["라 라 라"])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # what is raised here must not run on as the test suite
        records = []
        handler = logging.Handler()
        handler.emit = records.append
        logger = logging.getLogger("kosine")
        logger.addHandler(handler)
        try:
            for _ in range(3):
                encoder.encode(["라 라 라"])
            os.write(writer, str(len(records)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"1"
    os.close(reader)
    os.close(writer)


def test_no_text_in_logs_or_errors(sample, small, caplog):
    with caplog.at_level(logging.DEBUG):
        sample.encode([f"{SECRET} " * 100, "♞ ♘ ♞ " * 500, "㊙" + SECRET + "♘♞" * 50])
        for bad in ([SECRET, SECRET + "\0"], [SECRET * 99_999], [SECRET, {SECRET}]):
            with pytest.raises(InputError) as caught:
                sample.encode(bad)
            assert SECRET not in str(caught.value)
        with pytest.raises(TextTooLong) as caught:
            sample.encode([f"{SECRET} " * 200], truncate=False)
        assert SECRET not in str(caught.value)
        with pytest.raises(NonFiniteVector) as caught:
            small(Stub(lambda _: True)).encode(["가"])
        assert "가" not in str(caught.value)
    assert "cut to 128 tokens" in caplog.text  # there were logs to look at
    assert "[UNK]" in caplog.text
    assert SECRET[:4] not in caplog.text
    assert "♘" not in caplog.text


def test_the_logger_has_no_handlers(sample):
    assert sample is not None
    assert logging.getLogger("kosine").handlers == []


# Failures of the engine


@pytest.mark.parametrize("budget", [5, 2048])
def test_rows_that_are_not_finite_are_named(small, budget):
    stub = Stub(lambda sentence: 5 in sentence)
    encoder = small(stub, max_batch_tokens=budget)
    texts = ["가", "나", "가 다", "다 나", "다"]
    with pytest.raises(NonFiniteVector, match=r"2 of 5 vectors .*\(first: 1\).*kosine verify") as e:
        encoder.encode(texts)
    assert e.value.indices == (1, 3)
    assert encoder.encode(["가", "다"]).shape == (2, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["vectors", "norms"])
def test_any_number_that_is_not_finite_counts(small, value, where):
    class Bad(Stub):
        def run(self, batch):
            pooled = super().run(batch)
            getattr(pooled, where)[..., -1] = value
            return pooled

    with pytest.raises(NonFiniteVector):
        small(Bad()).encode(["가"])


def test_what_the_engine_raises_comes_through(small):
    class Broken(Stub):
        def run(self, _batch):
            raise RuntimeError("the engine broke")

    with pytest.raises(RuntimeError, match="the engine broke"):
        small(Broken()).encode(["가"])


# Loading


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tensorflow"}, UnknownOption, "unknown backend 'tensorflow'; known: auto"),
        ({"backend": ""}, UnknownOption, "unknown backend ''"),
        ({"dtype": "float64"}, UnknownOption, "unknown dtype 'float64'; known: auto, float32"),
        ({"backend": "onnx", "dtype": "bfloat16"}, UnknownOption, "backend 'onnx' has no dtype"),
        ({"backend": "onnx", "dtype": "int8"}, UnknownOption, "backend 'onnx' has no dtype"),
        ({"backend": "onnx", "device": "cuda:x"}, BackendUnavailable, "backend 'onnx' cannot run"),
        ({"backend": "onnx", "device": "tpu"}, BackendUnavailable, "backend 'onnx' cannot run"),
        ({"backend": "onnx", "threads": 0}, UnknownOption, "threads is 0; 1 to 1024"),
        ({"backend": "onnx", "threads": -1}, UnknownOption, "threads is -1"),
    ],
)
def test_unknown_engines(sample_bundle, options, error, message):
    with pytest.raises(error) as caught:
        kosine.load(sample_bundle, **options)
    assert str(caught.value).startswith(message)
    assert caught.value.limit
    assert caught.value.remedy


def test_a_target_that_was_not_exported(tmp_path):
    with pytest.raises(MissingTarget, match=r"no fp16/packed.onnx; its targets: onnx; .*onnx-fp16"):
        kosine.load(small_bundle(tmp_path / "b"), backend="onnx", dtype="float16")


def test_a_graph_that_does_not_load_is_a_typed_error(tmp_path):
    with pytest.raises(kosine.errors.BackendError, match=r"cannot load packed\.onnx"):
        kosine.load(small_bundle(tmp_path / "b"), backend="onnx")


def test_float16_weights_stay_within_their_gate(sample, sample_bundle):
    half = kosine.load(sample_bundle, backend="onnx", dtype="float16")
    a, b = np.float64(sample.encode(TEXTS)), np.float64(half.encode(TEXTS))
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert 0.9998 <= cosines.min() < 1 - 1e-12
    assert half.fingerprint != sample.fingerprint
    assert half.backend.dtype == "float16"


def test_threads_are_what_was_asked(sample_bundle):
    one = kosine.load(sample_bundle, backend="onnx", threads=1)
    assert one.backend.threads == 1
    assert one.fingerprint == kosine.load(sample_bundle, backend="onnx", threads=2).fingerprint


def test_the_fingerprint_is_the_manifests(sample):
    assert sample.fingerprint == sample.manifest.fingerprint("onnx", "float32")


@needs_native
def test_machines_of_two_isa_levels_share_a_fingerprint(sample_bundle, monkeypatch):
    best = kosine.load(sample_bundle, backend="native", dtype="float32")
    monkeypatch.setenv("KOSINE_ISA", "avx2")
    plain = kosine.load(sample_bundle, backend="native", dtype="float32")
    assert plain.fingerprint == best.fingerprint
    close(plain.encode(TEXTS), best.encode(TEXTS), atol=1e-6)  # no more than rounding


def test_what_an_encoder_says_of_itself(sample):
    assert (sample.dim, sample.max_tokens) == (256, 128)
    assert repr(sample) == "<kosine.Encoder sample.kosine dim=256 max_tokens=128 onnx/float32>"


# Scores


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_is_the_manifests(small, similarity):
    encoder = small(manifest={"similarity": similarity})
    a, b = encoder.encode(["가", "나"]), encoder.encode(["다", "가 나", "라"])
    matrix = encoder.similarity(a, b)
    assert matrix.shape == (2, 3)
    np.testing.assert_allclose(matrix, kosine.scoring.score_matrix(a, b, similarity))
    pairs = encoder.similarity_pairwise(a, b[:2])
    np.testing.assert_allclose(pairs, np.diag(matrix), atol=1e-6)
    best = kosine.top_k(a, b, k=1, similarity=similarity)
    np.testing.assert_array_equal(best.indices[:, 0], matrix.argmax(axis=1))


SIMILAR = [TEXTS[0], TEXTS[4], TEXTS[3], "주가가 사흘 연속 하락했다."]


@pytest.mark.parametrize("dim", [None, 100, 64])
@pytest.mark.parametrize("precision", INTEGERS)
def test_integers_have_the_scores_of_float32(sample, precision, dim):
    exact, small = (sample.encode(SIMILAR, truncate_dim=dim, precision=p)
                    for p in ("float32", precision))  # fmt: skip
    scores = sample.similarity(exact, exact)
    assert scores[0, 1] > 0.5 > 0.3 > scores[0, 3]  # alike, and unrelated
    for a, b in ((small, small), (exact, small), (small, exact)):
        close(sample.similarity(a, b), scores, atol=0.01)
        close(sample.similarity_pairwise(a, b[::-1]), np.diag(scores[:, ::-1]), atol=0.01)
        found = kosine.top_k(a, b, k=4, ranges=sample.manifest.ranges)
        close(found.scores, -np.sort(-scores, axis=1), atol=0.01)


@pytest.mark.parametrize("precision", BITS)
def test_bits_have_scores_by_their_hamming_distance(sample, precision):
    exact, bits = (sample.encode(SIMILAR, precision=p) for p in ("float32", precision))
    signs = np.where(exact > 0, 1.0, -1.0)
    scores = sample.similarity(bits, bits)
    np.testing.assert_array_equal(scores, (signs @ signs.T / 256).astype(np.float32))
    assert scores[0, 1] > 0.3 > 0.15 > abs(scores[0, 3])
    np.testing.assert_array_equal(sample.similarity_pairwise(bits, bits), np.ones(4))
    close(sample.similarity(exact, bits), exact @ signs.T / 16, atol=1e-6)
    cut = sample.encode(SIMILAR, precision=precision, truncate_dim=64)
    with pytest.raises(InputError, match=f"may be of precision .*precision='{precision}'"):
        sample.similarity(cut, cut)
    signs = np.where(sample.encode(SIMILAR, truncate_dim=64) > 0, 1.0, -1.0)
    named = sample.similarity(cut, cut, precision=precision)
    np.testing.assert_array_equal(named, (signs @ signs.T / 64).astype(np.float32))


def test_scores_with_ranges_of_ones_own(sample):
    ranges = {"min": [-0.9] * 256, "max": [0.9] * 256}
    exact = sample.encode(SIMILAR)
    found = sample.encode(SIMILAR, precision="int8", ranges=ranges)
    close(sample.similarity(found, found, ranges=ranges), exact @ exact.T, atol=0.01)
    assert np.abs(sample.similarity(found, found) - exact @ exact.T).max() > 0.05  # other ranges
    pairs = sample.similarity_pairwise(found, exact, ranges=ranges)
    close(pairs, np.ones(4), atol=0.01)


def test_a_bundle_without_ranges_scores_bits_and_refuses_integers(small):
    encoder = small(manifest={"ranges": None})
    bits = encoder.encode(["가", "나"], precision="ubinary")
    np.testing.assert_array_equal(np.diag(encoder.similarity(bits, bits)), [1, 1])
    with pytest.raises(InputError, match="not scored without ranges"):
        encoder.similarity(np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8))


def test_alike_is_alike(sample):
    scores = sample.similarity(sample.encode(TEXTS[0]), sample.encode(TEXTS))
    assert scores[0, 0] == pytest.approx(1, abs=1e-6)
    assert scores[0, 4] > scores[0, 2]


# Threads


def test_eight_threads_at_once_get_what_one_gets(sample):
    """One thread inside each call, so that nothing but mixing could change a bit."""
    encoder = kosine.load(sample.bundle.path, backend="onnx", threads=1)
    words = ["강아지", "고양이", "비행기", "기차", "커피", "도서관", "대통령", "물고기"]
    inputs = [[f"{word} {n}번 " * (n % 7) for n in range(12)] for word in words]
    expected = [encoder.encode(texts) for texts in inputs]
    before = encoder.counts()["texts"]
    barrier = threading.Barrier(8)

    def work(i):
        barrier.wait()
        return [encoder.encode(inputs[i]) for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(work, range(8))):
            for vectors in found:
                np.testing.assert_array_equal(vectors, expected[i])
    assert encoder.counts()["texts"] - before == 8 * 4 * 12


def test_stages_make_up_encode(sample):
    pooled = sample.compute(sample.prepare(TEXTS).batch)
    np.testing.assert_array_equal(sample.finish(pooled), sample.encode(TEXTS))
    assert dataclasses.is_dataclass(pooled)
    none = sample.compute(sample.prepare([]).batch)
    assert none.vectors.shape == (0, 256)
