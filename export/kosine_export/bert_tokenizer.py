"""BERT's tokenizer: its vocabulary file, and what BertTokenizer makes of its parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from kosine_export.folder import read_text
from kosine_export.tokenizer_parts import MAX_TOKENIZER_BYTES, guarded, parse

__all__ = ["as_bert", "wordpiece"]

# Lower-casing strips accents, which decomposes Hangul: a vocabulary that cannot spell these
# turns every syllable into [UNK].
INITIAL_JAMO = tuple(chr(code) for code in range(0x1100, 0x1113))
MEDIAL_JAMO = tuple(chr(code) for code in range(0x1161, 0x1176))
HANGUL_SYLLABLES = ("\uac00", "\ud7a3")


def wordpiece(path: Path) -> Tokenizer:
    """BERT's tokenizer from `vocab.txt`: a token a line, its id the line's number."""
    lines = read_text(path, max_bytes=MAX_TOKENIZER_BYTES).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocab = {line.rstrip(): index for index, line in enumerate(lines)}

    def build() -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.decoder = decoders.WordPiece(prefix="##")
        return tokenizer

    return guarded(build, path.name)


def as_bert(
    tokenizer: Tokenizer, settings: Mapping[str, Any], unknown: AddedToken, notes: list[str]
) -> Tokenizer:
    """What BertTokenizer makes of its parameters."""
    data = json.loads(tokenizer.to_str())
    normalizer = data["normalizer"]
    if normalizer is None or normalizer["type"] == "BertNormalizer":
        stated = normalizer or {"type": "BertNormalizer", "clean_text": True}
        data["normalizer"] = {
            **stated,
            "handle_chinese_chars": bool(settings.get("tokenize_chinese_chars", True)),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": lowercase(
                settings, stated.get("lowercase"), data["model"]["vocab"], notes
            ),
        }
    else:
        notes.append(
            f"tokenizer.json's normalizer, a {normalizer['type']}, is kept as it is; "
            "BertTokenizer of transformers 5 would replace it"
        )
    data["model"]["unk_token"] = unknown.content
    if data["pre_tokenizer"] is None:
        data["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    return parse(data, "tokenizer_config.json")


def lowercase(
    settings: Mapping[str, Any],
    in_file: bool | None,
    vocab: Mapping[str, int],
    notes: list[str],
) -> bool:
    """`do_lower_case`; where it is missing, the class's True unless that would lose Hangul."""
    stated = settings.get("do_lower_case")
    strips = settings.get("strip_accents")
    loses_hangul = strips is not False and not spells_decomposed(vocab) and has_hangul(vocab)
    if isinstance(stated, bool):
        if stated and loses_hangul:
            notes.append("do_lower_case is true and decomposes Hangul, which becomes [UNK]")
        return stated
    if not loses_hangul:
        notes.append("do_lower_case is not stated: true, as BertTokenizer assumes")
        return True
    chosen = bool(in_file)
    notes.append(
        f"do_lower_case is not stated: {str(chosen).lower()}, because BertTokenizer's default "
        "of true turns Hangul into [UNK] under this vocabulary"
    )
    return chosen


def has_hangul(vocab: Mapping[str, int]) -> bool:
    first, last = HANGUL_SYLLABLES
    return any(first <= character <= last for token in vocab for character in token)


def spells_decomposed(vocab: Mapping[str, int]) -> bool:
    return all(jamo in vocab for jamo in INITIAL_JAMO) and all(
        f"##{jamo}" in vocab for jamo in MEDIAL_JAMO
    )
