"""Texts to packed ids: the checkpoint's own ids, hard limits, and no text that does harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

from hostile import edit_manifest, rewrite, small_bundle, small_tokenizer
from kosine.bundle import Bundle
from kosine.errors import TextError, TextTooLong
from kosine.tokenizer import MAX_TEXT_BYTES, Tokenizer

CLS, SEP, UNK = 0, 2, 3


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Tokenizer:
    return Tokenizer(Bundle(small_bundle(tmp_path_factory.mktemp("t") / "b.kosine")))


@pytest.fixture(scope="module")
def real(sample_bundle) -> Tokenizer:
    return Tokenizer(Bundle(sample_bundle))


def sentences(batch) -> list[list[int]]:
    return [batch.take([i]).ids.tolist() for i in range(len(batch))]


@pytest.mark.parametrize(
    ("texts", "prompt", "ids"),
    [
        ([], "", []),
        ([""], "", [[0, 2]]),
        (["", " \t\n　"], "", [[0, 2], [0, 2]]),
        (["가"], "", [[0, 4, 2]]),
        (["가 나", "다"], "", [[0, 4, 5, 2], [0, 6, 2]]),
        (["x 가"], "", [[0, 3, 4, 2]]),
        (["나"], "가 ", [[0, 4, 5, 2]]),
        (["나"], "가", [[0, 3, 2]]),  # nothing is put between: one unknown word
        (["[SEP] 가"], "", [[0, 3, 3, 3, 4, 2]]),  # text is never markup here
        (["가 " * 13], "", [[0, *[4] * 13, 2]]),
        (["가 " * 14], "", [[0, *[4] * 14, 2]]),
        (["가 " * 14 + "나"], "", [[0, *[4] * 14, 2]]),
        (["가 " * 99], "", [[0, *[4] * 14, 2]]),
    ],
)
def test_table(small, texts, prompt, ids):
    prepared = small.tokenize(texts, prompt)
    assert sentences(prepared.batch) == ids
    assert prepared.batch.skip is None
    assert prepared.unknown == sum(sentence.count(UNK) for sentence in ids)


def test_what_was_cut_is_counted(small):
    prepared = small.tokenize(["가 " * 14, "가 " * 15, "나", "가 " * 20])
    assert prepared.truncated == 2
    assert prepared.batch.lengths.tolist() == [16, 16, 3, 16]


def test_without_truncation_a_long_text_is_an_error(small):
    assert len(small.tokenize(["가 " * 14], truncate=False).batch) == 1
    with pytest.raises(TextTooLong, match=r"text 7 has 17 tokens; at most 16.*truncate=True"):
        small.tokenize(["가", "가 " * 15], truncate=False, first=6)


def test_counts_are_before_truncation(small):
    assert small.count(["", "가", "가 " * 99]) == [2, 3, 101]
    assert small.count(["나"], "가 ") == [4]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_ids_are_those_of_the_checkpoint_alone_or_together(real, sample_bundle, texts):
    theirs = HuggingFaceTokenizer.from_file(str(sample_bundle / "tokenizer.json"))
    theirs.enable_truncation(128)
    expected = [theirs.encode(text).ids for text in texts]
    assert sentences(real.tokenize(texts).batch) == expected
    assert [sentences(real.tokenize([text]).batch)[0] for text in texts] == expected


def test_a_tokenizer_file_cannot_pad_or_cut(tmp_path):
    """Padding in the file would make a text's ids depend on its neighbours."""
    path = small_bundle(tmp_path / "b.kosine")
    spoiled = HuggingFaceTokenizer.from_str(small_tokenizer())
    spoiled.enable_padding(length=12, pad_id=1, pad_token="[PAD]")
    spoiled.enable_truncation(4)
    rewrite(path, "tokenizer.json", spoiled.to_str().encode())
    prepared = Tokenizer(Bundle(path)).tokenize(["가", "가 나 다 가 나"])
    assert sentences(prepared.batch) == [[0, 4, 2], [0, 4, 5, 6, 4, 5, 2]]


# Prompts that pooling leaves out


@pytest.fixture(scope="module")
def left_out(tmp_path_factory) -> Tokenizer:
    path = small_bundle(tmp_path_factory.mktemp("t") / "b.kosine")
    edit_manifest(path, lambda value: value["spec"]["pooling"].update(include_prompt=False))
    return Tokenizer(Bundle(path))


@pytest.mark.parametrize(
    ("prompt", "skip"),
    [("", None), ("가 ", 2), ("가 나: ", 4), (" ", 1), ("가 " * 99, 15)],
)
def test_the_prompt_is_counted_as_sentence_transformers_does(left_out, prompt, skip):
    """[CLS] is in the count, the closing [SEP] is not."""
    prepared = left_out.tokenize(["다", "다 다"], prompt)
    if skip is None:
        assert prepared.batch.skip is None
    else:
        assert prepared.batch.skip.tolist() == [skip, skip]
        assert prepared.batch.skip.dtype == np.int32
    assert left_out.tokenize([], prompt).batch.lengths.tolist() == []


