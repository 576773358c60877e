"""Turn a trained checkpoint into a bundle.

CHECKPOINT is a folder in any sentence-transformers or transformers format, a LoRA adapter folder
(with --base), or a hub id. Where the extra 'torch' is installed, the bundle is compared with
PyTorch before it is written, and the figures go into its manifest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from kosine.bundle.plans import FLAVOURS, TensorRTPlan
from kosine.commands import options
from kosine.errors import InputError
from kosine_export.checkpoint.pooling import POOLINGS
from kosine_export.export import TARGETS, Exported, export
from kosine_export.tensorrt.library import RTX_ARCHITECTURES
from kosine_export.tokenizer.unicode_form import UNICODE_FORMS
from kosine_export.triton.repository import check_repository, write_repository

__all__ = ["add_arguments", "run"]

OTHER_POOLINGS = {"last": "lasttoken"}  # shorter names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub id")
    parser.add_argument("bundle", metavar="BUNDLE", help="folder to make, for example ko.kosine")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="T",
        help=f"{', '.join(TARGETS)}; may be repeated (default: onnx)",
    )
    parser.add_argument("--base", metavar="DIR", help="base model, where CHECKPOINT is an adapter")
    parser.add_argument("--revision", metavar="R", help="of the hub id")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="add a prompt; may be repeated",
    )
    parser.add_argument(
        "--pooling",
        metavar="MODE",
        help=f"{', '.join(POOLINGS)} (or last): for a checkpoint that states none",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="override the maximum length")
    parser.add_argument(
        "--unicode",
        default="none",
        metavar="FORM",
        help=f"normalise texts before tokenising: {', '.join(UNICODE_FORMS)} (default: none)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="texts like those to be encoded, one a line: ranges of int8 and uint8 vectors are "
        "made from them, and the weights of native-int8 (default: texts of kosine's own, in "
        "several languages)",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pytorch_model.bin, with torch.load(weights_only=True)",
    )
    parser.add_argument(
        "--trt-flavour",
        metavar="F",
        help=f"TensorRT to build with: {', '.join(FLAVOURS)} (default: what is installed)",
    )
    parser.add_argument(
        "--trt-arch",
        action="append",
        default=[],
        metavar="CC",
        help="compute capability that tensorrt-rtx builds for, such as 8.9; may be repeated "
        f"(default: {', '.join(RTX_ARCHITECTURES)})",
    )
    parser.add_argument(
        "--triton",
        metavar="REPO",
        help="write the bundle into a model repository of Triton Inference Server, too",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    if args.allow_pickle:
        sys.stderr.write("kosine: pytorch_model.bin may be read, with weights_only=True\n")
    if args.triton is not None:
        check_repository(args.bundle, args.triton, force=args.force)
    done = export(
        args.checkpoint,
        args.bundle,
        targets=args.target or ("onnx",),
        base=args.base,
        revision=args.revision,
        prompts=_prompts(args.prompt),
        max_tokens=args.max_tokens,
        pooling=OTHER_POOLINGS.get(args.pooling, args.pooling),
        unicode=args.unicode,
        calibrate=args.calibrate,
        allow_pickle=args.allow_pickle,
        force=args.force,
        trt_flavour=args.trt_flavour,
        trt_architectures=args.trt_arch,
    )
    if args.triton is not None:
        write_repository(done.path, args.triton, force=args.force)
    seconds = time.perf_counter() - began
    if args.json:
        options.print_json(_summary(done, seconds))
    else:
        sys.stdout.write(_text(done, seconds))
    return 0


def _prompts(pairs: Sequence[str]) -> dict[str, str]:
    prompts = {}
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found or not name:
            raise InputError(
                f"--prompt {pair!r} has no name",
                limit="NAME=TEXT",
                remedy="write for example --prompt 'query=질문: '",
            )
        prompts[name] = text
    return prompts


def _summary(done: Exported, seconds: float) -> dict[str, object]:
    m = done.manifest
    return {
        "bundle": str(done.path),
        "seconds": round(seconds, 3),
        "targets": list(m.targets),
        "dim": m.dim,
        "max_tokens": m.max_tokens,
        "bytes": sum(entry.bytes for entry in m.files().values()),
        "parity": m.parity,
        "certificates": m.certificates,
        "plans": [asdict(plan) for plan in m.plans],
        "int8": None if m.int8 is None else asdict(m.int8),
        "notes": list(done.notes),
    }


def _text(done: Exported, seconds: float) -> str:
    m = done.manifest
    size = sum(entry.bytes for entry in m.files().values())
    lines = [
        f"{done.path}: {m.spec.family}, {len(m.spec.layers)} layers, "
        f"{m.dim} dimensions, {' + '.join(m.spec.pooling.modes)} pooling, {m.max_tokens} tokens; "
        f"targets {', '.join(m.targets)}; {size / 1e6:.1f} MB in {seconds:.1f} s"
    ]
    lines += [f"note: {note}" for note in done.notes]
    for parity in done.parity.values():
        lines.append(parity.table())
    if done.certificate is not None:
        c = done.certificate
        lines.append(
            f"float16 range: |x| <= {c.largest:.1f} of {c.limit:.0f} over {c.texts} texts "
            f"({c.tensor}); one text in real float16: cosine {c.reference_cosine:.6f}"
        )
    if m.int8 is not None:
        lines.append(
            f"int8: {len(m.int8.bytes_only)} of {len(m.int8.errors)} products stay in w8a16 "
            f"({m.int8.bytes_only_share:.1%} of the multiply-adds): an input of bytes would change "
            f"their output by more than {m.int8.max_error:.0%}; largest change "
            f"{max(m.int8.errors.values()):.2%}, over {m.int8.tokens} tokens"
        )
    lines += [_plan_line(plan) for plan in m.plans]
    if not done.parity:
        missing = m.source["referee_missing"]
        lines.append(
            f"parity not measured: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            "installed, and the canary holds the numpy reference's vectors (pip install "
            "'kosine[torch]' and export again to measure it)"
        )
    return "\n".join(lines) + "\n"


def _plan_line(plan: TensorRTPlan) -> str:
    e = plan.evidence
    widths = sorted({profile.width for profile in plan.profiles})
    return (
        f"{plan.path}: {plan.flavour} {plan.version} for compute capability "
        f"{', '.join(plan.architectures)}; {len(plan.profiles)} profiles, rows of "
        f"{', '.join(map(str, widths))} tokens; {e['attention_kernels']} fused attention kernels "
        f"({e['encoder_layers']} layers x {len(plan.profiles)} profiles); "
        f"{e['engine_bytes'] / 1e6:.1f} MB built in {e['build_seconds']:.1f} s; "
        "not run, which takes its GPU: kosine verify --backend tensorrt measures it there"
    )
