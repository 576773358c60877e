"""Special and added tokens: what a tokenizer's configs say about them, in each spelling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from kosine.errors import CorruptCheckpoint
from kosine_export.folder import optional_object

__all__ = ["BERT_TOKENS", "ROBERTA_TOKENS", "add_tokens", "ids_of", "special_tokens"]

BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
NAMED_TOKENS = tuple(ROBERTA_TOKENS)
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def special_token(token: object) -> AddedToken | None:
    """A special token: configs spell it as its text or as an AddedToken's attributes."""
    if isinstance(token, str) and token:
        return AddedToken(token, special=True)
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        return None
    flags = {name: bool(token.get(name, False)) for name in TOKEN_FLAGS}
    return AddedToken(token["content"], special=True, **flags)


def special_tokens(
    settings: Mapping[str, Any], defaults: Mapping[str, str]
) -> dict[str, AddedToken]:
    """Named special tokens: the class's defaults, then what the config states."""
    tokens = {name: AddedToken(text, special=True) for name, text in defaults.items()}
    for name in NAMED_TOKENS:
        token = special_token(settings.get(name))
        if token is not None:
            tokens[name] = token
    return tokens


def add_tokens(
    tokenizer: Tokenizer,
    folder: Path,
    settings: Mapping[str, Any],
    tokens: Mapping[str, AddedToken],
) -> None:
    """Make special and added tokens whole pieces that no model splits."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    extra = extra_tokens(settings)
    for index, token in stated_tokens(folder, settings, [*tokens.values(), *extra]):
        if token.content not in known:
            add_token(tokenizer, token)
            known.add(token.content)
        if tokenizer.token_to_id(token.content) != index:
            raise CorruptCheckpoint(
                f"added token {token.content!r} has id {tokenizer.token_to_id(token.content)}",
                limit=f"the config states {index}",
                remedy="save the tokenizer again",
            )
    for token in tokens.values():
        # A class default that this vocabulary does without; `ids_of` names the vital ones.
        if token.content not in known and tokenizer.token_to_id(token.content) is not None:
            add_token(tokenizer, token)
    for token in extra:
        if token.content not in known:
            add_token(tokenizer, token)


def add_token(tokenizer: Tokenizer, token: AddedToken) -> None:
    if token.special:
        tokenizer.add_special_tokens([token])
    else:
        tokenizer.add_tokens([token])


def stated_tokens(
    folder: Path, settings: Mapping[str, Any], special: list[AddedToken]
) -> list[tuple[int, AddedToken]]:
    """Added tokens with their ids, by id: from the config, or from `added_tokens.json`."""
    decoder = settings.get("added_tokens_decoder") or {}
    try:
        if decoder:
            return sorted(
                ((int(index), AddedToken(**token)) for index, token in decoder.items()),
                key=lambda pair: pair[0],
            )
        names = {token.content for token in special}
        legacy = optional_object(folder / "added_tokens.json")
        return [
            (index, AddedToken(content, special=content in names, normalized=content not in names))
            for content, index in sorted(legacy.items(), key=lambda pair: int(pair[1]))
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(
            "the tokenizer's added tokens are not id and token pairs",
            remedy="save the tokenizer again",
        ) from error


def extra_tokens(settings: Mapping[str, Any]) -> list[AddedToken]:
    listed = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    values = list(listed.values()) if isinstance(listed, dict) else listed
    if not isinstance(values, list):
        raise CorruptCheckpoint("the tokenizer's extra special tokens are not a list")
    return [token for token in map(special_token, values) if token is not None]


def ids_of(tokenizer: Tokenizer, tokens: Mapping[str, AddedToken]) -> dict[str, int]:
    ids = {}
    for name in ("cls", "sep", "pad", "unk", "mask"):
        token = tokens.get(f"{name}_token")
        index = None if token is None else tokenizer.token_to_id(token.content)
        if index is not None:
            ids[name] = index
        elif name in ("cls", "sep"):
            raise CorruptCheckpoint(
                f"{name}_token {token.content if token else None!r} is not in the vocabulary",
                limit="sentences start with cls and end with sep",
                remedy="check that tokenizer_config.json and the vocabulary belong together",
            )
    model = tokenizer.model
    if isinstance(model, models.WordPiece) and tokenizer.token_to_id(model.unk_token) is None:
        raise CorruptCheckpoint(
            f"unk_token {model.unk_token!r} is not in the vocabulary",
            remedy="check that tokenizer_config.json and the vocabulary belong together",
        )
    return ids