# What is refused


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "text 11 is missing (None); every text must be a str"),
        (float("nan"), "text 11 is missing (nan)"),
        (b"bytes", "text 11 is a bytes; every text must be a str; pass str, or decode"),
        (7, "text 11 is a int"),
        (1.5, "text 11 is a float"),
        (["가"], "text 11 is a list"),
        (np.array("가"), "text 11 is a ndarray"),
        ("ab\ud800c", "text 11 has a lone surrogate U+D800 at character 2; texts must be valid"),
        ("\udfff", "text 11 has a lone surrogate U+DFFF at character 0"),
        ("a\0b", "text 11 has a NUL character at 1; texts must not hold U+0000"),
        ("가" * 90_000, "text 11 has 90000 characters, and no word of its first 262144 bytes"),
        ("a" * 300_000, "text 11 has 300000 characters, and no word of its first 262144"),
    ],
)
def test_refused_with_value_limit_and_remedy(small, bad, message):
    with pytest.raises(TextError) as caught:
        small.tokenize(["가", bad], first=10)
    assert str(caught.value).startswith(message)
    assert caught.value.limit
    assert caught.value.remedy
    with pytest.raises(TextError):
        small.count(["가", bad])


def test_the_limit_counts_bytes_of_prompt_and_text(small):
    short = Tokenizer.__new__(Tokenizer)
    short.__dict__.update({**vars(small), "max_text_bytes": 10})
    assert len(short.tokenize(["a" * 10, "가가가", "é" * 5]).batch) == 3
    for prompt, text in (("", "a" * 11), ("", "가가가가"), ("가 ", "가가 "), ("a", "a" * 10)):
        with pytest.raises(TextError, match="at most 10 bytes are tokenised"):
            short.tokenize([text], prompt)
    assert MAX_TEXT_BYTES == 262_144


@pytest.mark.parametrize("prompt", ["\ud800", "a\0", "a" * 300_000])
def test_prompts_are_held_to_the_same(small, left_out, prompt):
    for tokenizer in (small, left_out):
        with pytest.raises(TextError):
            tokenizer.tokenize(["가"], prompt)


def test_subclasses_of_str_are_texts(small):
    texts = [Text("가"), np.str_("나"), *np.array(["가", "다"])]
    assert [ids[1] for ids in sentences(small.tokenize(texts).batch)] == [4, 5, 4, 6]
    assert sentences(small.tokenize([np.str_("나")]).batch) == [[0, 5, 2]]


def test_a_panic_inside_the_tokenizer_is_a_typed_error(small):
    class Panic(BaseException):
        pass

    class Broken:
        def encode(self, text):
            raise Panic(text)

        encode_batch_fast = encode

    broken = Tokenizer.__new__(Tokenizer)
    broken.__dict__.update({**vars(small), "_tokenizer": Broken()})
    for texts in (["비밀"], ["비밀", "나"]):
        with pytest.raises(TextError, match=r"the tokenizer failed on . texts: Panic") as caught:
            broken.tokenize(texts)
        assert "비밀" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_fault_of_the_text_goes_through(small, error):
    class Interrupted:
        def encode_batch_fast(self, _texts):
            raise error

    broken = Tokenizer.__new__(Tokenizer)
    broken.__dict__.update({**vars(small), "_tokenizer": Interrupted()})
    with pytest.raises(error):
        broken.tokenize(["가"])


def test_ids_that_the_model_does_not_know(tmp_path):
    path = small_bundle(tmp_path / "b.kosine")
    value = json.loads(small_tokenizer())
    value["model"]["vocab"]["라"] = 7
    rewrite(path, "tokenizer.json", json.dumps(value).encode())
    tokenizer = Tokenizer(Bundle(path))
    assert len(tokenizer.tokenize(["다"]).batch) == 1
    with pytest.raises(TextError, match="text 12 has the token id 7; the model knows ids below 7"):
        tokenizer.tokenize(["다", "", "라", "다"], first=10)


# Hostile texts: pieces that are repeated to any length

PIECES = {
    "one syllable": "가",
    "syllables and spaces": "가 ",
    "decomposed Hangul": unicodedata.normalize("NFD", "한글"),
    "lone jamo": "ㄱㅏㅋㅠ",
    "old Hangul jamo": "\u1140\ud7b0\ua960",
    "one letter": "a",
    "letters and spaces": "a ",
    "digits": "7",
    "spaces": " ",
    "ideographic spaces": "\u3000",
    "line breaks": "\n",
    "carriage returns": "\r\n",
    "tabs": "\t",
    "vertical tabs and form feeds": "\x0b\x0c",
    "line and paragraph separators": "\u2028\u2029",
    "control characters": "\x01\x1b\x7f\x9f",
    "escape sequences": "\x1b[31m",
    "punctuation": "!?.,;",
    "quotes and backslashes": "\"'\\`",
    "combining marks": "e\u0301\u0302\u0327",
    "marks on nothing": "\u0301",
    "emoji": "🙂",
    "emoji families": "👨‍👩‍👧‍👦",
    "flags": "🇰🇷",
    "skin tones": "👍🏽",
    "variation selectors": "\ufe0f",
    "zero width": "\u200b\u200c\u200d\ufeff",
    "right to left": "שלום",
    "direction overrides": "\u202e\u2066\u2069",
    "tag characters": "\U000e0041",
    "private use": "\ue000\U00100000",
    "unassigned": "\u0378\U0001ffff",
    "noncharacters": "\ufffe\U0010ffff",
    "replacement characters": "\ufffd",
    "Chinese": "漢字",
    "rare Chinese": "𠮷",
    "Thai without spaces": "ภาษาไทย",
    "mathematical letters": "𝔞𝔟",
    "ligatures that unfold": "ﷺ",
    "wide letters": "Ａ１",
    "special tokens": "[CLS][SEP][PAD][UNK][MASK]",
    "unfinished special tokens": "[[[CLS",
    "continuations": "##가",
    "HTML": "<script>&amp;",
    "JSON": '{"a":[',
    "format strings": "%s{0}{__class__}",
    "paths": "../../etc/passwd;",
}


