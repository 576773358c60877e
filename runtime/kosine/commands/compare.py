"""Compare two bundles, or a bundle and vectors stored earlier, on your own texts.

A is a bundle. B is a bundle too, or a .npy, .jsonl or .parquet file of float vectors that
`kosine embed` wrote for the same texts. Shown are the lowest cosine of a text's two vectors, the
largest change of the cosine of two texts, how many of a text's 10 nearest neighbours stay, and
which texts move most. Between vectors of different lengths there is no cosine; scores and
neighbours are compared all the same.

Exits 1 where --min-cosine or --min-overlap is given and missed: the gate before an upgrade.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kosine
from kosine.commands import options
from kosine.commands.score import clip
from kosine.errors import InputError
from kosine.jobs.comparison import Comparison, compare
from kosine.jobs.encoding import RecordEncoder, windows
from kosine.jobs.inputs import Record, open_input
from kosine.jobs.stored import read_stored
from kosine.progress import progress_bar

__all__ = ["add_arguments", "run"]

SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="A")
    parser.add_argument(
        "other", metavar="B", help="a bundle, or vectors in a file that embed wrote"
    )
    parser.add_argument("--texts", metavar="FILE", required=True, help="as kosine embed reads them")
    options.add_fields(parser)
    parser.add_argument("--min-cosine", type=float, metavar="C", help="exit 1 below it")
    parser.add_argument(
        "--min-overlap",
        type=float,
        metavar="SHARE",
        help="of the 10 nearest neighbours, 0 to 1, on average: exit 1 below it",
    )
    options.add_engine(parser)
    options.add_prompt(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    for option, least in (("min_cosine", -1.0), ("min_overlap", 0.0)):
        gate = getattr(args, option)
        if gate is not None and not least <= gate <= 1:
            flag = "--" + option.replace("_", "-")
            raise InputError(
                f"{flag} is {gate}", limit=f"{least:g} to 1", remedy="choose one of these"
            )
    source = open_input(args.texts, args.text_field)
    if not source.is_file:
        raise InputError(f"{source.title} is read twice", limit="a file", remedy="save it first")
    stored = read_stored(Path(args.other))
    records = list(source.records())
    if not records:
        raise InputError(f"{source.title} holds no text", remedy="name a file of texts")
    rows = len(records) if stored is None else len(stored.vectors)
    if rows != len(records):
        raise InputError(
            f"{args.other!r} has {rows} rows for the {len(records)} texts of {args.texts!r}",
            limit="one row a text",
            remedy="name the texts that it was made from",
        )
    dim = None if stored is None else stored.vectors.shape[1]
    a, engine, fingerprint = _encoded(args, args.bundle, records, dim)
    other: tuple[NDArray[Any], str | None, str | None]
    if stored is None:
        other = _encoded(args, args.other, records, None)
    else:
        other = stored.vectors, None, stored.fingerprint
    b, other_engine, other_fingerprint = other
    found = compare(a, b)
    if args.min_cosine is not None and found.cosines is None:
        raise InputError(
            f"vectors of {a.shape[1]} and {b.shape[1]} dimensions have no cosine for --min-cosine",
            limit="as many dimensions on both sides",
            remedy="use --min-overlap",
        )
    passed = not (
        (args.min_cosine is not None and (found.min_cosine or 0.0) < args.min_cosine)
        or (args.min_overlap is not None and found.overlap < args.min_overlap)
    )
    sides = [
        {"path": args.bundle, "engine": engine, "fingerprint": fingerprint, "dim": a.shape[1]},
        {
            "path": args.other,
            "engine": other_engine,
            "fingerprint": other_fingerprint,
            "dim": b.shape[1],
        },
    ]
    if args.json:
        options.print_json(
            {
                "texts": len(records),
                "a": sides[0],
                "b": sides[1],
                "min_cosine": found.min_cosine,
                "max_score_change": float(found.score_changes.max()),
                "neighbours": found.neighbours,
                "overlap": found.overlap,
                "most_moved": [
                    _moved(found, records, i, source.unit) for i in found.most_moved(SHOWN)
                ],
                "passed": passed,
            }
        )
    else:
        sys.stdout.write(_table(args, found, records, sides, source.unit, passed))
    return 0 if passed else 1


def _encoded(
    args: argparse.Namespace, bundle: str, records: list[Record], dim: int | None
) -> tuple[NDArray[Any], str, str]:
    """(n, d) vectors of all texts, the engine, and the fingerprint."""
    encoder = kosine.load(
        bundle,
        backend=args.backend,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
    )
    source = open_input(args.texts, args.text_field)
    if dim is not None and dim > encoder.dim:
        dim = None  # of another model: their lengths differ, and there is no cosine
    job = RecordEncoder(encoder, source, truncate_dim=dim, **options.prompt_options(args))
    vectors = np.empty((len(records), job.like.shape[1]), np.float32)
    begin = 0
    with progress_bar(len(records), False if args.json else None, len(records) // 2) as bar:
        for window in windows(records):
            vectors[begin : begin + len(window)] = job.encode(window).vectors
            begin += len(window)
            if bar is not None:
                bar.update(len(window))
    return vectors, f"{encoder.backend.name}/{encoder.backend.dtype}", encoder.fingerprint


def _moved(found: Comparison, records: list[Record], i: int, unit: str) -> dict[str, Any]:
    return {
        unit: records[i].number,
        "cosine": None if found.cosines is None else float(found.cosines[i]),
        "max_score_change": float(found.score_changes[i]),
        "overlap": float(found.overlaps[i]),
        "text": records[i].text,
    }


def _table(
    args: argparse.Namespace,
    found: Comparison,
    records: list[Record],
    sides: list[dict[str, Any]],
    unit: str,
    passed: bool,
) -> str:
    lowest = "-" if found.min_cosine is None else f"{found.min_cosine:.8f}"
    lines = [f"{len(records)} texts"]
    lines += [
        f"  {name}  {side['path']}: {side['engine'] or 'stored vectors'}, {side['dim']} dimensions"
        for name, side in zip("AB", sides, strict=True)
    ]
    lines += [
        f"lowest cosine     {lowest}",
        f"largest change    {found.score_changes.max():.8f} of the cosine of two texts",
        f"top-{found.neighbours} overlap    {100 * found.overlap:.2f} %",
        "",
        f"{'cosine':>10} {'change':>10} {'overlap':>8}  most moved",
    ]
    for i in found.most_moved(SHOWN):
        own = "-" if found.cosines is None else f"{found.cosines[i]:.6f}"
        lines.append(
            f"{own:>10} {found.score_changes[i]:>10.6f} {100 * found.overlaps[i]:>6.0f} %  "
            f"{unit} {records[i].number}: {clip(records[i].text)}"
        )
    if args.min_cosine is not None or args.min_overlap is not None:
        lines.append("PASSED" if passed else "FAILED")
    return "\n".join(map(options.printable, lines)) + "\n"
