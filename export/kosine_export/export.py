"""From a checkpoint to a bundle: what is asked for, and what it is made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kosine.backends.lowering import require_supported
from kosine.backends.native import NATIVE_INT8, require_engine
from kosine.bundle.manifest import Manifest, UnicodeForm
from kosine.bundle.plans import FLAVOURS
from kosine.bundle.writing import writing_bundle
from kosine.errors import BackendError, UnknownOption
from kosine_export.assembly import Assembly
from kosine_export.calibration import read_calibration
from kosine_export.certificate import RangeCertificate
from kosine_export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from kosine_export.parity.parity import Parity
from kosine_export.parity.referee import Referee, missing_packages
from kosine_export.tensorrt.library import Library, find_library
from kosine_export.texts import calibration_texts
from kosine_export.tokenizer.unicode_form import UNICODE_FORMS

__all__ = ["TARGETS", "Exported", "export"]

TARGETS = ("onnx", "onnx-fp16", NATIVE_INT8, "tensorrt-fp16")
# What a target is built from, and brings along.
NEEDS = {"tensorrt-fp16": "onnx-fp16"}


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export` did: the manifest as written, and parity by dtype where it was measured.

    `notes` says what a reader should know of the checkpoint, and where a TensorRT plan's evidence
    falls short.
    """

    path: Path
    manifest: Manifest
    parity: dict[str, Parity]
    certificate: RangeCertificate | None
    notes: tuple[str, ...]


def export(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    targets: Sequence[str] = ("onnx",),
    base: str | Path | None = None,
    revision: str | None = None,
    prompts: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
    pooling: str | None = None,
    unicode: str = "none",
    calibrate: str | Path | Iterable[str] | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    trt_flavour: str | None = None,
    trt_architectures: Sequence[str] = (),
    show_progress: bool | None = None,
) -> Exported:
    """Export a checkpoint into a bundle at `bundle`.

    Where the `torch` extra is installed, parity with PyTorch is measured, gates the export and is
    recorded, and the canary holds PyTorch's vectors. Without it the manifest says
    `"parity": null`, its source lists the missing packages as `referee_missing`, and the canary
    holds the numpy reference's vectors.

    Args:
        checkpoint: Folder or hub id; see `read_checkpoint` for what is read.
        bundle: Folder to make. Nothing is left there unless the whole export succeeds.
        targets: Of `TARGETS`; "onnx" is always included, and "onnx-fp16" with "tensorrt-fp16".
        base: An adapter's base model.
        revision: Of a hub id.
        prompts: Added to the checkpoint's own.
        max_tokens: Overrides the checkpoint's maximum length.
        pooling: One of `kosine.spec.PoolingMode`, for a checkpoint that states none.
        unicode: "NFC" normalises texts before tokenising; "none" does what the checkpoint does.
        calibrate: Texts like those to be encoded, or a UTF-8 file with one a line; at least 32
            different ones. The ranges of int8 and uint8 vectors are made from their vectors (of
            more than 10 000 texts, from every second, third ...), and with "native-int8" the
            factors of products' inputs from some 8 000 of their tokens. None takes texts of the
            exporter's own, in several languages.
        allow_pickle: Read `pytorch_model.bin`, with `weights_only=True`.
        force: Replace an existing bundle.
        trt_flavour: "tensorrt" or "tensorrt-rtx"; None takes what is installed.
        trt_architectures: Compute capabilities such as "8.6" that one plan is built for. Only
            tensorrt-rtx has a choice; "tensorrt" builds for the GPU at hand.
        show_progress: A bar on stderr while the plan is built; None draws it on a terminal.

    Raises:
        CheckpointError, InputError, BundleExists, BundleError, BackendError, MissingExtra: see
            `kosine.errors`.
        ParityError: The graphs or the native engine do not give what the reference gives.
    """
    for target in targets:
        if target not in TARGETS:
            raise UnknownOption(
                f"unknown target {target!r}",
                limit=f"known: {', '.join(TARGETS)}",
                remedy="choose one of these for --target",
            )
    if unicode not in UNICODE_FORMS:
        raise UnknownOption(
            f"unknown Unicode form {unicode!r}",
            limit=f"known: {', '.join(UNICODE_FORMS)}",
            remedy="choose one of these for --unicode",
        )
    wanted = {"onnx", *targets, *(NEEDS[target] for target in targets if target in NEEDS)}
    asked = tuple(target for target in TARGETS if target in wanted)
    library, architectures = _library(asked, trt_flavour, trt_architectures)
    if NATIVE_INT8 in asked:
        require_engine("int8")  # which parity is measured on
    texts = calibration_texts() if calibrate is None else read_calibration(calibrate)
    with writing_bundle(bundle, force=force) as folder:
        read = read_checkpoint(
            checkpoint,
            base=base,
            revision=revision,
            prompts=prompts,
            max_tokens=max_tokens,
            pooling=pooling,
            allow_pickle=allow_pickle,
        )
        if NATIVE_INT8 in asked:
            _require_lowered(read)
        assumed = None if read.pooling_stated else pooling
        overrides = {
            "max_tokens": max_tokens,
            "prompts": dict(prompts or {}),
            "pooling": assumed,
            "calibration_texts": None if calibrate is None else len(texts),
        }
        referee, missing = (
            None,
            missing_packages(adapter=base is not None, model_type=read.config.get("model_type")),
        )
        if missing:
            read.source["referee_missing"] = list(missing)
        else:
            referee = Referee(
                checkpoint,
                base=base,
                revision=revision,
                max_tokens=max_tokens,
                pooling=assumed,
                allow_pickle=allow_pickle,
                tokenizer=read.source["tokenizer"],
            )
        work = Assembly(folder, read, asked, cast(UnicodeForm, unicode), texts, overrides)
        work.run(referee)
        if library is not None:
            # Last: what costs most, and what nothing else waits for.
            work.add_plan(library, architectures, show_progress)
        manifest = work.write_manifest()  # the last file
    return Exported(Path(bundle), manifest, work.parity, work.certificate, work.notes())


def _library(
    targets: Sequence[str], flavour: str | None, architectures: Sequence[str]
) -> tuple[Library | None, tuple[str, ...]]:
    """The TensorRT to build with, if the targets ask for a plan, and for which GPUs."""
    if "tensorrt-fp16" in targets:
        library = find_library(flavour)
        return library, library.architectures(architectures)
    if flavour is not None or architectures:
        raise UnknownOption(
            "a TensorRT flavour or architecture is given, and no plan is to be built",
            limit=f"flavours: {', '.join(FLAVOURS)}, for target tensorrt-fp16",
            remedy="add --target tensorrt-fp16, or leave the option out",
        )
    return None, ()


def _require_lowered(checkpoint: Checkpoint) -> None:
    """Refuse, by the field's name, a model that the native engine does not run."""
    try:
        require_supported(checkpoint.spec, checkpoint.source["name"])
    except BackendError as error:
        raise BackendError(
            error.problem, limit=error.limit, remedy=f"leave target {NATIVE_INT8} out"
        ) from None