def repeated(piece: str, size: int) -> str:
    """About `size` bytes of it, and never more."""
    return piece * (size // len(piece.encode()))


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("size", [1, 37, 5000])
def test_hostile_texts_are_texts(real, name, size):
    text = PIECES[name] * size
    prepared = real.tokenize([text, "옆 문장"])
    ids = prepared.batch.take([0]).ids
    assert ids[0] == CLS
    assert ids[-1] == SEP
    assert 2 <= len(ids) <= real.max_tokens
    assert sentences(real.tokenize([text]).batch)[0] == ids.tolist()
    assert prepared.truncated == (real.count([text])[0] > real.max_tokens)
    assert sentences(prepared.batch)[1] == sentences(real.tokenize(["옆 문장"]).batch)[0]


def test_there_are_enough_classes():
    assert len(PIECES) >= 40
    assert len(set(PIECES.values())) == len(PIECES)


def seconds(function, *args, repeats: int = 5) -> float:
    """The best of a few runs, in processor time: other processes disturb that least."""
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        function(*args)
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("name", PIECES)
def test_time_grows_with_the_length_and_no_faster(real, name):
    """2.5 times for twice the text, over four doublings up to the cap: allocators step between."""
    short, long = (repeated(PIECES[name], MAX_TEXT_BYTES // n) for n in (16, 1))
    for _ in range(4):  # on a shared machine: what grows faster does so every time
        ratio = seconds(real.count, [long]) / seconds(real.count, [short])
        if ratio <= 2.5**4:
            return
    pytest.fail(f"16 times the text took {ratio:.0f} times as long; quadratic growth gives 256")


def test_few_texts_have_the_ids_that_they_have_among_many(real):
    texts = [
        "남자가 기타를 친다.",
        "",
        "kosine 2026",
        "  앞뒤 공백 ",
        "감사합니다 " * 300,
        "끝",
        "e\u0301",
    ]
    together = sentences(real.tokenize(texts).batch)
    for stop in range(len(texts) + 1):
        assert sentences(real.tokenize(texts[:stop]).batch) == together[:stop]
    assert [sentences(real.tokenize([text]).batch)[0] for text in texts] == together


# Threads


def test_long_work_is_shared_out_and_comes_back_in_order(sample_bundle, real, monkeypatch):
    """Pieces go to as many threads as were asked for, and never to tokenizers' own pool."""
    texts = [f"문장 {i} " + "한국어 " * (i % 40) for i in range(1500)]
    expected = sentences(real.tokenize(texts).batch)
    for threads in (1, 2, 5):
        shared = Tokenizer(Bundle(sample_bundle), threads=threads)
        seen = set()
        encode = shared._encode

        def noting(piece, encode=encode, seen=seen):
            seen.add(threading.get_ident())
            return encode(piece)

        monkeypatch.setattr(shared, "_encode", noting)
        assert sentences(shared.tokenize(texts).batch) == expected
        assert threading.get_ident() in seen
        assert len(seen) <= threads
        seen.clear()
        shared.tokenize(texts[:64])
        assert seen == {threading.get_ident()}  # too little to share


POOL = """
import os, sys
from kosine.bundle import Bundle
from kosine.tokenizer import Tokenizer

def seconds():
    out = {}
    for task in os.listdir("/proc/self/task"):
        fields = open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()
        out[int(task)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return out

texts = ["한국어 문장 임베딩 " * 20] * 500
if sys.argv[2] == "ours":
    ours = Tokenizer(Bundle(sys.argv[1]), threads=1)
    call = lambda: ours.tokenize(texts)
else:
    import tokenizers
    theirs = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
    call = lambda: theirs.encode_batch_fast(texts)
while sum(seconds().values()) < 2:
    call()
spent = seconds()
print(spent.pop(os.getpid()), sum(spent.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts each thread's time in /proc")
@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_one_thread_means_one_thread(sample_bundle, who):
    """With its own batch call tokenizers computes in its pool: the measure can tell."""
    variables = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", POOL, str(sample_bundle), who],
        env=variables, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    own, others = map(float, done.stdout.split())
    if who == "ours":
        assert others < 0.1 * own
    else:
        assert others > own
