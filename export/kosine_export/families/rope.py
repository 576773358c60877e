"""Rotary positions of a config.json, in the spellings of transformers 4 and 5.

Since transformers 5 `rope_parameters` holds `rope_theta`, `rope_type` and what a type of scaling
needs, by layer type in families that have several; before, `rope_theta` stood in the config itself
and the rest in `rope_scaling`. Scalings that depend on the length of a text, or scale cosines and
sines too, are refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint

__all__ = ["Rotary", "rotary"]


class Rotary(NamedTuple):
    """Angles of `place * theta ** (-2 i / head_size) / divisor`."""

    theta: float
    divisor: float


def rotary(
    config: Mapping[str, Any],
    default: float | None,
    *,
    head_size: int,
    kind: str | None = None,
    older: str = "rope_theta",
    scaled: bool = True,
    known: Collection[str] = ("default", "linear"),
) -> Rotary:
    """The rotary positions of a layer type.

    Args:
        config: Without nulls.
        default: The theta of a config that states none; None where it must.
        kind: The layer type under which `rope_parameters` states it; None where it is flat.
        older: The key of theta before transformers 5.
        scaled: Whether `rope_scaling` is about these layers.
        known: Types that the family's own code computes, of "default", "linear" (slower by the
            factor) and "ntk" (NewModel's: theta times the factor, and slower by its power of
            2 / head_size).
    """
    stated = config.get("rope_parameters", {})
    own = stated if kind is None or not isinstance(stated, dict) else stated.get(kind, {}) or {}
    scaling = config.get("rope_scaling", {}) if scaled else {}
    for name, value in (("rope_parameters", stated), ("rope_parameters", own),
                        ("rope_scaling", scaling)):  # fmt: skip
        if not isinstance(value, dict):
            raise CorruptCheckpoint(f"config.json: {name} is a {type(value).__name__}")
    rules = {**own, **scaling}
    rules.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    rule = rules.get("rope_type", rules.get("type", "default"))
    where = "rope_scaling" if scaling else "rope_parameters"
    if rule not in known:
        raise UnsupportedCheckpoint(
            f"config.json: {where} has rope_type {rule!r}",
            limit=f"{', '.join(known)} are supported",
            remedy="use a checkpoint without that scaling",
        )
    for key, plain in (("mixed_b", None), ("partial_rotary_factor", 1)):
        if rules.get(key) not in (None, plain):
            raise UnsupportedCheckpoint(
                f"config.json: {where} has {key} {rules[key]!r}",
                limit="rotary positions of whole heads, scaled alike",
                remedy="use a checkpoint without it",
            )
    named = older if kind is None else f"rope_theta of {kind}"
    theta = _number(named, rules.get("rope_theta", config.get(older, default)), above=1)
    if rule == "default":
        return Rotary(theta, 1.0)
    factor = _number(f"factor of {where}", rules.get("factor"), least=1)
    if rule == "ntk":
        return Rotary(theta * factor, factor ** (2 / head_size))
    return Rotary(theta, factor)


def _number(
    name: str, value: object, *, above: float | None = None, least: float | None = None
) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and value < 1e12
    fits = fits and (above is None or value > above) and (least is None or value >= least)  # type: ignore[operator]
    if not fits:
        limit = f"a number above {above}" if least is None else f"a number from {least}"
        raise CorruptCheckpoint(f"config.json: the {name} is {value!r}", limit=f"{limit} is needed")
    return float(value)  # type: ignore[arg-type]
