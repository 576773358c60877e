"""Whatever tokenizer files a checkpoint has, as one `tokenizer.json`.

The result does what the checkpoint's class does in transformers 5, with PyTorch or without. Where
the class is missing or wrong, so that it builds another kind of model than its files hold, the
files are followed: such a class turns texts into [UNK], or cannot be made at all. Truncation and
padding are taken out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from kosine.bundle.tokenizerscan import MAX_TOKENIZER_BYTES, Kind, scan_tokenizer
from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.families.registry import FAMILIES
from kosine_export.files.folder import optional_object, read_object, read_text
from kosine_export.texts import canary_texts, tokenizer_texts
from kosine_export.tokenizer.classes import (
    CLASSES,
    GENERIC,
    TRANSFORMERS,
    Vocabulary,
    build,
    frame,
    guarded,
    lowercases,
)
from kosine_export.tokenizer.special_tokens import add_tokens, ids_of, special_tokens

__all__ = ["MAX_TOKENIZER_BYTES", "TokenizerFiles", "has_tokenizer", "read_tokenizer"]

FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
# The class that vocabulary files are made for.
CLASS_OF_FILES = {"wordpiece": "BertTokenizer", "byte-level": "RobertaTokenizer"}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer as JSON, and what its config says about lengths and special tokens.

    Attributes:
        json: For the tokenizers package, without truncation or padding.
        special_ids: cls and sep, as an empty text is framed; pad, unk and mask where they exist.
        model_max_length: None where the config states none.
        size: One more than the largest id.
        lowers: Whether texts are lower-cased before anything else.
        source: For the manifest: `class`, whether it is `stated`, the class that it was
            `read_as`, and the major version of `transformers` whose rules those are. Where it
            could be compared, `probe_texts` and to how many of them transformers 4 gives other
            ids, `other_ids_in_4`. `do_lower_case` is there where the class's default was
            overruled.
        notes: What a user should know about how the files were understood.
    """

    json: str
    special_ids: dict[str, int]
    model_max_length: int | None
    size: int
    lowers: bool
    source: dict[str, Any]
    notes: tuple[str, ...]


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*FILES, *SENTENCEPIECE))


def read_tokenizer(
    folder: Path, *, family: str, config: Mapping[str, Any], lower_text: bool = False
) -> TokenizerFiles:
    """Read a folder's tokenizer.

    Args:
        config: The transformers config, for its `tokenizer_class`, `model_type` and `vocab_size`.
        lower_text: Lower-case texts first, as a module's `do_lower_case` asks.

    Raises:
        UnsupportedCheckpoint: A class or component that is not known, or SentencePiece alone.
        CorruptCheckpoint: Damaged or missing files, or special tokens the vocabulary lacks.
    """
    settings = optional_object(folder / "tokenizer_config.json")
    refuse_other_rules(settings)
    if "added_tokens_decoder" not in settings:
        settings |= optional_object(folder / "special_tokens_map.json")
    notes: list[str] = []
    name, stated = class_of(settings, config, family)
    vocabulary = load(folder, CLASSES[name])
    read_as = fitting_class(name, stated, vocabulary, notes)
    kind = CLASSES[read_as]
    source: dict[str, Any] = {
        "class": name,
        "stated": stated,
        "read_as": read_as,
        "transformers": str(TRANSFORMERS),
    }
    tokens = special_tokens(settings, kind, read_as)
    rows = config.get("vocab_size", 0)
    if kind is None:
        tokenizer = of_json(vocabulary.json)
        add_tokens(tokenizer, folder, settings, tokens, rows)
    else:
        lowercase = False
        if kind == "wordpiece":
            lowercase, overruled = lowercases(settings, vocabulary, notes)
            source |= {"do_lower_case": lowercase} if overruled else {}
        tokenizer = build(read_as, vocabulary, settings, tokens, lowercase)
        add_tokens(tokenizer, folder, settings, tokens, rows, vocabulary.json)
        file = None if vocabulary.json is None else of_json(vocabulary.json)
        frame(tokenizer, read_as, tokens, file)
        if file is not None:
            older = as_in_transformers_4(file, tokenizer)
            add_tokens(older, folder, settings, tokens, rows)
            source |= compared(read_as, tokenizer, older, notes)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if lower_text:
        lower_first(tokenizer)
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    return TokenizerFiles(
        json=tokenizer.to_str(),
        special_ids=ids_of(tokenizer, tokens, vocabulary.json or {}),
        model_max_length=stated_length(settings),
        size=max(ids) + 1,
        lowers=lowers_first(tokenizer),
        source=source,
        notes=tuple(notes),
    )


def refuse_other_rules(settings: Mapping[str, Any]) -> None:
    """Settings that change which tokens a text becomes, and that the runtime does not follow."""
    if settings.get("auto_map"):
        raise UnsupportedCheckpoint(
            "tokenizer_config.json has auto_map: the tokenizer is Python code",
            limit="code from checkpoints is never run",
            remedy="use a checkpoint with a standard tokenizer class",
        )
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


