"""Options and habits that several verbs share."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kosine
from kosine.backends.registry import BACKENDS, DTYPES
from kosine.errors import InputError

__all__ = [
    "add_engine",
    "add_fields",
    "add_json",
    "add_prompt",
    "load_encoder",
    "print_json",
    "printable",
    "prompt_options",
    "read_texts",
]


def add_engine(parser: argparse.ArgumentParser) -> None:
    """--backend, --dtype, --device, --threads."""
    parser.add_argument(
        "--backend", default="auto", metavar="B", help=f"auto, {', '.join(BACKENDS)}"
    )
    parser.add_argument("--dtype", default="auto", metavar="D", help=f"auto, {', '.join(DTYPES)}")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEV",
        help="auto (the CPU; the first GPU for cuda and tensorrt), cpu, cuda, cuda:N",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads inside one call")


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """--prompt-name and --prompt, of which at most one."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--prompt-name", metavar="NAME", help="a prompt of the bundle, by name")
    group.add_argument("--prompt", metavar="TEXT", help="a prompt as text")


def add_fields(parser: argparse.ArgumentParser, *, ids: bool = False) -> None:
    """--text-field, and --id-field where ids are of use."""
    parser.add_argument(
        "--text-field", metavar="F", help="where records have the text (default: text)"
    )
    if ids:
        parser.add_argument("--id-field", metavar="F", help="where records have an id")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def load_encoder(args: argparse.Namespace) -> kosine.Encoder:
    return kosine.load(
        args.bundle,
        backend=args.backend,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
        max_batch_tokens=getattr(args, "batch_tokens", None),
    )


def prompt_options(args: argparse.Namespace) -> dict[str, Any]:
    return {"prompt_name": args.prompt_name, "prompt": args.prompt}


def print_json(value: dict[str, Any]) -> None:
    """One line of UTF-8, whatever the terminal's encoding is: that is what JSON is read as."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # somebody's own stream of str
        sys.stdout.write(line)
        return
    sys.stdout.flush()
    # A lone surrogate (of a file's name that is no UTF-8) becomes its escape, as JSON has it.
    binary.write(line.encode("utf-8", "backslashreplace"))
    binary.flush()


def printable(text: str) -> str:
    """As standard output will show it: "?" for what its encoding does not have."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding, "replace")


def read_texts(name: str, errors: str = "strict") -> Iterator[str]:
    """Texts of a UTF-8 file (or "-" for standard input), one a line.

    A line ends at LF or CRLF, and nowhere else. A blank line is a text. The end of the last line
    starts no further text. A byte order mark at the start is not text.

    Args:
        name: The file.
        errors: "strict", or "surrogateescape" for lines that are not UTF-8: what they hold is
            then no text for an encoder either.
    """
    if name != "-" and Path(name).is_dir():
        raise InputError(f"{name!r} is a folder", limit="a file", remedy="name a UTF-8 text file")
    file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115
    with file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                line = line.removeprefix(codecs.BOM_UTF8)
                if not line:  # the mark is all there is
                    return
            try:
                yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"line {number} of {'standard input' if name == '-' else name!r} is not UTF-8 "
                    f"(byte 0x{line[error.start]:02x} at column {error.start + 1})",
                    limit="UTF-8 text",
                    remedy="convert it, for example with iconv -t UTF-8",
                ) from None
