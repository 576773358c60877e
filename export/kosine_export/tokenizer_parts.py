"""Which components a `tokenizer.json` may hold.

The file is untrusted, and a component is a small program: only the ones that the supported
families use are let through, and no regular expression but theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from tokenizers import Tokenizer

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint

__all__ = ["MAX_TOKENIZER_BYTES", "guarded", "parse", "require_known_parts"]

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 4
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
    {"BertPreTokenizer", "ByteLevel", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"}
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
EXPRESSIONS = frozenset({" {2,}", r"\s+", r" +"})
KINDS: Mapping[str, Literal["wordpiece", "byte-level", "unigram"]] = {
    "WordPiece": "wordpiece",
    "BPE": "byte-level",
    "Unigram": "unigram",
}


def require_known_parts(
    data: Mapping[str, Any],
) -> Literal["wordpiece", "byte-level", "unigram", "as it is"]:
    """Check a parsed `tokenizer.json`, and say what kind of model it holds.

    Raises:
        UnsupportedCheckpoint: A component or expression that is not on the lists.
        CorruptCheckpoint: No model, or components that are not objects.
    """
    for section, (allowed, members) in SECTIONS.items():
        for part in parts(data.get(section), section, members, MAX_DEPTH):
            if part.get("type") not in allowed:
                raise UnsupportedCheckpoint(
                    f"tokenizer.json: {section} {part.get('type')!r}",
                    limit=f"{', '.join(sorted(allowed))} are supported",
                    remedy="use a checkpoint with a standard tokenizer",
                )
            require_known_expression(part, section)
    model = data.get("model")
    if not isinstance(model, dict) or not model.get("vocab"):
        raise CorruptCheckpoint("tokenizer.json holds no model with a vocabulary")
    kind = model.get("type") or untyped(model)
    if kind not in KINDS:
        raise UnsupportedCheckpoint(
            f"tokenizer.json: model {kind!r}",
            limit=f"{', '.join(KINDS)} are supported",
            remedy="use a checkpoint with one of those",
        )
    if kind == "BPE" and not any(
        part.get("type") == "ByteLevel"
        for part in parts(data.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers", MAX_DEPTH)
    ):
        return "as it is"
    return KINDS[kind]


def untyped(model: Mapping[str, Any]) -> str:
    """The oldest files do not state the model's type."""
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model["vocab"], list) else "WordPiece"


def parts(value: object, section: str, members: str, depth: int) -> Iterator[dict[str, Any]]:
    """A section's components, Sequences opened."""
    if value is None:
        return
    if not isinstance(value, dict) or depth == 0:
        raise CorruptCheckpoint(f"tokenizer.json: {section} is not a component")
    if value.get("type") != "Sequence":
        yield value
        return
    inner = value.get(members)
    if not isinstance(inner, list):
        raise CorruptCheckpoint(f"tokenizer.json: a Sequence in {section} lists no {members}")
    for item in inner:
        yield from parts(item, section, members, depth - 1)


def require_known_expression(part: Mapping[str, Any], section: str) -> None:
    pattern = part.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern and pattern["Regex"] not in EXPRESSIONS:
        raise UnsupportedCheckpoint(
            f"tokenizer.json: {section} {part.get('type')!r} with a regular expression of its own",
            limit="plain strings and the expressions of the supported families",
            remedy="use a checkpoint with a standard tokenizer",
        )


def parse(data: Mapping[str, Any], file: str) -> Tokenizer:
    return guarded(lambda: Tokenizer.from_str(json.dumps(data)), file)


def guarded(build: Callable[[], Tokenizer], file: str) -> Tokenizer:
    """Run a constructor of the tokenizers package; its refusals and panics name the file."""
    try:
        tokenizer = build()
    except BaseException as error:
        # A Rust panic arrives as a BaseException of a class that cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CorruptCheckpoint(
                f"{file} is not a tokenizer that can be loaded",
                remedy="save the tokenizer again",
            ) from error
        raise
    return tokenizer
