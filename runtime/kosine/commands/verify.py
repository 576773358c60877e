"""Check a bundle on the machine at hand; exit 1 when it falls short.

Alone: every file's sha256, then the canary (the 64 texts that PyTorch encoded at export) through
the tokenizer and the backend, with no PyTorch. With --against CHECKPOINT: against PyTorch itself,
which needs the extra 'torch'.

Either way float32 comes first, whatever --dtype says: its gate alone is narrow enough to check
the weights. Then comes the dtype that was named, or the one that "auto" takes here.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from kosine.backend import Backend
from kosine.backends.device import is_cuda
from kosine.backends.registry import candidates, capabilities, make_backend
from kosine.bundle import Bundle
from kosine.bundle.canary import GATES, MAX_NORM_ERROR, Canary, Comparison, replay
from kosine.commands import options
from kosine.encoder import Encoder
from kosine.errors import InputError, KosineError, MissingExtra

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--against", metavar="CHECKPOINT", help="folder or hub id to compare with")
    parser.add_argument("--base", metavar="DIR", help="base model, where CHECKPOINT is an adapter")
    parser.add_argument("--revision", metavar="R", help="of the hub id")
    parser.add_argument("--allow-pickle", action="store_true", help="let it read pytorch_model.bin")
    parser.add_argument("--texts", metavar="FILE", help="your own texts, one a line")
    options.add_engine(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.against is None and (args.base or args.texts or args.revision or args.allow_pickle):
        raise InputError(
            "--base, --texts, --revision and --allow-pickle go with --against",
            remedy="name the checkpoint to compare with, or leave them out",
        )
    bundle = Bundle(args.bundle)
    tried = candidates(args.backend, args.dtype, args.device)
    bundle.verify_all()
    kind, check = _canary_check(bundle) if args.against is None else _parity_check(bundle, args)
    reports, taken, note = _reports(bundle, args, tried, check)
    # What "auto" passes over is shown, and no fault of the bundle's: it runs in what is taken.
    passed = reports[0].passed and taken.passed
    if args.json:
        checks = [report.to_json() for report in reports]
        found = {**taken.to_json(), "passed": passed, "checks": checks, "note": note}
        options.print_json({"bundle": str(bundle.path), "check": kind, **found})
    else:
        lines = [report.table() for report in reports]
        lines += [note] if note else []
        lines += [
            f"{report.backend}/{report.dtype} falls short of its gate: auto passes over it"
            for report in reports
            if passed and not report.passed
        ]
        lines.append(f"{bundle.path.name}: {'PASSED' if passed else 'FAILED'}")
        sys.stdout.write("\n".join(lines) + "\n")
    return 0 if passed else 1


class Report(Protocol):
    """What one engine gave, held against the reference."""

    @property
    def backend(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def passed(self) -> bool: ...

    def to_json(self) -> dict[str, Any]: ...
    def table(self) -> str: ...


Check = Callable[[Backend], Report]


def _reports(
    bundle: Bundle, args: argparse.Namespace, tried: list[tuple[str, str]], check: Check
) -> tuple[list[Report], Report, str]:
    """The reports, float32 first, the one of the engine that these options take, and a note.

    One engine at a time is in memory.
    """
    backend, note = _float32(bundle, args)
    with closing(backend):
        exact = check(backend)
    reports, taken = [exact], None
    errors: list[KosineError] = []
    for name, dtype in tried:
        if not note and (name, dtype) == (exact.backend, exact.dtype):
            taken = exact
        else:
            try:
                backend = make_backend(
                    bundle, backend=name, dtype=dtype, device=args.device, threads=args.threads
                )
                with closing(backend):
                    taken = check(backend)
            except InputError:
                raise
            except KosineError as error:  # not on this machine, or it cannot run
                errors.append(error)
                continue
            reports.append(taken)
        if taken.passed:
            break
    if taken is None:
        raise errors[-1]
    return reports, taken, note


def _float32(bundle: Bundle, args: argparse.Namespace) -> tuple[Backend, str]:
    """The engine that checks the weights, and a note where it is not the one that was asked for."""

    def make(backend: str, device: str) -> Backend:
        return make_backend(
            bundle,
            backend=backend,
            dtype="float32",
            device=device,
            threads=args.threads,
            canary=False,  # it is replayed in full
        )

    if args.backend == "auto" or "float32" in capabilities(args.backend).dtypes:
        try:
            return make(args.backend, args.device), ""
        except KosineError:
            if args.backend != "auto" or not is_cuda(args.device):
                raise
    backend = make("auto", "auto")
    asked = args.device if args.backend == "auto" else f"backend {args.backend}"
    return backend, f"there is no float32 on {asked}: {backend.name} ran it on the CPU"


# The canary


@dataclass(frozen=True, slots=True)
class Replayed:
    """The canary on one engine. `ids_equal` counts the texts whose token ids are the canary's."""

    backend: str
    dtype: str
    reference: str
    ids_equal: int
    found: Comparison

    @property
    def passed(self) -> bool:
        return self.found.passes(GATES[self.dtype]) and self.ids_equal == self.found.texts

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "backend": self.backend,
            "dtype": self.dtype,
            "reference": self.reference,
            "ids_equal": self.ids_equal,
            **self.found.to_json(),
            "gate": GATES[self.dtype].to_json(),
        }

    def table(self) -> str:
        found = self.found
        return "\n".join(
            (
                f"{self.backend}/{self.dtype}",
                f"  canary         {found.texts} texts, reference: {self.reference}",
                f"  same token ids {self.ids_equal} of {found.texts}",
                f"  min cosine     {found.min_cosine:.8f}, mean {found.mean_cosine:.8f}",
                f"  centred        {found.centred_text()}",
                f"  max abs error  {found.max_abs_error:.2e}",
                f"  max |norm-1|   {found.max_norm_error:.1e}",
                f"  gate           {GATES[self.dtype]}, |norm-1| {MAX_NORM_ERROR:g}: "
                + ("reached" if self.passed else "missed"),
            )
        )


def _canary_check(bundle: Bundle) -> tuple[str, Check]:
    canary = Canary.read(bundle)
    parity = bundle.manifest.parity
    reference = "numpy" if parity is None else str(parity.get("referee", "not named"))

    def check(backend: Backend) -> Report:
        batch = Encoder(bundle, backend).prepare(canary.texts, prompt="").batch
        same = sum(
            batch.take([i]).ids.tolist() == canary.batch.take([i]).ids.tolist()
            for i in range(len(batch))
        )
        return Replayed(backend.name, backend.dtype, reference, same, replay(canary, backend))

    return "canary", check


# PyTorch


def _parity_check(bundle: Bundle, args: argparse.Namespace) -> tuple[str, Check]:
    texts = None if args.texts is None else list(options.read_texts(args.texts))
    if texts is not None and not texts:
        raise InputError(f"{args.texts!r} holds no text", remedy="one text a line, at least one")
    try:
        verify = importlib.import_module("kosine_export.verify")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"verify --against needs the package {error.name}, which is not installed",
            remedy="pip install 'kosine[onnx,export,torch]'",
        ) from error
    referee = verify.referee_for(
        bundle,
        args.against,
        base=args.base,
        revision=args.revision,
        allow_pickle=args.allow_pickle,
    )

    def check(backend: Backend) -> Report:
        report: Report = verify.compare_with(referee, Encoder(bundle, backend), texts)
        return report

    return "parity", check
