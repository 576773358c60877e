"""Named workloads: the length distributions of real encoders, as texts of exactly those lengths.

Lengths are in tokens of the tokenizer in use, special tokens included. A set of texts
reproduces its columns' minimum, mean and maximum for any tokenizer that splits on whitespace
before anything else (WordPiece, BPE with a whitespace pre-tokenizer): sentences are cut or
filled word by word until each has the length that was drawn for it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.errors import InputError

__all__ = ["WORKLOADS", "Column", "Texts", "Workload", "draw_lengths", "make_texts"]

NUM_SPECIAL = 2

# Common Korean words. Most are one token under a Korean vocabulary and some are several, so
# generated sentences look like real ones to a tokenizer.
VOCABULARY = """
한 그 이 두 세 첫 모든 다른 새 작은 큰 많은 젊은 오래된 하얀 검은 빨간 남자 여자 아이 사람
개 고양이 말 학생 선생님 가수 선수 경찰 의사 정부 대통령 회사 학교 도시 나라 시장 공원 바다
강 산 거리 집 방 책상 의자 자동차 자전거 버스 기차 비행기 배 음악 기타 피아노 춤 노래 영화
책 신문 사진 음식 물 빵 고기 야채 양파 감자 공 경기 시험 법 계약 손해 배상 책임 권리 의무
조항 규정 개정 기준 남자가 여자가 아이가 개가 사람들이 정부는 대통령은 회사는 법원은
당사자는 거리에서 공원에서 학교에서 바다에서 무대에서 부엌에서 기타를 피아노를 음악을 공을
책을 말을 자전거를 음식을 계약을 책임을 손해를 오늘 내일 어제 지금 다시 함께 매우 모두 바로
계속 빠르게 천천히 크게 처음으로 위해 대한 따라 통해 연주하고 있다. 달리고 먹고 타고 춤추고
요리하고 자르고 읽는다. 말했다. 밝혔다. 발표했다. 시작했다. 사망했다. 체결하였다. 배상하여야
한다. 효력이 할 수
"""
WORDS = VOCABULARY.split()


@dataclass(frozen=True, slots=True)
class Column:
    """One side of a data set: lengths in tokens, and how far they spread.

    `spread` is the standard deviation as a share of the range.
    """

    minimum: int
    mean: float
    maximum: int
    spread: float = 0.22
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a service sends. Texts of all columns alternate at random in arrival order.

    Attributes:
        single: Which columns the one-text mode draws from.
        burst: Texts in one burst.
    """

    name: str
    columns: tuple[Column, ...]
    single: tuple[int, ...]
    burst: int = 32

    @property
    def mean(self) -> float:
        return sum(column.mean for column in self.columns) / len(self.columns)

    @property
    def equal(self) -> bool:
        """Whether all its texts have one length."""
        return len({n for c in self.columns for n in (c.minimum, c.maximum)}) == 1


QUERY_PROMPT = "Represent this sentence for searching relevant passages: "
PASSAGE_PROMPT = "Represent this sentence for retrieving relevant passages: "

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("korsts", (Column(5, 16.98, 63, 0.16), Column(5, 17.03, 59, 0.17)), (0, 1)),
        Workload("matching", (Column(19, 25.81, 32), Column(26, 32.09, 42)), (0,)),
        Workload("faq", (Column(8, 10.1, 14), Column(27, 34.6, 41)), (0,)),
        Workload(
            "legal",
            (
                Column(31, 76.84, 128, prompt=QUERY_PROMPT),
                Column(26, 68.57, 128, prompt=PASSAGE_PROMPT),
            ),
            (0,),
        ),
        Workload("long", (Column(512, 512.0, 512),), (0,), burst=4),
        Workload("long8k", (Column(8192, 8192.0, 8192),), (0,), burst=1),
        Workload("documents", (Column(2048, 2048.0, 2048),), (0,), burst=2),
    )
}


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts, their token ids (special tokens included), and where the sentences came from.

    `source` is "real" or "generated".
    """

    texts: list[str]
    ids: list[list[int]]
    source: str

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(row) for row in self.ids], np.int64)


def draw_lengths(column: Column, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count,) lengths whose minimum, maximum and mean (to 1/count) are the column's.

    From 2 lengths on both ends are present; a single one is the mean.
    """
    low, high = column.minimum, column.maximum
    if low == high:
        return np.full(count, low, np.int64)
    if count == 1:
        return np.array([round(column.mean)], np.int64)
    share = (column.mean - low) / (high - low)
    concentration = max(share * (1 - share) / column.spread**2 - 1, 0.5)
    drawn = rng.beta(share * concentration, (1 - share) * concentration, count)
    lengths: NDArray[np.int64] = np.clip(np.rint(low + (high - low) * drawn), low, high).astype(
        np.int64
    )
    lengths[0], lengths[1] = low, high
    missing = round(column.mean * count) - int(lengths.sum())
    step = 1 if missing > 0 else -1
    while missing:
        inner = np.arange(2, count)
        room = inner[(lengths[inner] + step >= low) & (lengths[inner] + step <= high)]
        if not len(room):
            break
        chosen = rng.permutation(room)[: abs(missing)]
        lengths[chosen] += step
        missing -= step * len(chosen)
    return rng.permutation(lengths)


