"""What a `tokenizer.json` would make its reader do, judged before the tokenizers package sees it.

The file is untrusted, in a checkpoint and in a bundle alike, and a component is a small program.
Only the components of the supported families are let through, no regular expression but theirs,
and nothing that makes a text many times longer, gives other ids each time, or takes time that
grows with the square of a word.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from kosine.errors import KosineError, ManifestError, UnsafeBundle

__all__ = ["MAX_TOKENIZER_BYTES", "QWEN_SPLIT", "Kind", "scan_tokenizer"]

Kind = Literal["wordpiece", "byte-level", "unigram", "bpe"]

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 4
MAX_PARTS = 16  # components of one section, Sequences opened
MAX_WORD_CHARACTERS = 1000  # WordPiece's time grows with the square of a word; BERT's limit is 100
MAX_MAPPED_BYTES = 256  # what a charsmap may make of one character; NFKC's longest takes 33
NORMALIZERS = frozenset(
    {
        "BertNormalizer",
        "Lowercase",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Nmt",
        "Precompiled",
        "Prepend",
        "Replace",
        "Strip",
        "StripAccents",
    }
)
PRE_TOKENIZERS = frozenset(
    {
        "BertPreTokenizer",
        "ByteLevel",
        "Metaspace",
        "Punctuation",
        "Split",
        "Whitespace",
        "WhitespaceSplit",
    }
)
POST_PROCESSORS = frozenset(
    {"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing"}
)
DECODERS = frozenset(
    {
        "BPEDecoder",
        "ByteFallback",
        "ByteLevel",
        "Fuse",
        "Metaspace",
        "Replace",
        "Strip",
        "WordPiece",
    }
)
# section -> (allowed types, key under which a Sequence lists its members)
SECTIONS: Mapping[str, tuple[frozenset[str], str]] = {
    "normalizer": (NORMALIZERS, "normalizers"),
    "pre_tokenizer": (PRE_TOKENIZERS, "pretokenizers"),
    "post_processor": (POST_PROCESSORS, "processors"),
    "decoder": (DECODERS, "decoders"),
}
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXPRESSIONS = frozenset({" {2,}", r"\s+", r" +", QWEN_SPLIT})
KINDS: Mapping[str, Kind] = {"WordPiece": "wordpiece", "BPE": "bpe", "Unigram": "unigram"}


class _Refused(Exception):
    """What was found and what is accepted; `damaged` tells nonsense from what is not supported."""

    def __init__(self, problem: str, limit: str = "", *, damaged: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.limit, self.damaged = problem, limit, damaged


def scan_tokenizer(
    text: str,
    *,
    unsupported: type[KosineError] = UnsafeBundle,
    damaged: type[KosineError] = ManifestError,
    remedy: str = "use a bundle written by `kosine export`",
) -> tuple[dict[str, Any], Kind]:
    """Judge a `tokenizer.json`; the parsed file, and what kind of model it holds.

    Args:
        text: The file's content.
        unsupported: Raised for a component, expression or size that is not let through.
        damaged: Raised for what is no tokenizer at all: not JSON, a key twice, no model.
        remedy: Of either error.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        return value, _kind(value)
    except _Refused as found:
        error = damaged if found.damaged else unsupported
        raise error(f"tokenizer.json: {found.problem}", limit=found.limit, remedy=remedy) from None
    except (ValueError, RecursionError) as error:
        raise damaged(
            f"tokenizer.json is not JSON with unique keys ({type(error).__name__})", remedy=remedy
        ) from None


def _kind(value: object) -> Kind:
    if not isinstance(value, dict):
        raise _Refused("not an object", damaged=True)
    types: dict[str, list[str]] = {}
    for section, (allowed, members) in SECTIONS.items():
        found = list(_parts(value.get(section), section, members, MAX_DEPTH))
        if len(found) > MAX_PARTS:
            raise _Refused(f"{len(found)} components in {section}", f"at most {MAX_PARTS}")
        for part in found:
            if part.get("type") not in allowed:
                raise _Refused(
                    f"{section} {str(part.get('type'))[:40]!r}",
                    f"{', '.join(sorted(allowed))} are supported",
                )
            _require_harmless(part, section)
        types[section] = [str(part["type"]) for part in found]
    kind = _kind_of_model(value.get("model"))
    return "byte-level" if kind == "bpe" and "ByteLevel" in types["pre_tokenizer"] else kind


def _kind_of_model(model: object) -> Kind:
    if not isinstance(model, dict) or not model.get("vocab"):
        raise _Refused("no model with a vocabulary", damaged=True)
    name = model.get("type")
    if name is None:  # the oldest files do not state it
        listed = "Unigram" if isinstance(model["vocab"], list) else "WordPiece"
        name = "BPE" if "merges" in model else listed
    if name not in KINDS:
        raise _Refused(f"model {str(name)[:40]!r}", f"{', '.join(KINDS)} are supported")
    if not isinstance(model["vocab"], list if name == "Unigram" else dict):
        found = type(model["vocab"]).__name__
        raise _Refused(f"the vocabulary of {name} is a {found}", damaged=True)
    if model.get("dropout"):
        raise _Refused(f"dropout {str(model['dropout'])[:40]}", "the same ids every time")
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > MAX_WORD_CHARACTERS:
        raise _Refused(
            f"max_input_chars_per_word {str(longest)[:40]}", f"at most {MAX_WORD_CHARACTERS}"
        )
    return KINDS[name]


def _parts(value: object, section: str, members: str, depth: int) -> Iterator[dict[str, Any]]:
    """A section's components, Sequences opened."""
    if value is None:
        return
    if not isinstance(value, dict) or depth == 0:
        raise _Refused(f"{section} is not a component", damaged=True)
    if value.get("type") != "Sequence":
        yield value
        return
    inner = value.get(members)
    if not isinstance(inner, list):
        raise _Refused(f"a Sequence in {section} lists no {members}", damaged=True)
    for item in inner:
        yield from _parts(item, section, members, depth - 1)


def _require_harmless(part: Mapping[str, Any], section: str) -> None:
    """No regular expression off the list, and nothing that makes texts many times longer."""
    named = f"{section} {part['type']!r}"
    pattern = part.get("pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    if "Regex" in pattern and pattern["Regex"] not in EXPRESSIONS:
        raise _Refused(
            f"{named} with a regular expression of its own",
            "plain strings and the expressions of the supported families",
        )
    added = str(part.get("content", part.get("prepend", "")))
    if len(added) > max(1, len(str(pattern.get("String", "")))):
        raise _Refused(f"{named} puts in {len(added)} characters", "one, or no more than it takes")
    if part["type"] == "Precompiled" and _longest_mapped(part) > MAX_MAPPED_BYTES:
        raise _Refused(
            f"{named} makes {_longest_mapped(part)} bytes of one character",
            f"at most {MAX_MAPPED_BYTES}",
        )


def _longest_mapped(part: Mapping[str, Any]) -> int:
    """Bytes of a charsmap's longest entry: after a trie and its size they stand end to end, each
    closed by a zero.
    """
    try:
        table = base64.b64decode(part["precompiled_charsmap"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise _Refused("a charsmap that is not base64", damaged=True) from None
    mapped = table[4 + int.from_bytes(table[:4], "little") :]
    return max(map(len, mapped.split(b"\0")))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: which of two equal ones counts is up to the reader."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value
