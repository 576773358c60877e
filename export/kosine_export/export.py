"""From a checkpoint to a bundle: read, write the graphs, check them, record what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kosine.backends.lowering import require_supported
from kosine.backends.native import IN_BYTES, NATIVE_INT8, require_engine
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.bundle.canary import CANARY, check_canary
from kosine.bundle.folder import MANIFEST
from kosine.bundle.int8 import INT8_WEIGHTS, Int8Weights
from kosine.bundle.manifest import Artifact, Manifest, UnicodeForm
from kosine.bundle.plans import FLAVOURS, TensorRTPlan
from kosine.bundle.tensorfile import TensorEntry, write_tensors
from kosine.bundle.writing import artifact_of, writing_bundle
from kosine.encoder import Encoder
from kosine.errors import BackendError, ParityError, UnknownOption
from kosine.packed import Packed
from kosine.quantization import calibrated_ranges
from kosine_export.calibration import (
    calibration_batches,
    calibration_vectors,
    read_calibration,
)
from kosine_export.certificate import RangeCertificate, certify, check_weights
from kosine_export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from kosine_export.ecosystem import write_ecosystem
from kosine_export.graph.files import WEIGHTS, to_half, write_graphs
from kosine_export.graph.packed import QUERY_BLOCK
from kosine_export.int8 import quantize_layers
from kosine_export.manifest import make_manifest
from kosine_export.parity.canary import make_canary
from kosine_export.parity.model_graph_check import check_model_graph
from kosine_export.parity.parity import Parity, measure
from kosine_export.parity.referee import Referee, missing_packages
from kosine_export.parity.token_ids import NOT_WRITTEN, check_token_ids, usable
from kosine_export.tensorrt.build import build_plan
from kosine_export.tensorrt.library import Library, find_library
from kosine_export.texts import calibration_texts, parity_texts
from kosine_export.tokenizer.unicode_form import UNICODE_FORMS, with_unicode_form

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
        work = _Export(folder, read, asked, cast(UnicodeForm, unicode), texts, overrides)
        work.run(referee)
        if library is not None:
            # Last: what costs most, and what nothing else waits for.
            work.add_plan(library, architectures, show_progress)
        return work.done(Path(bundle))


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


class _Export:
    """One export under way in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        targets: tuple[str, ...],
        unicode: UnicodeForm,
        calibration: Sequence[str],
        overrides: dict[str, Any],
    ) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.targets = targets
        self.unicode = unicode
        self.calibration = calibration
        self.source = {
            **checkpoint.source,
            "notes": list(checkpoint.notes),
            "overrides": {name: value for name, value in overrides.items() if value},
        }
        self.certificate: RangeCertificate | None = None
        self.ranges: dict[str, list[float]] | None = None
        self.parity: dict[str, Parity] = {}
        self.artifacts: list[Artifact] = []
        self.plans: tuple[TensorRTPlan, ...] = ()
        self.int8: Int8Weights | None = None

    def run(self, referee: Referee | None) -> None:
        """Everything that runs here: graphs, canary, certificate, parity."""
        tokenizer = with_unicode_form(self.checkpoint.tokenizer_json, self.unicode)
        (self.folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        self._add("tokenizer", "", ["tokenizer.json"])
        entries = write_tensors(self.folder / WEIGHTS, self.checkpoint.tensors)
        self._write_graphs(self.folder, entries, "float32")
        self._add("onnx", "float32", ["model.onnx", "packed.onnx", WEIGHTS])
        if "onnx-fp16" in self.targets:
            self._write_fp16()
        self._add("ecosystem", "", write_ecosystem(self.folder, self.checkpoint))

        self._write_manifest()
        encoder = self._encoder("float32", canary=False)
        self.source["tokenizer"] = check_token_ids(encoder, referee, self.checkpoint)
        canary = make_canary(encoder, referee, self.checkpoint)
        write_tensors(self.folder / CANARY, canary.tensors())
        self._add("canary", "float32", [CANARY])
        batches = calibration_batches(encoder, self.calibration, self.checkpoint.prompts.values())
        self.ranges = calibrated_ranges(calibration_vectors(encoder, batches))
        del encoder  # its session holds a copy of the weights
        if "onnx-fp16" in self.targets:
            self.certificate = certify(
                self.folder, self.spec, entries, canary.batch, canary.vectors
            )
            self.certificate.require()
        if NATIVE_INT8 in self.targets:
            self._write_int8(batches)
        self._write_manifest()
        dtypes = {"onnx": ("float32",), "onnx-fp16": ("float16",), NATIVE_INT8: ("w8a16", "int8")}
        for target in self.targets:
            for dtype in dtypes.get(target, ()):
                self._check(dtype, referee)

    def add_plan(
        self, library: Library, architectures: Sequence[str], show_progress: bool | None
    ) -> None:
        """A TensorRT plan of the float16 packed graph, whose range certificate has passed."""
        plan = build_plan(
            self.folder,
            library,
            max_tokens=self.checkpoint.max_tokens,
            num_layers=len(self.spec.layers),
            architectures=architectures,
            show_progress=show_progress,
        )
        self.plans = (plan,)
        self._add("tensorrt-fp16", "float16", [plan.path])

    def done(self, final: Path) -> Exported:
        manifest = self._write_manifest()
        short = (f"TensorRT: {each}" for p in self.plans for each in p.evidence["shortfalls"])
        notes = (*self.checkpoint.notes, *short)
        return Exported(final, manifest, self.parity, self.certificate, notes)

    def _write_graphs(
        self, folder: Path, entries: Mapping[str, TensorEntry], precision: str
    ) -> None:
        longest = self.checkpoint.max_tokens
        write_graphs(folder, self.spec, entries, precision, max_tokens=longest)

    def _write_fp16(self) -> None:
        # The float16 graph gives no vectors of tokens for heads to read.
        tensors = {
            name: tensor
            for name, tensor in self.checkpoint.tensors.items()
            if not name.startswith("heads.")
        }
        check_weights(tensors)
        folder = self.folder / "fp16"
        folder.mkdir()
        half = {name: to_half(name, tensor) for name, tensor in tensors.items()}
        entries = write_tensors(folder / WEIGHTS, half)
        self._write_graphs(folder, entries, "float16")
        paths = [f"fp16/{name}" for name in ("model.onnx", "packed.onnx", WEIGHTS)]
        self._add("onnx-fp16", "float16", paths)

    def _write_int8(self, batches: Sequence[Packed]) -> None:
        rows = [batch.take([i]).ids for batch in batches for i in range(len(batch))]
        arrays, self.int8 = quantize_layers(self.spec, self.checkpoint.tensors, Packed.of(rows))
        path = self.folder / INT8_WEIGHTS
        path.parent.mkdir()
        write_tensors(path, arrays)
        self._add(NATIVE_INT8, "int8", [INT8_WEIGHTS])

    def _check(self, dtype: str, referee: Referee | None) -> None:
        """Refuse to finish a bundle that does not give what the reference gives."""
        encoder = self._encoder(dtype, canary=True)
        if encoder.backend.name == "onnx":
            check_model_graph(encoder.bundle, dtype)
        if referee is None:
            return
        longest = self.checkpoint.max_tokens
        if dtype == "float16":  # held whole here: no engine fuses its attention on a CPU
            longest = min(longest, QUERY_BLOCK)
        parity = measure(encoder, referee, usable(encoder, parity_texts(longest), referee))
        self.parity[dtype] = parity
        parity.require(self.checkpoint.notes)

    def _encoder(self, dtype: str, *, canary: bool) -> Encoder:
        bundle = Bundle(self.folder)
        name = "native" if dtype in IN_BYTES else "onnx"
        backend = make_backend(bundle, backend=name, dtype=dtype)
        if canary:
            try:
                check_canary(bundle, backend)
            except ParityError as error:
                raise ParityError(error.problem, limit=error.limit, remedy=NOT_WRITTEN) from None
        return Encoder(bundle, backend)

    def _add(self, name: str, precision: str, paths: Sequence[str]) -> None:
        """Files that are written and do not change any more."""
        self.artifacts.append(artifact_of(self.folder, name, precision, paths))

    def _write_manifest(self) -> Manifest:
        manifest = make_manifest(
            self.checkpoint,
            source=self.source,
            unicode=self.unicode,
            ranges=self.ranges,
            targets=self.targets,
            artifacts=tuple(self.artifacts),
            measured=self.parity,
            certificate=self.certificate,
            plans=self.plans,
            int8=self.int8,
        )
        (self.folder / MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")
        return manifest
