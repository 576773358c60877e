"""Special and added tokens: what a tokenizer's configs say about them, in each spelling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from kosine.bundle.tokenizerscan import Kind
from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.files.folder import optional_object

__all__ = ["add_tokens", "ids_of", "special_tokens"]

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
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
# Special tokens that the classes of a kind assume; the generic class assumes none.
KIND_TOKENS: Mapping[Kind | None, Mapping[str, str]] = {
    "wordpiece": BERT_TOKENS,
    "byte-level": ROBERTA_TOKENS,
    "unigram": ROBERTA_TOKENS,
}
# Classes whose own are others. Qwen's unknown token is the one that ends a text: bytes spell all.
CLASS_TOKENS: Mapping[str, Mapping[str, str]] = {
    "MPNetTokenizer": {**ROBERTA_TOKENS, "unk_token": "[UNK]"},
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}
NAMED_TOKENS = tuple(ROBERTA_TOKENS)  # in the order in which transformers adds them
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
    settings: Mapping[str, Any], kind: Kind | None, name: str
) -> dict[str, AddedToken]:
    """Named special tokens: what the class `name` of that kind assumes, then what is stated."""
    mpnet = name == "MPNetTokenizer"
    assumed = CLASS_TOKENS.get(name, KIND_TOKENS.get(kind, {}))
    tokens = {}
    for role in NAMED_TOKENS:
        token = special_token(settings.get(role)) or special_token(assumed.get(role))
        if token is not None:
            tokens[role] = token
    if mpnet and not isinstance(settings.get("mask_token"), dict):
        tokens["mask_token"] = AddedToken(tokens["mask_token"].content, special=True, lstrip=True)
    return tokens


def add_tokens(
    tokenizer: Tokenizer,
    folder: Path,
    settings: Mapping[str, Any],
    tokens: Mapping[str, AddedToken],
    rows: int,
    file: Mapping[str, Any] | None = None,
) -> None:
    """Make special and added tokens whole pieces that no model splits.

    Args:
        rows: Word embeddings. A pad or mask that the vocabulary lacks gets a new id, as in
            transformers, where the model has a row for it, and is plain text where not; without
            the others there is no tokenizer.
        file: The tokenizer.json whose added tokens count where the config lists none; None
            where `tokenizer` holds them already.
    """
    stated = stated_tokens(folder, settings, [*tokens.values(), *extra_tokens(settings)], file)
    known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    for index, token in stated:
        if repr(token) not in known:
            tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != index:
            raise CorruptCheckpoint(
                f"added token {token.content!r} has id {tokenizer.token_to_id(token.content)}",
                limit=f"the config states {index}",
                remedy="save the tokenizer again",
            )
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for name in (name for name in NAMED_TOKENS if name in tokens):
        token = tokens[name]
        spare = name in ("pad_token", "mask_token") and tokenizer.get_vocab_size() < rows
        has_id = tokenizer.token_to_id(token.content) is not None
        if token.content not in added and (has_id or spare):
            tokenizer.add_tokens([token])
            added.add(token.content)
    tokenizer.add_tokens([t for t in extra_tokens(settings) if t.content not in added])


def stated_tokens(
    folder: Path,
    settings: Mapping[str, Any],
    special: list[AddedToken],
    file: Mapping[str, Any] | None,
) -> list[tuple[int, AddedToken]]:
    """Added tokens with their ids, by id: from the config, or else from the older files."""
    try:
        if "added_tokens_decoder" in settings:
            found = {
                int(index): added_token(token)
                for index, token in settings["added_tokens_decoder"].items()
            }
            return sorted(found.items())
        names = {token.content for token in special}
        found = {
            int(index): AddedToken(text, special=text in names, normalized=text not in names)
            for text, index in optional_object(folder / "added_tokens.json").items()
        }
        for token in (file or {}).get("added_tokens") or []:
            found[int(token["id"])] = added_token(token)
        return sorted(found.items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(
            "the tokenizer's added tokens are not id and token pairs",
            remedy="save the tokenizer again",
        ) from error


def added_token(value: Mapping[str, Any]) -> AddedToken:
    """An added token as a config spells it out."""
    return AddedToken(**{key: item for key, item in value.items() if key not in ("id", "__type")})


def extra_tokens(settings: Mapping[str, Any]) -> list[AddedToken]:
    listed = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    values = list(listed.values()) if isinstance(listed, dict) else listed
    if not isinstance(values, list):
        raise CorruptCheckpoint("the tokenizer's extra special tokens are not a list")
    return [token for token in map(special_token, values) if token is not None]


def ends_a_text(tokenizer: Tokenizer, index: int) -> bool:
    """Whether that token stands behind what is between: of one alone an empty text shows not."""
    return tokenizer.encode("a").ids[-1:] == [index]


def ids_of(
    tokenizer: Tokenizer, tokens: Mapping[str, AddedToken], file: Mapping[str, Any]
) -> dict[str, int]:
    """cls and sep, or sep alone, as the post-processor frames an empty text; pad, unk and mask by
    their names.

    Args:
        file: tokenizer.json, or empty: what it pads with counts where no pad is named, and its
            model's unknown token where no unk is.
    """
    framed = tokenizer.encode("").ids
    if not 1 <= len(framed) <= 2 or not ends_a_text(tokenizer, framed[-1]):
        raise UnsupportedCheckpoint(
            f"the tokenizer encodes an empty text as {framed[:8]}",
            limit="one token behind a text, and at most one in front of it, are needed",
            remedy="save the tokenizer with a post-processor that adds them",
        )
    ids = dict(zip(("cls", "sep")[-len(framed) :], framed, strict=True))
    model = file.get("model", {})
    unnamed = {"pad": (file.get("padding") or {}).get("pad_token"), "unk": model.get("unk_token")}
    for name in ("pad", "unk", "mask"):
        token = tokens.get(f"{name}_token")
        content = unnamed.get(name) if token is None else token.content
        index = None if content is None else tokenizer.token_to_id(content)
        if index is None and name == "unk":
            index = model.get("unk_id")
        if index is not None and not (name == "unk" and index in framed):
            ids[name] = index
    return ids
