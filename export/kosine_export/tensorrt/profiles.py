"""Which shapes a TensorRT plan is tuned for: pure functions of the longest text.

A text that comes alone is what latency is measured on: its row is mostly the streaming of
weights, which kernels tuned for thousands of tokens do badly. So the widths in `ONE_ROW_WIDTHS`
have a second profile, of one row with one sentence; a wider row alone is work enough for the
others. A reader takes, of the profiles that fit, the one of fewest rows. Those of one row come
last, because a plan's outputs are described by its first profile, and would have one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable

from kosine.bundle.plans import PlanProfile

__all__ = ["input_ranges", "plan_profiles"]

WIDTHS = (32, 64, 128, 256, 512)
ONE_ROW_WIDTHS = (32, 64, 128)
# Tokens of the rectangle that kernels are tuned for, and of the largest that they take.
OPT_TOKENS = 6_144
MAX_TOKENS = 16_384
# Shortest of Korean STS. Rows of still shorter sentences are cut in two by the reader; every slot
# that a row has is pooled, used or not.
SHORTEST_SENTENCE = 5

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def plan_profiles(max_tokens: int) -> tuple[PlanProfile, ...]:
    """The profiles of a plan for texts of up to `max_tokens` tokens, one-row profiles last.

    The last width is the smallest of `WIDTHS` that holds the longest text, or exactly
    `max_tokens` where none does.
    """
    widths = [width for width in WIDTHS if width < max_tokens]
    widths.append(next((width for width in WIDTHS if width >= max_tokens), max_tokens))
    alone = [PlanProfile(width, 1, 1, 1, 1) for width in widths if width in ONE_ROW_WIDTHS]
    many = [
        PlanProfile(
            width=width,
            min_rows=1,
            opt_rows=max(1, OPT_TOKENS // width),
            max_rows=max(1, MAX_TOKENS // width),
            max_slots=width // SHORTEST_SENTENCE,
        )
        for width in widths
    ]
    return (*many, *alone)


def input_ranges(profile: PlanProfile, inputs: Iterable[str]) -> dict[str, Range]:
    """(min, opt, max) shape of each input of `packed.onnx`.

    Args:
        profile: See `PlanProfile`.
        inputs: The graph's input names: fields of `kosine.backends.rows.fill.Rows`.

    Raises:
        KeyError: An input that `Rows` does not have.
    """
    rows = (profile.min_rows, profile.opt_rows, profile.max_rows)
    # Readers fill a shape up: they always ask for as many slots as the profile has.
    slots = profile.max_slots
    rectangle = _range(*((count, profile.width) for count in rows))
    sentences = _range((1,), (profile.opt_rows * slots,), (profile.max_rows * profile.max_slots,))
    known = {
        "input_ids": rectangle,
        "position_ids": rectangle,
        "segment_ids": rectangle,
        "places": rectangle,
        "pool_ids": rectangle,
        "slots": _range((1,), (slots,), (profile.max_slots,)),
        "sentence_index": sentences,
        "token_index": sentences,
        "last_index": sentences,
    }
    return {name: known[name] for name in inputs}


def _range(low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...]) -> Range:
    return (low, opt, high)
