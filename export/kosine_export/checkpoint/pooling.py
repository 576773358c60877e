"""How token vectors become one: the pooling that a checkpoint states, or that the user gives.

Only a sentence-transformers folder states one. Where none is stated it is mean, as
sentence-transformers assumes, unless the files show that the assumption would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from kosine.errors import CorruptCheckpoint, InputError, UnknownOption, UnsupportedCheckpoint
from kosine.spec import PoolingMode
from kosine_export.families.registry import MODEL_TYPES
from kosine_export.files.folder import read_json, read_object, without_nulls

__all__ = [
    "POOLINGS",
    "StatedPooling",
    "read_pooling",
    "refuse_guessing",
    "require_known",
    "resolve_pooling",
]

POOLINGS: Mapping[str, PoolingMode] = {mode: mode for mode in get_args(PoolingMode)}
SUPPORTED_POOLING = f"{', '.join(POOLINGS)} are supported, and several of them end to end"
# In the order in which sentence-transformers puts the vectors of several flags.
POOLING_FLAGS: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class StatedPooling:
    """What a Pooling module's config says; `modes` and `width` are None where it does not."""

    modes: tuple[PoolingMode, ...] | None
    width: int | None
    include_prompt: bool


def read_pooling(folder: Path) -> StatedPooling:
    """Read a Pooling module's `config.json`.

    Raises:
        UnsupportedCheckpoint: Another mode.
        CorruptCheckpoint: A damaged or missing file.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CorruptCheckpoint(
            f"{folder.name}/config.json is missing",
            limit="the pooling must be stated",
            remedy="check that the download is complete",
        )
    config = without_nulls(read_object(path))
    stated = config.get("pooling_mode")
    if stated is None:
        modes = [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)]
    else:
        modes = [stated] if isinstance(stated, str) else stated
        if not isinstance(modes, list) or not modes:
            raise CorruptCheckpoint(f"{folder.name}/config.json: pooling_mode is {stated!r}")
    unknown = [
        key for key in config if key.startswith("pooling_mode_") and key not in POOLING_FLAGS
    ]
    surplus = [key for key in unknown if config[key]]
    if surplus or any(str(mode) not in POOLINGS for mode in modes):
        raise UnsupportedCheckpoint(
            f"pooling {' + '.join([str(mode) for mode in modes] + surplus)}",
            limit=SUPPORTED_POOLING,
            remedy="use a checkpoint with one of those",
        )
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if width is not None and (isinstance(width, bool) or not isinstance(width, int)):
        raise CorruptCheckpoint(f"{folder.name}/config.json: the width is {width!r}")
    include_prompt = config.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise CorruptCheckpoint(f"{folder.name}/config.json: include_prompt is {include_prompt!r}")
    return StatedPooling(tuple(POOLINGS[mode] for mode in modes) or None, width, include_prompt)


def require_known(asked: str | None) -> None:
    """Raises:
    UnknownOption: `asked` names no pooling that kosine computes.
    """
    if asked is not None and asked not in POOLINGS:
        raise UnknownOption(
            f"unknown pooling {asked!r}",
            limit=f"known: {', '.join(POOLINGS)}",
            remedy="choose one of these for --pooling",
        )


def resolve_pooling(
    stated: tuple[PoolingMode, ...] | None, asked: str | None, *, has_modules: bool
) -> tuple[tuple[PoolingMode, ...], tuple[str, ...]]:
    """The modes to compute, and what a user should know about where it came from.

    Args:
        stated: By the checkpoint.
        asked: By the user, one of `POOLINGS`.
        has_modules: Whether there is a modules.json.

    Raises:
        InputError: The checkpoint states another pooling than was asked for.
    """
    if stated is not None:
        if asked is not None and stated != (asked,):
            raise InputError(
                f"pooling {asked} was asked for, and the checkpoint states {' + '.join(stated)}",
                limit="--pooling is for checkpoints that state none",
                remedy="leave it out, or correct the checkpoint's pooling config",
            )
        return stated, ()
    where = "the pooling config states no mode" if has_modules else "no modules.json"
    if asked is not None:
        return (POOLINGS[asked],), (f"{where}: {asked} pooling, as was asked for",)
    return ("mean",), (f"{where}: mean pooling, as sentence-transformers assumes",)


def refuse_guessing(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder without modules.json whose vectors mean pooling would most likely spoil.

    Raises:
        UnsupportedCheckpoint: A decoder or a classifier, or the Transformer module alone of a
            checkpoint whose pooling is stated one folder up.
    """
    named = config.get("architectures") or [""]
    name = str(named[0]) if isinstance(named, list) else ""
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        # sentence-transformers itself gives decoders last-token pooling.
        raise UnsupportedCheckpoint(
            f"architecture {name} with no stated pooling",
            limit=f"encoders are supported: {', '.join(MODEL_TYPES)}",
            remedy="use an encoder checkpoint, or pass --pooling lasttoken to pool as "
            "sentence-transformers does",
        )
    if name.endswith("ForSequenceClassification"):
        raise UnsupportedCheckpoint(
            f"architecture {name} without modules.json: a cross-encoder or another classifier",
            limit="sentence encoders are exported; a classifier gives scores, not vectors",
            remedy="use an encoder checkpoint, or pass --pooling MODE to leave its head out and "
            "pool its last layer",
        )
    whole = whole_checkpoint(folder)
    if whole is not None:
        raise UnsupportedCheckpoint(
            f"{folder.absolute().name} is the Transformer module alone of the checkpoint "
            f"{whole.name}, whose modules.json states what follows it",
            limit="a folder without modules.json states no pooling",
            remedy="give the folder above it, or pass --pooling MODE to take the transformer alone",
        )


def whole_checkpoint(folder: Path) -> Path | None:
    """The folder above, where its modules.json lists this one."""
    own = folder.absolute()  # not resolved: a link belongs where it lies
    listing = own.parent / "modules.json"
    if not listing.is_file():
        return None
    try:
        entries = read_json(listing)
    except CorruptCheckpoint:  # nothing that was asked for
        return None
    listed = entries if isinstance(entries, list) else []
    paths = [entry.get("path") for entry in listed if isinstance(entry, dict)]
    return own.parent if own.name in paths else None
