"""Encode a UTF-8 file, one text a line, into a .npy file.

Lines are split on LF only; a blank line is a text.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.commands import options
from kosine.errors import InputError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="- is standard input")
    parser.add_argument("-o", "--output", metavar="OUT.npy", required=True)
    options.add_engine(parser)
    options.add_prompt(parser)
    parser.add_argument("--truncate-dim", type=int, metavar="N", help="keep the first N dimensions")
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
    began = time.perf_counter()
    vectors = encoder.encode(
        options.read_texts(args.file),
        truncate_dim=args.truncate_dim,
        show_progress_bar=False if args.json else (True if sys.stderr.isatty() else None),
        **options.prompt_options(args),
    )
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
            }
        )
    else:
        sys.stdout.write(
            f"{len(vectors)} texts -> {output} {vectors.shape} in {seconds:.2f} s "
            f"({encoder.backend.name}/{encoder.backend.dtype}); "
            f"{counts['truncated_texts']} truncated, "
            f"{counts['unknown_tokens']} of {counts['tokens']} tokens unknown\n"
        )
    return 0


def _save(output: Path, vectors: NDArray[Any]) -> None:
    """Whole or not at all: a reader of an earlier OUT.npy never sees half of a new one."""
    working = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with working.open("wb") as file:
            np.save(file, vectors)
        working.replace(output)
    finally:
        working.unlink(missing_ok=True)
