"""Print the cosine of every text with every other."""

from __future__ import annotations

import argparse
import sys
import time
import unicodedata

from kosine.commands import options
from kosine.scoring import cosine

__all__ = ["add_arguments", "clip", "matrix", "run"]

LABEL_COLUMNS = 44


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("texts", metavar="TEXT", nargs="+")
    options.add_engine(parser)
    options.add_prompt(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    encoder = options.load_encoder(args)
    began = time.perf_counter()
    vectors = encoder.encode(args.texts, **options.prompt_options(args))
    seconds = time.perf_counter() - began
    scores = cosine(vectors, vectors).tolist()
    engine = f"{encoder.backend.name}/{encoder.backend.dtype}"
    if args.json:
        options.print_json(
            {
                "texts": args.texts,
                "scores": scores,
                "seconds": round(seconds, 6),
                "backend": encoder.backend.name,
                "dtype": encoder.backend.dtype,
            }
        )
    else:
        sys.stdout.write(matrix(args.texts, scores))
        sys.stdout.write(f"{len(args.texts)} texts on {engine} in {1000 * seconds:.1f} ms\n")
    return 0


def matrix(texts: list[str], scores: list[list[float]]) -> str:
    """The scores as a table that lines up in a terminal, Hangul being two columns wide."""
    shown = [clip(text) for text in texts]
    wide = max(_columns(text) for text in shown)
    lines = [" " * (wide + 5) + "".join(f"{i:>8}" for i in range(1, len(texts) + 1))]
    for i, (text, row) in enumerate(zip(shown, scores, strict=True), 1):
        label = f"{i:>3}  {text}{' ' * (wide - _columns(text))}"
        lines.append(label + "".join(f"{score:>8.4f}" for score in row))
    return "\n".join(lines) + "\n"


def clip(text: str) -> str:
    """A text on one line of a table: what cannot be shown replaced, what is too long cut."""
    clean = options.printable("".join(c if c.isprintable() else " " for c in text))
    if _columns(clean) <= LABEL_COLUMNS:
        return clean
    kept = ""
    for character in clean:
        if _columns(kept + character) >= LABEL_COLUMNS:
            break
        kept += character
    return kept + options.printable("…")


def _columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
