"""Correlate model scores with human scores over pairs of texts.

PAIRS is a UTF-8 file of tab-separated lines (comma-separated where its name ends in .csv; a quoted
cell may hold line ends). A byte order mark at its start and CR at line ends are not text. With a
header the columns go by name (default: sentence1,sentence2,score); without one by number,
counted from 1.
Prints Pearson and Spearman correlations, times 100, of cosine, dot product, and negated
Manhattan and Euclidean distance. As in sentence-transformers' EmbeddingSimilarityEvaluator,
vectors are not normalised for them unless the checkpoint does it itself.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.commands import options
from kosine.errors import InputError
from kosine.scoring import pairwise

__all__ = ["add_arguments", "correlations", "read_pairs", "run"]

Row = tuple[int, list[str]]  # the number of its (last) line, its cells
DEFAULT_COLUMNS = "sentence1,sentence2,score"
MEASURES = {"cosine": "cosine", "dot": "dot", "manhattan": "manhattan", "euclidean": "euclidean"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("pairs", metavar="PAIRS")
    parser.add_argument(
        "--columns",
        default=DEFAULT_COLUMNS,
        metavar="A,B,SCORE",
        help=f"names, or numbers from 1 (default: {DEFAULT_COLUMNS})",
    )
    options.add_engine(parser)
    options.add_prompt(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    left, right, human = read_pairs(args.pairs, args.columns)
    encoder = options.load_encoder(args)
    began = time.perf_counter()
    both = encoder.encode(
        [*left, *right],
        normalize_embeddings=False,
        show_progress_bar=False if args.json else None,
        **options.prompt_options(args),
    )
    seconds = time.perf_counter() - began
    a, b = both[: len(left)].astype(np.float64), both[len(left) :].astype(np.float64)
    found = {name: correlations(pairwise(a, b, name), human) for name in MEASURES}
    if args.json:
        options.print_json(
            {
                "pairs": len(human),
                "seconds": round(seconds, 3),
                "backend": encoder.backend.name,
                "dtype": encoder.backend.dtype,
                **found,
            }
        )
    else:
        sys.stdout.write(f"{'':<10} {'Pearson':>8} {'Spearman':>8}\n")
        for name, figures in found.items():
            sys.stdout.write(
                f"{name:<10} {100 * figures['pearson']:>8.2f} {100 * figures['spearman']:>8.2f}\n"
            )
        sys.stdout.write(
            f"{len(human)} pairs on {encoder.backend.name}/{encoder.backend.dtype} "
            f"in {seconds:.1f} s\n"
        )
    return 0


def read_pairs(name: str, columns: str) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """The two texts and the human score of every line.

    Raises:
        InputError: No such column, a line that is too short, a score that is no number, fewer
            than two pairs, or equal scores throughout.
    """
    wanted = columns.split(",")
    if len(wanted) != 3:
        raise InputError(
            f"--columns {columns!r} names {len(wanted)} columns",
            limit="exactly 3",
            remedy="write text, text, score, separated by commas",
        )
    try:
        rows = _comma_separated(name) if Path(name).suffix.lower() == ".csv" else _tabbed(name)
    except csv.Error as error:
        raise InputError(
            f"{name!r} is not readable as comma-separated text: {error}",
            limit=f"columns of at most {csv.field_size_limit()} characters",
            remedy="look for a quote that is never closed, or write the file with tabs",
        ) from None
    places, first = _places(rows[0][1] if rows else [], wanted, name)
    left, right, human = [], [], []
    for number, row in rows[first:]:
        if not row:
            continue
        try:
            a, b, score = (row[place] for place in places)
            human.append(float(score))
            if not math.isfinite(human[-1]):
                raise ValueError(score)
        except (IndexError, ValueError):
            raise InputError(
                f"line {number} of {name!r} has {len(row)} columns or a score that is no number",
                limit=f"columns {columns}",
                remedy="check --columns and the separator (tabs; commas in a .csv)",
            ) from None
        left.append(a)
        right.append(b)
    if len(human) < 2 or min(human) == max(human):
        raise InputError(
            f"{name!r} holds {len(human)} pairs with {len(set(human))} different scores",
            limit="at least 2 pairs with different scores",
            remedy="correlations need scores that vary",
        )
    return left, right, np.array(human)


def correlations(scores: NDArray[Any], human: NDArray[np.float64]) -> dict[str, float]:
    """Pearson and Spearman correlation of two (n,) arrays, from -1 to 1.

    Raises:
        InputError: One side has the same value throughout: there is no correlation then.
    """
    for side, values in (("model", scores), ("human", human)):
        if values.min() == values.max():
            raise InputError(
                f"all {len(values)} {side} scores are {float(values[0]):g}",
                limit="correlations need scores that vary",
                remedy="give pairs that differ in how alike they are",
            )
    return {
        "pearson": float(np.corrcoef(scores, human)[0, 1]),
        "spearman": float(np.corrcoef(_ranks(scores), _ranks(human))[0, 1]),
    }


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def _tabbed(name: str) -> list[Row]:
    lines = enumerate(options.read_texts(name), 1)
    return [(number, line.split("\t") if line.strip() else []) for number, line in lines]


def _comma_separated(name: str) -> list[Row]:
    """A cell may hold line ends: the reader gets the file as it is, and finds the rows itself."""
    if Path(name).is_dir():
        return _tabbed(name)  # says so
    try:
        with Path(name).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError:
        return _tabbed(name)  # says which line is not UTF-8


def _places(first: list[str], wanted: list[str], name: str) -> tuple[list[int], int]:
    """Column numbers from 0, and how many header rows to pass over."""
    header = [cell.strip() for cell in first]
    if all(column in header for column in wanted):
        return [header.index(column) for column in wanted], 1
    if all(column.isascii() and column.isdigit() and int(column) > 0 for column in wanted):
        places = [int(column) - 1 for column in wanted]
        return places, 0 if places[2] < len(header) and _is_number(header[places[2]]) else 1
    raise InputError(
        f"{name!r} has no columns {','.join(wanted)}",
        limit=f"its first line has {len(header)} columns",
        remedy="pass --columns with three names from its first line, or three numbers from 1",
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
