"""Whatever tokenizer files a checkpoint has, as one `tokenizer.json`.

The result does what the checkpoint's transformers tokenizer class does: the class's
parameters in `tokenizer_config.json` win over a `tokenizer.json` that says otherwise.
Truncation and padding are taken out; the post-processor adds CLS and SEP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.bert_tokenizer import as_bert, wordpiece
from kosine_export.folder import optional_object, read_object, read_text
from kosine_export.spec import Family
from kosine_export.special_tokens import (
    BERT_TOKENS,
    ROBERTA_TOKENS,
    add_tokens,
    ids_of,
    special_tokens,
)
from kosine_export.tokenizer_parts import MAX_TOKENIZER_BYTES, guarded, parse, require_known_parts

__all__ = ["MAX_TOKENIZER_BYTES", "TokenizerFiles", "has_tokenizer", "read_tokenizer"]

FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")

Style = Literal["wordpiece", "byte-level", "unigram", "as it is"]
# Classes of transformers by what they do; a trailing "Fast" never matters.
CLASSES: Mapping[str, Style] = {
    "BertTokenizer": "wordpiece",
    "DistilBertTokenizer": "wordpiece",
    "ElectraTokenizer": "wordpiece",
    "RobertaTokenizer": "byte-level",
    "XLMRobertaTokenizer": "unigram",
    "CamembertTokenizer": "unigram",
    "PreTrainedTokenizer": "as it is",
    "TokenizersBackend": "as it is",
}
UNIGRAM_MODELS = ("xlm-roberta", "camembert")
# Special tokens that the classes of a style assume.
CLASS_TOKENS: Mapping[Style, Mapping[str, str]] = {
    "wordpiece": BERT_TOKENS,
    "byte-level": ROBERTA_TOKENS,
    "unigram": ROBERTA_TOKENS,
    "as it is": {},
}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer as JSON, and what its config says about lengths and special tokens.

    `model_max_length` is None where the config states none. `special_ids` has cls and sep,
    and pad, unk and mask where they exist. `size` is one more than the largest id.
    `lowers` says whether texts are lower-cased before anything else.
    """

    json: str
    special_ids: dict[str, int]
    model_max_length: int | None
    size: int
    lowers: bool
    notes: tuple[str, ...]


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*FILES, *SENTENCEPIECE))


def read_tokenizer(
    folder: Path, *, family: Family, config: Mapping[str, Any], lower_text: bool = False
) -> TokenizerFiles:
    """Read a folder's tokenizer.

    Args:
        config: The transformers config, for its `tokenizer_class` and `model_type`.
        lower_text: Lower-case texts first, as a module's `do_lower_case` asks.

    Raises:
        UnsupportedCheckpoint: A class or component that is not known, or SentencePiece alone.
        CorruptCheckpoint: Damaged or missing files, or special tokens the vocabulary lacks.
    """
    settings = optional_object(folder / "tokenizer_config.json")
    if settings.get("auto_map"):
        raise UnsupportedCheckpoint(
            "tokenizer_config.json has auto_map: the tokenizer is Python code",
            limit="code from checkpoints is never run",
            remedy="use a checkpoint with a standard tokenizer class",
        )
    if "added_tokens_decoder" not in settings:
        settings |= optional_object(folder / "special_tokens_map.json")
    notes: list[str] = []
    refuse_other_rules(settings)
    style = declared_style(settings, config)
    tokenizer, found = load(folder, style, family)
    assumed = style or assumed_style(family, config)
    if assumed not in (found, "as it is"):
        notes.append(
            f"the tokenizer is taken from its files, {found}: the class that "
            f"{'its config states' if style else 'transformers assumes'} does not fit them"
        )
    if style != "as it is":
        style = found
    tokens = special_tokens(settings, CLASS_TOKENS[style])
    if style == "wordpiece":
        tokenizer = as_bert(tokenizer, settings, tokens["unk_token"], notes)
    elif style == "byte-level":
        set_prefix_space(tokenizer, bool(settings.get("add_prefix_space", False)))
    add_tokens(tokenizer, folder, settings, tokens)
    special_ids = ids_of(tokenizer, tokens)
    if style != "as it is":
        set_post_processor(tokenizer, tokens, special_ids)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if lower_text:
        lower_first(tokenizer)
    require_cls_sep(tokenizer, special_ids)
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    return TokenizerFiles(
        json=tokenizer.to_str(),
        special_ids=special_ids,
        model_max_length=stated_length(settings),
        size=max(ids) + 1,
        lowers=lowers_first(tokenizer),
        notes=tuple(notes),
    )


