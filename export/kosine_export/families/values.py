"""Values of a transformers config.json, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint

__all__ = ["flag", "integer", "layer_count", "layer_types", "ratio", "refuse_other_models"]

MAX_LAYERS = 1024


def integer(key: str, value: object, *, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
        raise CorruptCheckpoint(
            f"config.json: {key} is {value!r}", limit=f"an integer from {minimum} is needed"
        )
    return value


def layer_count(value: int) -> int:
    if value > MAX_LAYERS:
        raise CorruptCheckpoint(
            f"config.json: num_hidden_layers is {value}", limit=f"at most {MAX_LAYERS}"
        )
    return value


def ratio(key: str, value: object) -> float:
    """A number between 0 and 1, such as an eps."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CorruptCheckpoint(
            f"config.json: {key} is {value!r}", limit="a number between 0 and 1 is needed"
        )
    return float(value)


def flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise CorruptCheckpoint(f"config.json: {key} is {value!r}", limit="true or false is needed")
    return value


def layer_types(
    config: Mapping[str, Any], count: int, known: Collection[str], otherwise: Sequence[str]
) -> Sequence[str]:
    """What each layer sees: `layer_types`, or `otherwise` where the config is silent."""
    stated = config.get("layer_types")
    if stated is None:
        return otherwise
    if not isinstance(stated, list) or len(stated) != count:
        raise CorruptCheckpoint(
            "config.json: layer_types is no list of a type for each layer",
            limit=f"num_hidden_layers is {count}",
        )
    for kind in stated:
        if kind not in known:
            raise UnsupportedCheckpoint(
                f"config.json: layer type {kind!r}",
                limit=f"{' and '.join(known)} are supported",
                remedy="use a checkpoint of those layers",
            )
    return stated


def refuse_other_models(
    config: Mapping[str, Any],
    activation: str,
    wanted: Collection[str] = ("gelu",),
    meaning: str = ", the exact erf form, is",
) -> None:
    """Refuse, by name, what is no plain encoder.

    Args:
        activation: The family's key of the feed-forward's activation.
        wanted: What it may be, and `meaning` in words.
    """
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if config.get(key):
            raise UnsupportedCheckpoint(
                f"config.json has {key}: true",
                limit="encoders are supported",
                remedy="use an encoder checkpoint",
            )
    for key in ("quantization_config", "pruned_heads"):
        if config.get(key):
            raise UnsupportedCheckpoint(
                f"config.json has {key}",
                limit="plain float weights of the full size are supported",
                remedy="export from the original checkpoint",
            )
    stated = config.get(activation)
    if stated is not None and stated not in wanted:
        raise UnsupportedCheckpoint(
            f"{activation} {stated!r}",
            limit=f"{', '.join(wanted)}{meaning} supported",
            remedy="use a checkpoint trained so",
        )
