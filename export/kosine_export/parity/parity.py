"""Parity: an encoder held against the referee, group by group.

Cosines are float64 with the norms divided out; |norm - 1| is checked apart. Beside them stand
centred cosines, with the canary's mean vector taken off both sides: where all vectors share a
large common part, plain cosines look better than they are. Token ids are compared too: vectors
can agree by luck where tokens do not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.bundle.canary import GATES, MAX_NORM_ERROR, Canary, Centred, Comparison, Gate, compare
from kosine.encoder import Encoder
from kosine.errors import ParityError
from kosine_export.parity.referee import Referee
from kosine_export.parity.token_ids import NOT_WRITTEN, quiet, same_ids
from kosine_export.tokenizer.unicode_form import in_unicode_form

__all__ = ["Group", "Parity", "measure"]

MIXED_BATCH = 24
PROMPTED_TEXTS = 12
SEED = 20


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

    def require(self, notes: Sequence[str]) -> None:
        """Raise ParityError unless it passed, with `notes` above the table in its report."""
        if self.passed:
            return
        worst = self.to_json()
        centred = worst["centred"]
        raise ParityError(
            f"{self.backend} in {self.dtype} does not give PyTorch's vectors: min cosine "
            f"{worst['min_cosine']:.7f}, mean {worst['mean_cosine']:.7f}, "
            + (
                ""
                if centred is None
                else "centred {min_cosine:.7f}, {mean_cosine:.7f}, ".format(**centred)
            )
            + f"max abs error {worst['max_abs_error']:.1e}, same token ids in "
            f"{worst['ids_equal']} of {worst['texts']} texts",
            limit=f"gate: {self.gate}, every token id",
            remedy=NOT_WRITTEN,
            report="\n".join([*map("note: {}".format, notes), self.table()]),
        )

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
    with quiet():
        return _measure(encoder, referee, texts, prompts)


def _measure(
    encoder: Encoder,
    referee: Referee,
    texts: Sequence[str],
    prompts: Mapping[str, str] | None,
) -> Parity:
    prompts = encoder.manifest.prompts if prompts is None else prompts
    asked = in_unicode_form(texts, encoder.manifest.unicode)
    expected, expected_ids = referee.encode(asked), referee.ids(asked)
    batch = encoder.prepare(texts, prompt="").batch
    mean = Canary.read(encoder.bundle).mean
    same = same_ids(batch.ids, batch.starts, expected_ids)

    alone = np.concatenate([encoder.encode([text], prompt="") for text in texts])
    groups = [Group("alone", compare(alone, expected, mean), same)]
    # A text over the budget of a batch is a batch of its own in any company, and was just seen.
    fits = np.flatnonzero(batch.lengths <= encoder.max_batch_tokens)
    mixed = np.empty_like(alone)
    for indices in _mixed(fits):
        mixed[indices] = encoder.encode([texts[i] for i in indices], prompt="")
    part = batch.take(fits)
    same = same_ids(part.ids, part.starts, [expected_ids[i] for i in fits])
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
                same_ids(prompted.ids, prompted.starts, referee.ids(some, prompt)),
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


def _mixed(indices: NDArray[np.intp]) -> Iterator[list[int]]:
    order: list[int] = indices.tolist()
    random.Random(SEED).shuffle(order)
    for begin in range(0, len(order), MIXED_BATCH):
        yield order[begin : begin + MIXED_BATCH]


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