def refuse_other_rules(settings: Mapping[str, Any]) -> None:
    """Settings that change which tokens a text becomes, and that the runtime does not follow."""
    if settings.get("split_special_tokens"):
        raise UnsupportedCheckpoint(
            "tokenizer_config.json has split_special_tokens: true",
            limit="special tokens in a text are kept whole",
            remedy="use a checkpoint without it",
        )
    if settings.get("truncation_side", "right") != "right":
        raise UnsupportedCheckpoint(
            f"tokenizer_config.json has truncation_side {settings['truncation_side']!r}",
            limit="texts are truncated on the right",
            remedy="use a checkpoint without it",
        )


def assumed_style(family: Family, config: Mapping[str, Any]) -> Style:
    """What transformers takes where no class is stated."""
    if family != "roberta":
        return "wordpiece"
    return "unigram" if config.get("model_type") in UNIGRAM_MODELS else "byte-level"


def set_prefix_space(tokenizer: Tokenizer, add_prefix_space: bool) -> None:
    """RobertaTokenizer's parameter wins over the file's; a longer sequence is left alone."""
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel | None):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)


def declared_style(settings: Mapping[str, Any], config: Mapping[str, Any]) -> Style | None:
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if declared is None:
        return None
    style = CLASSES.get(str(declared).removesuffix("Fast"))
    if style is None:
        raise UnsupportedCheckpoint(
            f"tokenizer class {declared!r}",
            limit=f"{', '.join(CLASSES)} are supported",
            remedy="save it once as a tokenizer.json with one of those classes",
        )
    return style


def load(folder: Path, style: Style | None, family: Family) -> tuple[Tokenizer, Style]:
    """The tokenizer as its files state it, and which kind that is."""
    if (folder / "tokenizer.json").is_file():
        data = read_object(folder / "tokenizer.json", max_bytes=MAX_TOKENIZER_BYTES)
        kind = require_known_parts(data)
        data["truncation"] = data["padding"] = None
        return parse(data, "tokenizer.json"), kind
    wants_bpe = style == "byte-level" or (style is None and family == "roberta")
    has_bpe = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if has_bpe and (wants_bpe or not (folder / "vocab.txt").is_file()):
        return byte_level(folder), "byte-level"
    if (folder / "vocab.txt").is_file():
        return wordpiece(folder / "vocab.txt"), "wordpiece"
    for name in SENTENCEPIECE:
        if (folder / name).is_file():
            raise UnsupportedCheckpoint(
                f"{name} is the only tokenizer file",
                limit="tokenizer.json, vocab.txt, or vocab.json with merges.txt is read",
                remedy="AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one",
            )
    raise CorruptCheckpoint(
        f"no tokenizer in {folder.name or folder}",
        limit="tokenizer.json, vocab.txt, or vocab.json with merges.txt is needed",
        remedy="check that the download is complete",
    )


def byte_level(folder: Path) -> Tokenizer:
    """RoBERTa's byte-level BPE from `vocab.json` and `merges.txt`."""
    vocab = read_object(folder / "vocab.json", max_bytes=MAX_TOKENIZER_BYTES)
    lines = read_text(folder / "merges.txt", max_bytes=MAX_TOKENIZER_BYTES).split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise CorruptCheckpoint(
            "merges.txt has a line that is not two pieces",
            remedy="save or download the tokenizer again",
        )
    merges = [(left, right) for left, right in pairs]

    def build() -> Tokenizer:
        model = models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
        )
        tokenizer = Tokenizer(model)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    return guarded(build, "vocab.json with merges.txt")


def set_post_processor(
    tokenizer: Tokenizer, tokens: Mapping[str, AddedToken], special_ids: Mapping[str, int]
) -> None:
    cls, sep = tokens["cls_token"].content, tokens["sep_token"].content

    def build() -> Tokenizer:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, special_ids["cls"]), (sep, special_ids["sep"])],
        )
        return tokenizer

    guarded(build, "tokenizer_config.json")


def lowers_first(tokenizer: Tokenizer) -> bool:
    """Whether a Lowercase normalizer stands alone or among the steps of a sequence."""
    normalizer = tokenizer.normalizer
    if normalizer is None:
        return False
    stated = json.loads(normalizer.__getstate__())
    steps = stated["normalizers"] if stated["type"] == "Sequence" else [stated]
    return any(step["type"] == "Lowercase" for step in steps)


def lower_first(tokenizer: Tokenizer) -> None:
    """Put a Lowercase normalizer in front, unless there is one already."""
    if not lowers_first(tokenizer):
        inner = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *inner])


def require_cls_sep(tokenizer: Tokenizer, special_ids: Mapping[str, int]) -> None:
    ids = tokenizer.encode("").ids
    expected = [special_ids["cls"], special_ids["sep"]]
    if ids != expected:
        raise UnsupportedCheckpoint(
            f"the tokenizer encodes an empty text as {ids}",
            limit=f"[CLS] and [SEP] are needed, {expected}",
            remedy="save the tokenizer with a post-processor that adds them",
        )


def stated_length(settings: Mapping[str, Any]) -> int | None:
    value = settings.get("model_max_length", settings.get("max_len"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        return None
    return int(value)
