"""Encode a file of texts into vectors: .npy, .jsonl, .parquet, or JSON lines on standard output.

FILE is one UTF-8 text a line, or records: a .csv, .jsonl or .parquet file with the text in
--text-field (default: text). Standard input is lines, or JSON lines where --text-field is given. A
line ends at LF or CRLF and nowhere else; a blank line is a text; a byte order mark at the start is
not text. Long texts are cut to the model's max_tokens. Equal texts are computed once.

.jsonl and .parquet hold an id and a vector a row: --id-field's, or the row's number from 0. The
fingerprint is in the metadata of a .parquet file, as kosine.fingerprint.

A record that cannot be encoded (not UTF-8, a NUL, one word of 256 KiB, a vector that is not finite)
ends the run, and no file is written; with --on-error null its vector is null (NaN in .npy) and its
number is reported on stderr, or in the JSON as "failed".

A run that was killed or interrupted leaves .OUT.part and .OUT.resume; the same command with
--resume goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import kosine
from kosine.commands import options
from kosine.encoder import WINDOW, Encoder
from kosine.errors import InputError, KosineError, UnknownOption
from kosine.jobs.checkpoint import Checkpoint, Progress
from kosine.jobs.encoding import RecordEncoder, windows
from kosine.jobs.inputs import open_input
from kosine.jobs.outputs import SUFFIXES, Rows, open_output, part_of
from kosine.progress import progress_bar
from kosine.quantization import PRECISIONS

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="- is standard input")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="OUT.npy, OUT.jsonl, OUT.parquet, or - for JSON lines on standard output",
    )
    options.add_engine(parser)
    options.add_prompt(parser)
    parser.add_argument("--truncate-dim", type=int, metavar="N", help="keep the first N dimensions")
    parser.add_argument(
        "--precision",
        default="float32",
        metavar="P",
        help=f"what the vectors are written as: {', '.join(PRECISIONS)}",
    )
    options.add_fields(parser, ids=True)
    parser.add_argument(
        "--batch-tokens", type=int, metavar="N", help="most tokens in one call of the engine"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on where a killed run with this -o stopped"
    )
    parser.add_argument(
        "--on-error",
        choices=("fail", "null"),
        default="fail",
        help="what a bad record does: end the run (default), or leave a null and a report",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    path = _checked_output(args)
    source = open_input(args.file, args.text_field, args.id_field)
    if args.resume and not source.is_file:
        raise InputError(
            f"--resume cannot read {source.title} again",
            limit="a file",
            remedy="save it to a file first, or leave out --resume",
        )
    encoder = options.load_encoder(args)
    job = RecordEncoder(
        encoder,
        source,
        keep_going=args.on_error == "null",
        precision=args.precision,
        truncate_dim=args.truncate_dim,
        **options.prompt_options(args),
    )
    began = time.perf_counter()
    digest, total = source.measure() if source.is_file else (None, None)
    checkpoint, progress = None, Progress()
    if path is not None:
        checkpoint = Checkpoint(path, _identity(args, encoder, digest))
        if args.resume:
            progress = checkpoint.read()
        else:
            checkpoint.clear()
    resumed_at = progress.rows
    _write(args, path, job, checkpoint, progress, total)
    _report(args, encoder, progress, resumed_at, job, time.perf_counter() - began)
    return 0


def _checked_output(args: argparse.Namespace) -> Path | None:
    """Where to write; None for standard output."""
    if args.output == "-":
        for given, option in ((args.json, "--json"), (args.resume, "--resume")):
            if given:
                raise InputError(
                    f"{option} does not go with -o -",
                    limit="the vectors alone on standard output",
                    remedy="name a file for -o, or leave it out",
                )
        return None
    path = Path(args.output)
    if not path.parent.is_dir():
        raise InputError(
            f"{str(path.parent)!r} is no folder", remedy="choose an existing folder for -o"
        )
    if path.exists() and not path.is_file():
        # Replacing it would put a file where a device, a pipe or a folder was.
        raise InputError(f"{args.output!r} is no regular file", remedy="name a file for -o")
    if path.exists() and Path(args.file).exists() and path.samefile(args.file):
        raise InputError(f"-o {args.output!r} is the input", remedy="name another file for -o")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UnknownOption(
            f"unknown ending {path.suffix!r} of {args.output!r}",
            limit=f"known: {', '.join(SUFFIXES)}; - is standard output",
            remedy="name a file for -o with one of them",
        )
    if suffix == ".npy" and args.id_field is not None:
        raise InputError(
            "a .npy file has no place for --id-field",
            limit=".jsonl, .parquet or standard output",
            remedy="name such a file for -o, or leave out --id-field",
        )
    if suffix == ".npy" and args.on_error == "null" and args.precision != "float32":
        raise InputError(
            f"a .npy file of precision {args.precision!r} has no null for --on-error null",
            limit=".jsonl, .parquet, or precision 'float32'",
            remedy="name such a file for -o",
        )
    return path


def _identity(args: argparse.Namespace, encoder: Encoder, digest: str | None) -> dict[str, Any]:
    """What a run that is resumed has to have in common with the one before."""
    prompt = encoder.prompt_text(args.prompt_name, args.prompt)
    return {
        "the input's sha256": digest,
        "the bundle's fingerprint": encoder.fingerprint,
        "the prompt's sha256": sha256(prompt.encode("utf-8", "replace")).hexdigest(),
        "--truncate-dim": args.truncate_dim,
        "--precision": args.precision,
        "--text-field": args.text_field,
        "--id-field": args.id_field,
        "--on-error": args.on_error,
    }


def _write(
    args: argparse.Namespace,
    path: Path | None,
    job: RecordEncoder,
    checkpoint: Checkpoint | None,
    progress: Progress,
    total: int | None,
) -> None:
    """Everything that is not written yet; `progress` says in the end what is done."""
    if path is not None and progress.whole and not part_of(path).exists():
        assert checkpoint is not None
        checkpoint.clear()  # killed after OUT was in its place
        return
    encoder, source = job.encoder, job.source
    metadata = {
        "kosine.fingerprint": encoder.fingerprint,
        "kosine.bundle": encoder.bundle.path.name,
        "kosine.precision": args.precision,
        "kosine.version": kosine.__version__,
    }
    counts, repeated = dict(progress.counts), progress.repeated
    show = False if args.json else (True if sys.stderr.isatty() else None)
    output = open_output(path, job.like, metadata, progress.bytes, progress.rows)
    with closing(output), progress_bar(total, show, WINDOW, progress.rows) as bar:
        try:
            for window in windows(islice(source.records(), progress.rows, None)):
                found = job.encode(window)
                ids = None if source.id_field is None else [record.id for record in window]
                output.append(Rows(progress.rows, ids, found.vectors, found.missing))
                progress.rows += len(window)
                progress.repeated = repeated + job.repeated
                progress.counts = _sum(counts, encoder.counts())
                progress.add_failures(found.failures)
                if checkpoint is not None:
                    checkpoint.write(progress, output)
                if bar is not None:
                    bar.update(len(window))
            if checkpoint is not None:
                progress.whole = True
                checkpoint.write(progress, output, now=True)
            output.finish()
        except KeyboardInterrupt:
            if checkpoint is not None and source.is_file:
                sys.stderr.write("kosine: interrupted; the same command with --resume goes on\n")
            elif checkpoint is not None:
                checkpoint.discard()  # nobody can go on with it
            raise
        except (KosineError, OSError):
            if checkpoint is not None and not args.resume:
                checkpoint.discard()
            raise
    if checkpoint is not None:
        checkpoint.clear()


def _sum(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + count for name, count in b.items()}


def _report(
    args: argparse.Namespace,
    encoder: Encoder,
    done: Progress,
    resumed_at: int,
    job: RecordEncoder,
    seconds: float,
) -> None:
    counts = {**_sum({}, encoder.counts()), **done.counts}
    shape = (done.rows, job.like.shape[1])
    null = "NaN" if args.output.lower().endswith(".npy") else "null"
    if args.json:
        computed = counts.pop("texts")
        options.print_json(
            {
                "output": args.output,
                "shape": list(shape),
                "seconds": round(seconds, 3),
                "backend": encoder.backend.name,
                "dtype": encoder.backend.dtype,
                "fingerprint": encoder.fingerprint,
                "texts": done.rows - done.failed,
                "computed_texts": computed,
                "repeated_texts": done.repeated,
                **counts,
                "resumed_at": resumed_at,
                "failed_texts": done.failed,
                "failed": [
                    {job.source.unit: number, "error": problem} for number, problem in done.failures
                ],
            }
        )
        return
    for number, problem in done.failures:
        what = "row" if null == "NaN" else "vector"
        sys.stderr.write(f"kosine: {job.source.unit} {number} {problem}; its {what} is {null}\n")
    if done.failed > len(done.failures):
        sys.stderr.write(f"kosine: and {done.failed - len(done.failures)} more\n")
    stream = sys.stderr if args.output == "-" else sys.stdout
    into = "standard output" if args.output == "-" else args.output
    stream.write(
        f"{done.rows} texts -> {into} {shape} in {seconds:.2f} s "
        f"({encoder.backend.name}/{encoder.backend.dtype}); "
        f"{f'{resumed_at} of them from the run before; ' if resumed_at else ''}"
        f"{f'{done.repeated} repeated; ' if done.repeated else ''}"
        f"{counts['truncated_texts']} truncated, "
        f"{counts['unknown_tokens']} of {counts['tokens']} tokens unknown"
        f"{f'; {done.failed} rows are {null}' if done.failed else ''}\n"
    )
