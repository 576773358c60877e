"""The first tokens of a text that is too long to be tokenised whole."""

from __future__ import annotations

import unicodedata
from typing import Any

from kosine.errors import TextError

__all__ = ["first_tokens", "tokenizer_failure"]

# Tokens after a cut that are looked at and not used: what comes later may still change them.
UNSETTLED_TOKENS = 16


def first_tokens(tokenizer: Any, part: str, max_tokens: int) -> list[int] | None:
    """More than `max_tokens` ids that the text begins with, and its last special token.

    Args:
        tokenizer: Of the package tokenizers.
        part: As much of the text as may be tokenised.
        max_tokens: Most tokens of a text.

    Returns:
        The ids; None where no word ends after so many tokens.

    Raises:
        TextError: The tokenizer failed.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    unsettled = UNSETTLED_TOKENS + 4 * max((len(token.content) for token in added), default=0)
    size = 16 * max_tokens
    while True:
        # Words that end well before the prefix does are those of the whole text, and their
        # tokens with them: every pre-tokenizer there is decides by the next few characters.
        head = part[:size]
        try:
            encoding = tokenizer.encode(head)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            raise tokenizer_failure(error, 1) from error
        ids, words, offsets = encoding.ids, encoding.word_ids, encoding.offsets
        for end in range(max_tokens, len(ids) - 1 - unsettled):
            if words[end - 1] != words[end] and _parted(head, offsets[end - 1][1]):
                return [*ids[:end], ids[-1]]
        if size >= len(part):
            return None
        size *= 2


def _parted(text: str, at: int) -> bool:
    """Whether no normalizer joins what stands before `at` and what follows.

    Combining marks, Hangul vowels and finals and characters without a shape of their own
    belong to what is before them; spaces belong to a special token that follows them.
    """
    before, after = text[at - 1], text[at]
    if before.isspace() or unicodedata.category(before)[0] not in "LMNPS":
        return False
    if after.isspace():
        return True
    first = unicodedata.normalize("NFKD", after)[0]
    if "\u1160" <= first <= "\u11ff" or "\ud7b0" <= first <= "\ud7ff":
        return False
    kind = unicodedata.category(first)
    return kind[0] in "LNPS" and kind != "Sk"


def tokenizer_failure(error: BaseException, texts: int) -> TextError:
    """A panic in the Rust code derives from BaseException; what it says may quote the text."""
    return TextError(
        f"the tokenizer failed on {texts} texts: {type(error).__name__}",
        remedy="encode them one by one to find the text, and report it",
    )
