"""What a vocabulary can spell of Hangul."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["has_hangul", "spells_decomposed"]

# Lower-casing strips accents, which decomposes Hangul: a vocabulary that cannot spell these
# turns every syllable into [UNK].
INITIAL_JAMO = tuple(chr(code) for code in range(0x1100, 0x1113))
MEDIAL_JAMO = tuple(chr(code) for code in range(0x1161, 0x1176))
HANGUL_SYLLABLES = ("\uac00", "\ud7a3")


def has_hangul(pieces: Mapping[str, int]) -> bool:
    """Whether some piece has a syllable."""
    first, last = HANGUL_SYLLABLES
    return any(first <= character <= last for token in pieces for character in token)


def spells_decomposed(pieces: Mapping[str, int]) -> bool:
    """Whether every syllable can be spelled in its parts."""
    return all(jamo in pieces for jamo in INITIAL_JAMO) and all(
        f"##{jamo}" in pieces for jamo in MEDIAL_JAMO
    )
