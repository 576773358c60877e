"""What transformers' tokenizer classes build around a vocabulary.

Since transformers 5 such a class takes vocabulary, merges and SentencePiece's charsmap from its
files and builds everything else by its own parameters, whatever normalizer and pre-tokenizer
`tokenizer.json` holds. transformers 4 followed the file.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from kosine.bundle.tokenizerscan import QWEN_SPLIT, Kind
from kosine.errors import CorruptCheckpoint
from kosine_export.tokenizer.hangul import has_hangul, spells_decomposed

__all__ = [
    "CLASSES",
    "GENERIC",
    "TRANSFORMERS",
    "Vocabulary",
    "build",
    "frame",
    "guarded",
    "lowercases",
]

TRANSFORMERS = 5  # whose rules these are
# The model that each class builds; the generic class takes tokenizer.json as it is. A trailing
# "Fast" never matters.
CLASSES: Mapping[str, Kind | None] = {
    "BertTokenizer": "wordpiece",
    "DistilBertTokenizer": "wordpiece",
    "ElectraTokenizer": "wordpiece",
    "MPNetTokenizer": "wordpiece",
    "RobertaTokenizer": "byte-level",
    "XLMRobertaTokenizer": "unigram",
    "CamembertTokenizer": "unigram",
    "Qwen2Tokenizer": "byte-level",
    "GemmaTokenizer": "bpe",
    "PreTrainedTokenizerFast": None,
    "PreTrainedTokenizer": None,
    "TokenizersBackend": None,
}
GENERIC = "PreTrainedTokenizerFast"
KEEP_FRAME = frozenset({"Qwen2Tokenizer", "GemmaTokenizer"})
XLM_ROBERTA_UNKNOWN = 3  # transformers 5 takes this id, whatever the file says


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a class takes from its files.

    `pieces` maps each token to its id, or for Unigram lists (piece, score) pairs; `merges` are
    BPE's pairs. `json` is the whole of tokenizer.json, or None where other files were read.
    """

    kind: Kind
    pieces: Any
    merges: list[Any]
    json: dict[str, Any] | None = None

    @classmethod
    def of_json(cls, value: dict[str, Any], kind: Kind) -> Vocabulary:
        model = value["model"]
        merges = [
            tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
            for pair in model.get("merges") or []
        ]
        return cls(kind, model["vocab"], merges, value)


def build(
    name: str,
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    tokens: Mapping[str, AddedToken],
    lowercase: bool,
) -> Tokenizer:
    """The class `name` around a vocabulary of its kind; the post-processor is `frame`'s."""
    makers = {"wordpiece": wordpiece, "byte-level": byte_level, "unigram": unigram}
    make = {"Qwen2Tokenizer": qwen2, "GemmaTokenizer": gemma}.get(name) or makers[vocabulary.kind]
    source = "the vocabulary" if vocabulary.json is None else "tokenizer.json"
    return guarded(lambda: make(name, vocabulary, settings, tokens, lowercase), source)


