"""Encode a UTF-8 file, one text a line, into a .npy file.

A line ends at LF or CRLF and nowhere else; a blank line is a text; a byte order mark at the start
is not text. Long texts are cut to the model's max_tokens. A line that cannot be encoded (not UTF-8,
a NUL, one word of 256 KiB, a vector that is not finite) ends the run with an error that gives its
number, and no file is written; with --on-error null its row is NaN and its number is reported on
stderr, or in the JSON as "failed".
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.commands import options
from kosine.encoder import WINDOW, Encoder
from kosine.errors import InputError, KosineError, NonFiniteVector, TextError
from kosine.progress import progress_bar

__all__ = ["add_arguments", "run"]

Failure = tuple[int, str]  # a line's number from 1, what is wrong with it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="- is standard input")
    parser.add_argument("-o", "--output", metavar="OUT.npy", required=True)
    options.add_engine(parser)
    options.add_prompt(parser)
    parser.add_argument("--truncate-dim", type=int, metavar="N", help="keep the first N dimensions")
    parser.add_argument(
        "--on-error",
        choices=("fail", "null"),
        default="fail",
        help="what a bad line does: end the run (default), or leave a NaN row and a report",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if not output.parent.is_dir():
        raise InputError(
            f"{str(output.parent)!r} is no folder", remedy="choose an existing folder for -o"
        )
    if output.exists() and not output.is_file():
        # Replacing it would put a file where a device, a pipe or a folder was.
        raise InputError(f"{args.output!r} is no regular file", remedy="name a file for -o")
    if args.file != "-" and not Path(args.file).exists():
        raise InputError(f"no file {args.file!r}", remedy="name a file, or - for standard input")
    encoder = options.load_encoder(args)
    show = False if args.json else (True if sys.stderr.isatty() else None)
    settings = {"truncate_dim": args.truncate_dim, **options.prompt_options(args)}
    began = time.perf_counter()
    vectors, failed = _encode_lines(encoder, args.file, args.on_error == "null", show, settings)
    seconds = time.perf_counter() - began
    _save(output, vectors)
    counts = encoder.counts()
    if args.json:
        options.print_json(
            {
                "output": str(output),
                "shape": list(vectors.shape),
                "seconds": round(seconds, 3),
                "backend": encoder.backend.name,
                "dtype": encoder.backend.dtype,
                "fingerprint": encoder.fingerprint,
                **counts,
                "failed": [{"line": line, "error": problem} for line, problem in failed],
            }
        )
    else:
        for line, problem in failed:
            sys.stderr.write(f"kosine: line {line} {problem}; its row is NaN\n")
        sys.stdout.write(
            f"{len(vectors)} texts -> {output} {vectors.shape} in {seconds:.2f} s "
            f"({encoder.backend.name}/{encoder.backend.dtype}); "
            f"{counts['truncated_texts']} truncated, "
            f"{counts['unknown_tokens']} of {counts['tokens']} tokens unknown"
            f"{f'; {len(failed)} rows are NaN' if failed else ''}\n"
        )
    return 0


def _encode_lines(
    encoder: Encoder, name: str, null: bool, show: bool | None, settings: dict[str, Any]
) -> tuple[NDArray[Any], list[Failure]]:
    """Vectors of all lines; with `null`, NaN where a line failed, and which did.

    Raises:
        KosineError: Without `null`, for the first line that fails, by its number.
    """
    # What is wrong with the options would be wrong with every line: that ends the run either way.
    parts = [encoder.encode([], **settings)]
    encoder.count_tokens("", settings["prompt_name"], settings["prompt"])
    failed: list[Failure] = []
    texts = options.read_texts(name, errors="surrogateescape" if null else "strict")
    line = 1
    with progress_bar(None, show, WINDOW) as bar:
        while window := list(islice(texts, WINDOW)):
            # Halved until the bad lines stand alone: what is good is encoded in large batches.
            todo = [window]
            while todo:
                part = todo.pop()
                try:
                    parts.append(encoder.encode(part, show_progress_bar=False, **settings))
                except (TextError, NonFiniteVector) as error:
                    if len(part) > 1:
                        middle = len(part) // 2
                        todo += [part[middle:], part[:middle]]
                        continue
                    problem = _problem(error, part[0])
                    if not null:
                        raise type(error)(
                            f"line {line} {problem}", limit=error.limit, remedy=error.remedy
                        ) from error
                    failed.append((line, problem))
                    parts.append(np.full_like(parts[0], np.nan, shape=(1, parts[0].shape[1])))
                line += len(part)
                if bar is not None:
                    bar.update(len(part))
    return np.concatenate(parts), failed


def _problem(error: KosineError, text: str) -> str:
    """What is wrong with a line, to be read after its number."""
    if isinstance(error, NonFiniteVector):
        return "gives a vector that is not finite"
    if not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text):
        return "is not UTF-8"
    return error.problem.removeprefix("text 0 ")


def _save(output: Path, vectors: NDArray[Any]) -> None:
    """Whole or not at all: a reader of an earlier OUT.npy never sees half of a new one."""
    working = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with working.open("wb") as file:
            np.save(file, vectors)
        working.replace(output)
    finally:
        working.unlink(missing_ok=True)