def class_of(
    settings: Mapping[str, Any], config: Mapping[str, Any], family: str
) -> tuple[str, bool]:
    """The tokenizer's class, and whether it is stated or what transformers assumes."""
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if declared is None:
        own = FAMILIES[family]
        model_type = str(config.get("model_type"))
        return own.tokenizer_classes.get(model_type, own.tokenizer_class), False
    for name in (str(declared), str(declared).removesuffix("Fast")):
        if name in CLASSES:
            return name, True
    raise UnsupportedCheckpoint(
        f"tokenizer class {declared!r}",
        limit=f"{', '.join(CLASSES)} are supported",
        remedy=f"if tokenizer.json alone says all, state {GENERIC} in tokenizer_config.json",
    )


def fitting_class(name: str, stated: bool, vocabulary: Vocabulary, notes: list[str]) -> str:
    """The class whose rules are followed: `name`, if it builds the kind of model that is there."""
    if CLASSES[name] == vocabulary.kind or (CLASSES[name] is None and vocabulary.json):
        return name
    instead = GENERIC if vocabulary.json else CLASS_OF_FILES[vocabulary.kind]
    notes.append(
        f"the tokenizer's files hold a {vocabulary.kind} vocabulary, and are followed as "
        f"{instead}: {name}, which {'its config states' if stated else 'transformers assumes'}, "
        "does not fit them, and transformers 5 gives [UNK]s or fails; state "
        f"{instead} in tokenizer_config.json to have the same ids there"
    )
    return instead


def load(folder: Path, kind: Kind | None) -> Vocabulary:
    """What the folder's files hold; vocab.json is preferred where a class of that `kind` asks."""
    if (folder / "tokenizer.json").is_file():
        return Vocabulary.of_json(
            *scan_tokenizer(
                read_text(folder / "tokenizer.json", max_bytes=MAX_TOKENIZER_BYTES),
                unsupported=UnsupportedCheckpoint,
                damaged=CorruptCheckpoint,
                remedy="use a checkpoint with a standard tokenizer, or save it again",
            )
        )
    has_bpe = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if has_bpe and (kind == "byte-level" or not (folder / "vocab.txt").is_file()):
        pieces = read_object(folder / "vocab.json", max_bytes=MAX_TOKENIZER_BYTES)
        return Vocabulary("byte-level", pieces, read_merges(folder / "merges.txt"))
    if (folder / "vocab.txt").is_file():
        lines = read_text(folder / "vocab.txt", max_bytes=MAX_TOKENIZER_BYTES).split("\n")
        if lines and not lines[-1]:
            lines.pop()
        return Vocabulary("wordpiece", {line.rstrip(): i for i, line in enumerate(lines)}, [])
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


def read_merges(path: Path) -> list[tuple[str, str]]:
    """A pair a line, whichever line ends the file has; the first line may state a version."""
    lines = read_text(path, max_bytes=MAX_TOKENIZER_BYTES).replace("\r\n", "\n").split("\n")
    merges = []
    for line in lines:
        if not line or line.startswith("#version"):
            continue
        left, blank, right = line.partition(" ")
        if not (left and blank and right) or " " in right:
            raise CorruptCheckpoint(
                "merges.txt has a line that is not two pieces",
                remedy="save or download the tokenizer again",
            )
        merges.append((left, right))
    return merges


def of_json(value: Mapping[str, Any] | None) -> Tokenizer:
    """tokenizer.json as it is."""
    text = json.dumps({**(value or {}), "truncation": None, "padding": None})
    return guarded(lambda: Tokenizer.from_str(text), "tokenizer.json")


def as_in_transformers_4(tokenizer: Tokenizer, built: Tokenizer) -> Tokenizer:
    """tokenizer.json with what transformers 4 took from its class: these two's parameters."""
    if isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        tokenizer.normalizer = built.normalizer
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.pre_tokenizer = built.pre_tokenizer
    tokenizer.post_processor = built.post_processor
    return tokenizer


def compared(name: str, tokenizer: Tokenizer, older: Tokenizer, notes: list[str]) -> dict[str, int]:
    """How many probe texts have other ids in transformers 4; a note where any has."""
    texts = [*canary_texts(), *tokenizer_texts()]
    other = sum(tokenizer.encode(text).ids != older.encode(text).ids for text in texts)
    if other:
        notes.append(
            f"{name} of transformers 5 does not follow tokenizer.json's normalizer and "
            f"pre-tokenizer, and neither does this bundle; transformers 4 does, and gives other "
            f"ids to {other} of {len(texts)} probe texts"
        )
    return {"probe_texts": len(texts), "other_ids_in_4": other}


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


def stated_length(settings: Mapping[str, Any]) -> int | None:
    value = settings.get("model_max_length", settings.get("max_len"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        return None
    return int(value)
