"""How long a text may be, and what else the Transformer module's own config says of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosine.errors import CorruptCheckpoint, InputError, UnsupportedCheckpoint
from kosine.spec import Positions
from kosine_export.files.folder import optional_object, without_nulls
from kosine_export.tokenizer.reader import TokenizerFiles

__all__ = ["LIMIT_FILES", "Limits", "read_limits", "resolve_max_tokens"]

LIMIT_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
MODEL_ARGUMENTS = frozenset({"dtype", "torch_dtype", "attn_implementation"})
MIN_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What the Transformer module's own config says about its input.

    `max_seq_length` is None where only the tokenizer's config states a length.
    """

    max_seq_length: int | None
    do_lower_case: bool


def read_limits(folder: Path) -> Limits | None:
    """Read `sentence_bert_config.json` or one of its older names; None where there is none.

    Raises:
        UnsupportedCheckpoint: It asks for another task, modality, tokenizer or length rule.
    """
    for name in LIMIT_FILES:
        config = without_nulls(optional_object(folder / name))
        if config:
            return limits_of(config, name)
    return None


def limits_of(config: dict[str, Any], file: str) -> Limits:
    refuse_other_tasks(config, file)
    length = config.get("max_seq_length")
    for key in ("processor_kwargs", "tokenizer_args"):
        length = (config.get(key) or {}).get("model_max_length", length)
    if length is not None and (
        isinstance(length, bool) or not isinstance(length, int) or length < 3
    ):
        raise CorruptCheckpoint(
            f"{file}: the maximum length is {length!r}", limit="an integer from 3 is needed"
        )
    lower = config.get("do_lower_case", False)
    if not isinstance(lower, bool):
        raise CorruptCheckpoint(f"{file}: do_lower_case is {lower!r}")
    return Limits(length, lower)


def refuse_other_tasks(config: Mapping[str, Any], file: str) -> None:
    """Each setting that would change what is computed, by name."""
    plain: dict[str, object] = {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "last_hidden_state"}
        },
    }
    known = {"max_seq_length", "do_lower_case", "unpad_inputs", *plain}
    for key, expected in plain.items():
        if config.get(key, expected) != expected:
            raise UnsupportedCheckpoint(
                f"{file}: {key} is {config[key]!r}",
                limit=f"{expected!r} is supported",
                remedy="use a text encoder checkpoint",
            )
    harmless = {
        "model_kwargs": MODEL_ARGUMENTS,
        "model_args": MODEL_ARGUMENTS,
        "config_kwargs": frozenset[str](),
        "config_args": frozenset[str](),
        "processor_kwargs": frozenset({"model_max_length"}),
        "tokenizer_args": frozenset({"model_max_length"}),
    }
    for key, value in config.items():
        if key in known or not value:
            continue
        if key in harmless and isinstance(value, dict):
            surplus = sorted(set(value) - harmless[key] - {"trust_remote_code"})
            if not surplus:
                continue
            key = f"{key}.{surplus[0]}"
        raise UnsupportedCheckpoint(
            f"{file}: {key} is set",
            limit=f"{', '.join(sorted(known))} are read",
            remedy="use a checkpoint without it",
        )


def resolve_max_tokens(
    positions: Positions, limits: Limits, tokenizer: TokenizerFiles, override: int | None
) -> tuple[int, tuple[str, ...]]:
    """The maximum length as sentence-transformers finds it, kept inside the position rows."""
    usable = positions.usable
    if override is not None:
        if isinstance(override, bool) or not MIN_TOKENS <= override <= usable:
            raise InputError(
                f"max_tokens {override!r}",
                limit=f"from {MIN_TOKENS} to {usable}, the usable position rows",
                remedy="choose one in between",
            )
        return override, (f"max_tokens {override} was asked for",)
    stated = limits.max_seq_length
    if stated is None:
        stated = tokenizer.model_max_length or positions.rows
    if stated < MIN_TOKENS:
        raise CorruptCheckpoint(
            f"the maximum length is {stated}", limit=f"at least {MIN_TOKENS} is needed"
        )
    if stated <= usable:
        return stated, ()
    return usable, (f"position rows limit max_tokens to {usable}, {stated} was stated",)
