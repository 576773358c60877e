"""Check a bundle on the machine at hand; exit 1 when it falls short.

Alone: every file's sha256, then the canary (the 64 texts that PyTorch encoded at export) through
the tokenizer and the backend, with no PyTorch. With --against CHECKPOINT: against PyTorch itself,
which needs the extra 'torch'.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

from kosine.backends import make_backend
from kosine.bundle import Bundle
from kosine.canary import GATES, Canary, replay
from kosine.commands import options
from kosine.encoder import Encoder
from kosine.errors import InputError, MissingExtra

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
    bundle.verify_all()
    backend = make_backend(
        bundle,
        backend=args.backend,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
        canary=False,  # it is replayed in full below
    )
    encoder = Encoder(bundle, backend)
    report, table = _replay(encoder) if args.against is None else _against(encoder, args)
    if args.json:
        options.print_json({"bundle": str(bundle.path), **report})
    else:
        sys.stdout.write(table + "\n")
    return 0 if report["passed"] else 1


def _replay(encoder: Encoder) -> tuple[dict[str, Any], str]:
    canary = Canary.read(encoder.bundle)
    found = replay(canary, encoder.backend)
    batch = encoder.prepare(canary.texts, prompt="").batch
    same = sum(
        a.tolist() == b.tolist()
        for i in range(len(batch))
        for a, b in [(batch.take([i]).ids, canary.batch.take([i]).ids)]
    )
    gate = GATES[encoder.backend.dtype]
    passed = found.passes(gate) and same == found.texts
    engine = f"{encoder.backend.name}/{encoder.backend.dtype}"
    parity = encoder.manifest.parity
    report = {
        "passed": passed,
        "check": "canary",
        "backend": encoder.backend.name,
        "dtype": encoder.backend.dtype,
        "reference": "numpy" if parity is None else parity["referee"],
        "ids_equal": same,
        **found.to_json(),
        "gate": {"min_cosine": gate.min_cosine, "max_abs_error": gate.max_abs},
    }
    limit = "" if gate.max_abs is None else f" (<= {gate.max_abs:g})"
    table = "\n".join(
        (
            f"canary         {found.texts} texts, reference: {report['reference']}",
            f"same token ids {same} of {found.texts}",
            f"min cosine     {found.min_cosine:.8f} (>= {gate.min_cosine})",
            f"mean cosine    {found.mean_cosine:.8f}",
            f"max abs error  {found.max_abs_error:.2e}{limit}",
            f"max |norm-1|   {found.max_norm_error:.1e} (<= 1e-06)",
            f"{engine}: {'PASSED' if passed else 'FAILED'}",
        )
    )
    return report, table


def _against(encoder: Encoder, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
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
    parity = verify.against(
        encoder,
        args.against,
        base=args.base,
        revision=args.revision,
        allow_pickle=args.allow_pickle,
        texts=texts,
    )
    return {"check": "parity", **parity.to_json()}, parity.table()
