"""Parity: an encoder held against the referee, group by group.

Cosines are float64 with the norms divided out; |norm - 1| is checked apart. Beside them stand
centred cosines, with the canary's mean vector taken off both sides: where all vectors share a
large common part, plain cosines look better than they are. Token ids are compared too: vectors
can agree by luck where tokens do not.
"""

from __future__ import annotations

import logging
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.bundle.canary import GATES, MAX_NORM_ERROR, Canary, Centred, Comparison, Gate, compare
from kosine.encoder import Encoder
from kosine.errors import ManifestError
from kosine_export.parity.referee import Referee

__all__ = ["Group", "Parity", "kind_of", "measure", "other_ids", "usable"]

MIXED_BATCH = 24
PROMPTED_TEXTS = 12
SEED = 20
KINDS: Mapping[str, Callable[[str], bool]] = {
    "blank": lambda text: not text.strip(),
    "blank at an end": lambda text: text != text.strip(),
    "special tokens": lambda text: re.search(r"\[[A-Z]+\]|<\w+>|</s>", text) is not None,
    "line break or tab": lambda text: re.search(r"[\n\r\t]", text) is not None,
    "several blanks": lambda text: "  " in text,
    "decomposed letters": lambda text: not unicodedata.is_normalized("NFC", text),
    "control or format characters": lambda text: any(
        unicodedata.category(character) in ("Cc", "Cf") for character in text
    ),
    "wide or compatible forms": lambda text: not unicodedata.is_normalized("NFKC", text),
    "beyond U+FFFF": lambda text: any(character > "\uffff" for character in text),
    "long": lambda text: len(text) > 1000,
}


@dataclass(frozen=True, slots=True)
class Group:
    """One way of encoding, compared: `name` is "alone", "mixed" or "prompt:NAME".

    `ids_equal` counts the texts whose token ids are the referee's.
    """

    name: str
    found: Comparison
    ids_equal: int

    def passes(self, gate: Gate) -> bool:
        return self.found.passes(gate) and self.ids_equal == self.found.texts


@dataclass(frozen=True, slots=True)
class Parity:
    """All groups, and the verdict for the dtype they ran in."""

    dtype: str
    backend: str
    referee: str
    groups: tuple[Group, ...]
    unknown_share: float
    referee_unknown_share: float

    @property
    def gate(self) -> Gate:
        return GATES[self.dtype]

    @property
    def passed(self) -> bool:
        return (
            all(group.passes(self.gate) for group in self.groups)
            and self.unknown_share == self.referee_unknown_share
        )

    def to_json(self) -> dict[str, Any]:
        """What the manifest records: the worst over all groups, and each group."""
        found = [group.found for group in self.groups]
        return {
            "passed": self.passed,
            "referee": self.referee,
            "backend": self.backend,
            "dtype": self.dtype,
            "texts": sum(part.texts for part in found),
            "min_cosine": min(part.min_cosine for part in found),
            "mean_cosine": float(
                np.average([p.mean_cosine for p in found], weights=[p.texts for p in found])
            ),
            "max_abs_error": max(part.max_abs_error for part in found),
            "max_norm_error": max(part.max_norm_error for part in found),
            "centred": _worst_centred(found),
            "ids_equal": sum(group.ids_equal for group in self.groups),
            "unknown_share": self.unknown_share,
            "referee_unknown_share": self.referee_unknown_share,
            "gate": self.gate.to_json(),
            "groups": {
                group.name: {**group.found.to_json(), "ids_equal": group.ids_equal}
                for group in self.groups
            },
        }

    def table(self) -> str:
        """For people: a line per group, then the verdict."""
        lines = [
            f"{'group':<18} {'texts':>5} {'min cosine':>12} {'mean cosine':>12} "
            f"{'max abs err':>12} {'|norm-1|':>9} {'centred min':>12} {'same ids':>8}"
        ]
        for group in self.groups:
            part = group.found
            mark = "" if group.passes(self.gate) else "  <- short of the gate"
            lines.append(
                f"{group.name:<18} {part.texts:>5} {part.min_cosine:>12.8f} "
                f"{part.mean_cosine:>12.8f} {part.max_abs_error:>12.2e} "
                f"{part.max_norm_error:>9.1e} {part.centred_text():>12} {group.ids_equal:>8}{mark}"
            )
        lines.append(
            f"gate for {self.dtype}: {self.gate}, |norm-1| {MAX_NORM_ERROR:g}; "
            f"[UNK] share {self.unknown_share:.4f}, referee {self.referee_unknown_share:.4f}"
        )
        lines.append(f"referee: {self.referee}")
        lines.append(f"{self.backend}/{self.dtype}: {'PASSED' if self.passed else 'FAILED'}")
        return "\n".join(lines)