def wordpiece(
    _name: str,
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    tokens: Mapping[str, AddedToken],
    lowercase: bool,
) -> Tokenizer:
    unknown = tokens["unk_token"].content
    tokenizer = Tokenizer(models.WordPiece(vocabulary.pieces, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
        lowercase=lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def byte_level(
    _name: str,
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    _tokens: Mapping[str, AddedToken],
    _lowercase: bool,
) -> Tokenizer:
    model = models.BPE(
        vocab=vocabulary.pieces,
        merges=vocabulary.merges,
        continuing_subword_prefix="",
        end_of_word_suffix="",
    )
    tokenizer = Tokenizer(model)
    prefix_space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def qwen2(
    _name: str,
    vocabulary: Vocabulary,
    _settings: Mapping[str, Any],
    _tokens: Mapping[str, AddedToken],
    _lowercase: bool,
) -> Tokenizer:
    model = models.BPE(
        vocab=vocabulary.pieces,
        merges=vocabulary.merges,
        continuing_subword_prefix="",
        end_of_word_suffix="",
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def gemma(
    _name: str,
    vocabulary: Vocabulary,
    _settings: Mapping[str, Any],
    tokens: Mapping[str, AddedToken],
    _lowercase: bool,
) -> Tokenizer:
    model = models.BPE(
        vocab=vocabulary.pieces,
        merges=vocabulary.merges,
        unk_token=tokens["unk_token"].content,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def unigram(
    name: str,
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    tokens: Mapping[str, AddedToken],
    _lowercase: bool,
) -> Tokenizer:
    pieces = [(piece, score) for piece, score in vocabulary.pieces]
    unknown = XLM_ROBERTA_UNKNOWN
    if name == "CamembertTokenizer":
        named = tokens["unk_token"].content
        unknown = next((i for i, (piece, _) in enumerate(pieces) if piece == named), 0)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    table = charsmap(vocabulary.json or {})
    if table is not None:
        tokenizer.normalizer = normalizers.Precompiled(table)
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return tokenizer


def charsmap(value: Mapping[str, Any]) -> bytes | None:
    """The first charsmap of tokenizer.json's normalizer, alone or in a Sequence."""
    normalizer = value.get("normalizer") or {}
    for part in normalizer.get("normalizers", [normalizer]):
        if part.get("type") == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    return None


def frame(
    tokenizer: Tokenizer, name: str, tokens: Mapping[str, AddedToken], file: Tokenizer | None
) -> None:
    """Set the class's post-processor: cls and sep, or for the Unigram classes bos and eos.

    Args:
        file: tokenizer.json as it is, whose post-processor the classes of decoders keep.
    """
    kind = CLASSES[name]
    if name in KEEP_FRAME:
        if file is not None and file.post_processor is not None:
            tokenizer.post_processor = file.post_processor
        return
    names = ("bos_token", "eos_token") if kind == "unigram" else ("cls_token", "sep_token")
    for name in (*names, *(["unk_token"] if kind == "wordpiece" else [])):
        if tokenizer.token_to_id(tokens[name].content) is None:
            raise CorruptCheckpoint(
                f"{name} {tokens[name].content!r} is not in the vocabulary",
                limit=f"{kind} classes need {', '.join(names)}",
                remedy="check that tokenizer_config.json and the vocabulary belong together",
            )
    first, last = (tokens[name].content for name in names)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in {first, last}],
    )


def lowercases(
    settings: Mapping[str, Any], vocabulary: Vocabulary, notes: list[str]
) -> tuple[bool, bool]:
    """BertTokenizer's `do_lower_case`, and whether its default of true had to be overruled.

    Where nothing is stated the default stands unless that would lose Hangul; then it is what
    tokenizer.json says, or false.
    """
    stated = settings.get("do_lower_case")
    strips = settings.get("strip_accents")
    pieces = vocabulary.pieces
    loses_hangul = strips is not False and not spells_decomposed(pieces) and has_hangul(pieces)
    if isinstance(stated, bool):
        if stated and loses_hangul:
            notes.append("do_lower_case is true and decomposes Hangul, which becomes [UNK]")
        return stated, False
    normalizer = (vocabulary.json or {}).get("normalizer") or {}
    if not loses_hangul or normalizer.get("lowercase"):
        notes.append("do_lower_case is not stated: true, as BertTokenizer assumes")
        return True, False
    notes.append(
        "do_lower_case is not stated: false, because BertTokenizer's default of true turns Hangul "
        "into [UNK] under this vocabulary"
    )
    return False, True


def guarded(make: Callable[[], Tokenizer], source: str) -> Tokenizer:
    """Run a constructor of the tokenizers package; its refusals and panics name the source."""
    try:
        return make()
    except BaseException as error:
        # A Rust panic arrives as a BaseException of a class that cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CorruptCheckpoint(
                f"{source} is not a tokenizer that can be loaded",
                remedy="save the tokenizer again",
            ) from error
        raise