def make_texts(
    workload: Workload,
    tokenizer: Any,
    count: int,
    seed: int,
    *,
    data: Path | None = None,
    columns: Sequence[int] | None = None,
) -> Texts:
    """`count` texts of `workload`, the same for the same seed, data and tokenizer.

    Args:
        tokenizer: A `tokenizers.Tokenizer` with truncation and padding off.
        data: Folder of `korsts-*.tsv` to take sentences from; None generates them.
        columns: Which columns to draw from, in equal parts; None is all.

    Raises:
        InputError: The tokenizer does not split on whitespace, so lengths cannot be met.
    """
    rng = np.random.default_rng([seed, *workload.name.encode()])
    used = [
        workload.columns[i] for i in (range(len(workload.columns)) if columns is None else columns)
    ]
    shares = [count // len(used) + (i < count % len(used)) for i in range(len(used))]
    wanted = [
        (column, int(length))
        for column, share in zip(used, shares, strict=True)
        for length in draw_lengths(column, share, rng)
    ]
    wanted = [wanted[i] for i in rng.permutation(count)]
    sentences = _real_sentences(data) if data else []
    source = "real" if sentences else "generated"
    writer = _Writer(tokenizer, sentences or _generated_sentences(rng), rng)
    texts = [writer.text(column.prompt, length) for column, length in wanted]
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    for (_, length), row in zip(wanted, ids, strict=True):
        if len(row) != length:
            raise InputError(
                f"a text for workload {workload.name} came out at {len(row)} tokens",
                limit=f"{length} were wanted",
                remedy="use a tokenizer that splits on whitespace first",
            )
    return Texts(texts, ids, source)


class _Writer:
    """Builds texts of an exact token count out of sentences."""

    def __init__(self, tokenizer: Any, sentences: list[str], rng: np.random.Generator) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._cost: dict[str, int] = {}
        self._sentences = sentences
        self._by_length: dict[int, list[int]] = {}
        for i, length in enumerate(self._count(sentences)):
            self._by_length.setdefault(length, []).append(i)
        fillers = sorted(set(WORDS))
        self._fillers = [
            word for word, n in zip(fillers, self._count(fillers), strict=True) if n == 1
        ] or ["."]

    def _count(self, texts: list[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]

    def _words(self, sentence: str) -> Iterator[tuple[str, int]]:
        words = sentence.split()
        unknown = [word for word in words if word not in self._cost]
        self._cost.update(zip(unknown, self._count(unknown), strict=True))
        return ((word, self._cost[word]) for word in words)

    def text(self, prompt: str, length: int) -> str:
        """A text of `length` tokens; one too short for the prompt goes without it."""
        room = length - NUM_SPECIAL
        prompt_cost = self._count([prompt])[0] if prompt else 0
        if prompt_cost > room:
            prompt, prompt_cost = "", 0
        room -= prompt_cost
        exact = self._by_length.get(room)
        if exact:
            return prompt + self._sentences[exact[int(self._rng.integers(len(exact)))]]
        words: list[str] = []
        while room:
            sentence = self._sentences[int(self._rng.integers(len(self._sentences)))]
            taken = 0
            for word, cost in self._words(sentence):
                if cost > room:
                    break
                words.append(word)
                room -= cost
                taken += cost
            if room and not taken:
                words.append(self._fillers[int(self._rng.integers(len(self._fillers)))])
                room -= 1
        return prompt + " ".join(words)


def _real_sentences(data: Path) -> list[str]:
    found: set[str] = set()
    for path in sorted(data.glob("korsts-*.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                found.update(row[key] for key in ("sentence1", "sentence2") if row.get(key))
    return sorted(sentence for sentence in found if sentence.strip())


def _generated_sentences(rng: np.random.Generator) -> list[str]:
    return [
        " ".join(WORDS[int(i)] for i in rng.integers(len(WORDS), size=int(rng.integers(2, 24))))
        for _ in range(2_000)
    ]
