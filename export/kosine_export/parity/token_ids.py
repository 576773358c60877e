"""Token ids held against the referee's, and which probe texts a model can take at all."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from kosine.encoder import Encoder
from kosine.errors import CorruptCheckpoint, ParityError, TextError
from kosine_export.checkpoint.checkpoint import Checkpoint
from kosine_export.parity.referee import Referee
from kosine_export.texts import parity_texts, tokenizer_texts
from kosine_export.tokenizer.classes import TRANSFORMERS
from kosine_export.tokenizer.unicode_form import in_unicode_form

__all__ = ["NOT_WRITTEN", "check_token_ids", "kind_of", "other_ids", "quiet", "same_ids", "usable"]

NOT_WRITTEN = "no bundle was written; report it with the checkpoint's config files"
LEAST_USABLE = 0.8  # of the probe texts; fewer, and the tokenizer is another model's
MOST_SHOWN = 5  # numbers of texts in a message
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


def check_token_ids(
    encoder: Encoder, referee: Referee | None, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Token ids before any vector: vectors of other tokens say nothing about the graph.

    Returns:
        What a manifest says of the tokenizer: what was read, and that the referee agrees.

    Raises:
        CorruptCheckpoint: Too many probe texts have ids beyond the word embeddings.
        ParityError: Ids that are not the referee's.
    """
    found = dict(checkpoint.source["tokenizer"])
    asked = [*parity_texts(checkpoint.max_tokens), *tokenizer_texts()]
    texts = usable(encoder, asked, referee)
    if len(texts) < len(asked) * LEAST_USABLE:
        raise CorruptCheckpoint(
            f"{len(asked) - len(texts)} of {len(asked)} probe texts have token ids beyond the "
            f"{checkpoint.spec.embeddings.vocab_size} word embeddings",
            limit=f"at most {1 - LEAST_USABLE:.0%} may",
            remedy="check that the tokenizer and the weights belong together",
        )
    if referee is None:
        return found
    other = other_ids(encoder, referee, texts)
    if other:
        raise _ids_differ(other, texts, referee, checkpoint)
    return {**found, "same_ids": {"texts": len(texts), "referee": referee.versions}}


def _ids_differ(
    other: Sequence[int], texts: Sequence[str], referee: Referee, checkpoint: Checkpoint
) -> ParityError:
    shown = ", ".join(f"{i} ({kind_of(texts[i])})" for i in other[:MOST_SHOWN])
    if len(other) > MOST_SHOWN:
        shown += f" and {len(other) - MOST_SHOWN} more"
    found = checkpoint.source["tokenizer"]
    stated = "stated" if found["stated"] else "assumed"
    remedy = NOT_WRITTEN
    if int(version("transformers").partition(".")[0]) < TRANSFORMERS:
        remedy = f"no bundle was written; the rules are those of transformers {TRANSFORMERS}"
        remedy += ": install that, with a current sentence-transformers"
    return ParityError(
        f"token ids are not PyTorch's in {len(other)} of {len(texts)} probe texts, numbers "
        f"{shown}: tokenizer class {found['class']} ({stated}), read as {found['read_as']}; "
        f"{referee.tokenizer_class} in {referee.versions}",
        limit="every token id must be the same before vectors are compared",
        remedy=remedy,
        report="\n".join(map("note: {}".format, checkpoint.notes)),
    )


def usable(encoder: Encoder, texts: Iterable[str], referee: Referee | None = None) -> list[str]:
    """The texts without those whose tokens the model has no embedding for, here or there."""
    rows = encoder.manifest.spec.embeddings.vocab_size
    found = []
    with quiet():
        for text in texts:
            try:
                encoder.prepare([text], prompt="")
            except TextError as error:
                if error.__cause__ is not None:  # the tokenizer itself failed
                    raise
            else:
                found.append(text)
    if referee is None:
        return found
    expected = referee.ids(in_unicode_form(found, encoder.manifest.unicode))
    return [text for text, ids in zip(found, expected, strict=True) if max(ids) < rows]


def other_ids(encoder: Encoder, referee: Referee, texts: Sequence[str]) -> list[int]:
    """Which of the texts have other token ids in the referee, by position.

    A bundle that normalises Unicode is held against the referee on normalised texts.
    """
    with quiet():
        batch = encoder.prepare(texts, prompt="").batch
    expected = referee.ids(in_unicode_form(texts, encoder.manifest.unicode))
    return [i for i, row in enumerate(expected) if batch.take([i]).ids.tolist() != list(row)]


def kind_of(text: str) -> str:
    """What is special about a text, for messages, which never hold the text itself."""
    return next((kind for kind, is_so in KINDS.items() if is_so(text)), "plain")


def same_ids(ids: Any, starts: Any, expected: Sequence[Sequence[int]]) -> int:
    """How many texts of a packed batch have the expected ids."""
    return sum(
        ids[starts[i] : starts[i + 1]].tolist() == list(row) for i, row in enumerate(expected)
    )


@contextmanager
def quiet() -> Iterator[None]:
    """The probe texts are meant to hold [UNK] and to be cut: no warning about them."""
    logger = logging.getLogger("kosine")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
