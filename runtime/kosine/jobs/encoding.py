"""Records to vectors, window by window: equal texts once, bad ones refused or left out."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.encoder import WINDOW, Encoder
from kosine.errors import NonFiniteVector, TextError
from kosine.jobs.inputs import Input, Record

__all__ = ["CACHE_BYTES", "Encoded", "RecordEncoder", "windows"]

WINDOW_CHARACTERS = 1 << 18  # long texts make shorter windows: bounded memory, steady progress
CACHE_BYTES = 1 << 26
ENTRY_BYTES = 200  # what Python's objects take beside the text and the vector


def windows(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in lists that are tokenised and sorted together; the same ones in every run."""
    window: list[Record] = []
    characters = 0
    for record in records:
        window.append(record)
        characters += len(record.text)
        if len(window) == WINDOW or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


class Encoded:
    """A window's vectors (n, d), which of its rows have none, and what is wrong with those."""

    def __init__(
        self, vectors: NDArray[Any], missing: NDArray[np.bool_], failures: list[tuple[int, str]]
    ) -> None:
        self.vectors, self.missing, self.failures = vectors, missing, failures


class RecordEncoder:
    """Encodes windows of one input with the same options throughout.

    A text that has been met, in the window or among those that the cache still holds, is not
    computed again: its vector would be the same.

    Args:
        encoder: The encoder.
        source: Where the records come from, for messages.
        keep_going: Leave out what cannot be encoded, instead of raising.
        cache_bytes: Room for texts and vectors of earlier windows.
        options: For `Encoder.encode`.

    Raises:
        KosineError: What is wrong with the options.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: Input,
        *,
        keep_going: bool = False,
        cache_bytes: int = CACHE_BYTES,
        **options: Any,
    ) -> None:
        self.encoder, self.source, self.keep_going = encoder, source, keep_going
        self.options = options
        self.repeated = 0
        # What is wrong with the options would be wrong with every text.
        self.like: NDArray[Any] = encoder.encode([], **options)
        encoder.count_tokens("", options.get("prompt_name"), options.get("prompt"))
        self._cache: OrderedDict[str, NDArray[Any]] = OrderedDict()
        self._room = cache_bytes

    def encode(self, window: list[Record]) -> Encoded:
        """Vectors of a window; a missing row is NaN, or 0 where vectors are integers.

        Raises:
            TextError, NonFiniteVector: A record that cannot be encoded, by its number.
        """
        places: dict[str, list[int]] = {}
        failures: dict[int, str] = {}
        for i, record in enumerate(window):
            if record.problem:
                if not self.keep_going:
                    raise TextError(
                        f"{self._place(record)} {record.problem}", remedy=self._remedy()
                    )
                failures[i] = record.problem
            else:
                places.setdefault(record.text, []).append(i)
        vectors = np.zeros((len(window), self.like.shape[1]), self.like.dtype)
        new = []
        for text, rows in places.items():
            known = self._cache.get(text)
            if known is None:
                new.append(text)
            else:
                vectors[rows] = known
                self._cache.move_to_end(text)
            self.repeated += len(rows) - (known is None)
        for texts, part in self._computed(new, window, places, failures):
            for text, vector in zip(texts, part, strict=True):
                vectors[places[text]] = vector
                self._keep(text, vector)
        missing = np.zeros(len(window), bool)
        missing[list(failures)] = True
        if vectors.dtype.kind == "f":
            vectors[missing] = np.nan
        found = [(window[i].number, failures[i]) for i in sorted(failures)]
        return Encoded(vectors, missing, found)

    def _computed(
        self,
        texts: list[str],
        window: list[Record],
        places: dict[str, list[int]],
        failures: dict[int, str],
    ) -> Iterator[tuple[list[str], NDArray[Any]]]:
        """Texts and their vectors; those that fail are written into `failures`."""
        # Halved until the bad ones stand alone: what is good is encoded in large batches.
        todo = [texts] if texts else []
        while todo:
            part = todo.pop()
            try:
                yield part, self.encoder.encode(part, show_progress_bar=False, **self.options)
            except (TextError, NonFiniteVector) as error:
                if not self.keep_going:
                    raise self._named(error, part, window, places) from error
                if len(part) > 1:
                    middle = len(part) // 2
                    todo += [part[middle:], part[:middle]]
                    continue
                rows = places[part[0]]
                self.repeated -= len(rows) - 1
                failures.update(dict.fromkeys(rows, _problem(error)))

    def _named(
        self,
        error: TextError | NonFiniteVector,
        part: list[str],
        window: list[Record],
        places: dict[str, list[int]],
    ) -> Exception:
        """The same error about a record of the input instead of a text of the call."""
        if isinstance(error, NonFiniteVector):
            at = error.indices[0] if error.indices else None
        else:
            named = re.match(r"text (\d+) ", error.problem)
            at = int(named[1]) if named else None
        if at is None:
            return error
        place = self._place(window[places[part[at]][0]])
        if isinstance(error, NonFiniteVector):
            return NonFiniteVector(
                f"{place} {_problem(error)}",
                indices=error.indices,
                pooled=error.pooled,
                limit=error.limit,
                remedy=error.remedy,
            )
        remedy = error.remedy or self._remedy()
        return TextError(f"{place} {_problem(error)}", limit=error.limit, remedy=remedy)

    def _keep(self, text: str, vector: NDArray[Any]) -> None:
        self._cache[text] = vector.copy()
        self._room -= _size(text, vector)
        while self._room < 0 and self._cache:
            self._room += _size(*self._cache.popitem(last=False))

    def _place(self, record: Record) -> str:
        return f"{self.source.unit} {record.number} of {self.source.title}"

    def _remedy(self) -> str:
        return f"mend or remove that {self.source.unit}"


def _problem(error: TextError | NonFiniteVector) -> str:
    """What is wrong with a text, to be read after its number."""
    if isinstance(error, NonFiniteVector):
        return "gives a vector that is not finite"
    return re.sub(r"^text \d+ ", "", error.problem)


def _size(text: str, vector: NDArray[Any]) -> int:
    return 4 * len(text) + vector.nbytes + ENTRY_BYTES
