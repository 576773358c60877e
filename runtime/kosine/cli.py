"""The `kosine` command: a table of verbs, each imported when it is used.

Exit codes: 0 done; 1 the check failed; 2 wrong usage or bad input, with one line on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from kosine.errors import KosineError, MissingExtra, ParityError

__all__ = ["VERBS", "guarded", "import_verb", "main"]

# verb -> (module with `add_arguments(parser)` and `run(args) -> exit code`, one line of help)
VERBS = {
    "export": ("kosine_export.command", "turn a trained checkpoint into a bundle"),
    "verify": ("kosine.commands.verify", "check a bundle against its canary or its checkpoint"),
    "info": ("kosine.commands.info", "say what a bundle holds"),
    "embed": ("kosine.commands.embed", "encode a file of texts into .npy, .jsonl or .parquet"),
    "score": ("kosine.commands.score", "print the cosine matrix of a few texts"),
    "eval": ("kosine.commands.evaluate", "correlate cosine with human scores over text pairs"),
    "compare": ("kosine.commands.compare", "compare two bundles, or one and stored vectors"),
    "search": ("kosine.commands.search", "find the texts of a file that are most like a query"),
    "serve": ("kosine.commands.serve", "serve bundles over HTTP, to OpenAI's and other clients"),
    "bench": ("kosine_bench.command", "measure kosine and its rivals side by side"),
    "completion": ("kosine.completion", "print a script of completions for bash, zsh or fish"),
}
OS_REMEDIES = {
    errno.ENOENT: "name one that is there",
    errno.EACCES: "give this user the right to it, or name another",
    errno.ENOSPC: "make room on that disk, or write to another",
    errno.ENOMEM: "free memory",
}
EXTRA_OF = {"kosine_export": "onnx,export", "kosine_bench": "bench"}


class Parser(argparse.ArgumentParser):
    """argparse, but wrong usage is one line."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.splitlines())
        self.exit(2, f"{self.prog}: {line} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Closed by whoever started this. The next file that is opened would be taken for it.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        # A terminal of another encoding, or a file's name of none, costs characters, not the run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    logging.basicConfig(level=logging.WARNING, format="kosine: %(message)s")
    try:
        if not words or words[0] not in VERBS:
            return _top(words)
        return guarded(lambda: _run(words[0], words[1:]))
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # It cannot be written, which was said above or is of no interest: the interpreter is
            # not to try again when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def guarded(run: Callable[[], int]) -> int:
    """The exit code of `run`; errors that kosine knows become a line on stderr and a code."""
    try:
        return run()
    except ParityError as error:
        sys.stderr.write(error.report and error.report + "\n")
        _say(error)
        return 1
    except (KosineError, OSError) as error:
        _say(error)
        return 2
    except KeyboardInterrupt:
        return 130


def _top(words: list[str]) -> int:
    parser = Parser(
        prog="kosine",
        description="Sentence encoders: checkpoint to bundle, text to unit vectors.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items()),
    )
    parser.add_argument("--version", action="version", version=f"kosine {_version()}")
    parser.add_argument("command", choices=list(VERBS), metavar="COMMAND")
    parser.parse_args(words)  # prints help or the complaint, and exits
    return 2


def _run(verb: str, words: list[str]) -> int:
    module = import_verb(verb, VERBS[verb][0])
    parser = Parser(prog=f"kosine {verb}", description=module.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    args = parser.parse_args(words)
    try:
        code: int = module.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        return 0  # the reader went away (`| head`)
    return code


def import_verb(verb: str, name: str) -> Any:
    """The module of a verb, or MissingExtra."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get(name.partition(".")[0])
        if extra is None:
            raise
        raise MissingExtra(
            f"kosine {verb} needs the package {error.name}, which is not installed",
            remedy=f"pip install 'kosine[{extra}]'",
        ) from error


def _say(error: Exception) -> None:
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, KosineError):
        remedy = OS_REMEDIES.get(error.errno or 0, "name another file or folder")
        text = f"{error.filename or 'input or output'}: {error.strerror or error}; {remedy}"
    with contextlib.suppress(OSError):  # nobody is to be told: the code says it
        sys.stderr.write(f"kosine: {' '.join(text.splitlines())}\n")


def _version() -> str:
    import kosine

    return kosine.__version__


if __name__ == "__main__":
    sys.exit(main())