def measure(
    encoder: Encoder,
    referee: Referee,
    texts: Sequence[str],
    *,
    prompts: Mapping[str, str] | None = None,
) -> Parity:
    """Compare on `texts` alone, in mixed batches, and with each non-empty prompt.

    A bundle that normalises Unicode (`--unicode NFC`) is held against the referee on texts
    normalised the same way: the checkpoint itself does not.
    """
    with _quiet():
        return _measure(encoder, referee, texts, prompts)


def _measure(
    encoder: Encoder,
    referee: Referee,
    texts: Sequence[str],
    prompts: Mapping[str, str] | None,
) -> Parity:
    prompts = encoder.manifest.prompts if prompts is None else prompts
    asked = _formed(texts, encoder.manifest.unicode)
    expected, expected_ids = referee.encode(asked), referee.ids(asked)
    batch = encoder.prepare(texts, prompt="").batch
    mean = Canary.read(encoder.bundle).mean
    same = _same_ids(batch.ids, batch.starts, expected_ids)

    alone = np.concatenate([encoder.encode([text], prompt="") for text in texts])
    groups = [Group("alone", compare(alone, expected, mean), same)]
    # A text over the budget of a batch is a batch of its own in any company, and was just seen.
    fits = np.flatnonzero(batch.lengths <= encoder.max_batch_tokens)
    mixed = np.empty_like(alone)
    for indices in _mixed(fits):
        mixed[indices] = encoder.encode([texts[i] for i in indices], prompt="")
    part = batch.take(fits)
    same = _same_ids(part.ids, part.starts, [expected_ids[i] for i in fits])
    groups.append(Group("mixed", compare(mixed[fits], expected[fits], mean), same))
    for name, prompt in prompts.items():
        if not prompt:
            continue
        some = [texts[i] for i in (*fits[:PROMPTED_TEXTS], *fits[-2:])]
        prompted = encoder.prepare(some, prompt_name=name).batch
        groups.append(
            Group(
                f"prompt:{name}",
                compare(encoder.encode(some, prompt_name=name), referee.encode(some, prompt), mean),
                _same_ids(prompted.ids, prompted.starts, referee.ids(some, prompt)),
            )
        )
    unk = encoder.manifest.special_ids.get("unk", -1)
    total = sum(map(len, expected_ids))
    return Parity(
        dtype=encoder.backend.dtype,
        backend=encoder.backend.name,
        referee=referee.versions,
        groups=tuple(groups),
        unknown_share=float(np.count_nonzero(batch.ids == unk) / max(1, batch.num_tokens)),
        referee_unknown_share=sum(ids.count(unk) for ids in expected_ids) / max(1, total),
    )


def usable(encoder: Encoder, texts: Iterable[str], referee: Referee | None = None) -> list[str]:
    """The texts without those whose tokens the model has no embedding for, here or there."""
    rows = encoder.manifest.architecture.vocab_size
    found = []
    with _quiet():
        for text in texts:
            with suppress(ManifestError):
                encoder.prepare([text], prompt="")
                found.append(text)
    if referee is None:
        return found
    expected = referee.ids(_formed(found, encoder.manifest.unicode))
    return [text for text, ids in zip(found, expected, strict=True) if max(ids) < rows]


def other_ids(encoder: Encoder, referee: Referee, texts: Sequence[str]) -> list[int]:
    """Which of the texts have other token ids in the referee, by position.

    A bundle that normalises Unicode is held against the referee on normalised texts.
    """
    with _quiet():
        batch = encoder.prepare(texts, prompt="").batch
    expected = referee.ids(_formed(texts, encoder.manifest.unicode))
    return [i for i, row in enumerate(expected) if batch.take([i]).ids.tolist() != list(row)]


def kind_of(text: str) -> str:
    """What is special about a text, for messages, which never hold the text itself."""
    return next((kind for kind, is_so in KINDS.items() if is_so(text)), "plain")


def _formed(texts: Sequence[str], form: str) -> list[str]:
    return [text if form == "none" else unicodedata.normalize("NFC", text) for text in texts]


@contextmanager
def _quiet() -> Iterator[None]:
    """The probe texts are meant to hold [UNK] and to be cut: no warning about them."""
    logger = logging.getLogger("kosine")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _mixed(indices: NDArray[np.intp]) -> Iterator[list[int]]:
    order: list[int] = indices.tolist()
    random.Random(SEED).shuffle(order)
    for begin in range(0, len(order), MIXED_BATCH):
        yield order[begin : begin + MIXED_BATCH]


def _same_ids(ids: Any, starts: Any, expected: Sequence[Sequence[int]]) -> int:
    return sum(
        ids[starts[i] : starts[i + 1]].tolist() == list(row) for i, row in enumerate(expected)
    )


def _worst_centred(found: Sequence[Comparison]) -> dict[str, Any] | None:
    measured = [part.centred for part in found if part.centred is not None]
    if not measured:
        return None
    texts = [part.texts for part in measured]
    return asdict(
        Centred(
            texts=sum(texts),
            min_cosine=min(part.min_cosine for part in measured),
            mean_cosine=float(np.average([part.mean_cosine for part in measured], weights=texts)),
        )
    )
