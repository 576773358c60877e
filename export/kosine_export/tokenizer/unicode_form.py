"""Unicode normalisation in front of a tokenizer, for those who ask for it.

The reference does not normalise: under the KLUE vocabulary decomposed (NFD) Hangul becomes
[UNK], and so it does here unless a bundle is exported with `--unicode NFC`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import get_args

from kosine.bundle.manifest import UnicodeForm

__all__ = ["UNICODE_FORMS", "in_unicode_form", "with_unicode_form"]

UNICODE_FORMS = get_args(UnicodeForm)


def with_unicode_form(tokenizer_json: str, form: str) -> str:
    """The tokenizer with NFC in front of its own normalizer, or as it is for "none"."""
    if form == "none":
        return tokenizer_json
    tokenizer = json.loads(tokenizer_json)
    own = tokenizer.get("normalizer")
    steps = [{"type": form}] + ([own] if own else [])
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(tokenizer, ensure_ascii=False)


def in_unicode_form(texts: Sequence[str], form: str) -> list[str]:
    """The texts as such a tokenizer normalises them first."""
    return [text if form == "none" else unicodedata.normalize("NFC", text) for text in texts]
