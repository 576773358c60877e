"""From a checkpoint to a bundle: read, write the graphs, check them, record what was found."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import kosine
from kosine.backends.registry import make_backend
from kosine.batching import split_batches
from kosine.bundle.canary import CANARY, Canary, check_canary, mean_vector
from kosine.bundle.folder import MANIFEST, Bundle, artifact_of, writing_bundle
from kosine.bundle.manifest import Architecture, Artifact, Dense, Manifest, Pooling
from kosine.bundle.plans import FLAVOURS
from kosine.bundle.plans import TensorRTPlan as Plan
from kosine.bundle.tensorfile import TensorEntry, write_tensors
from kosine.commands.options import read_texts
from kosine.encoder import Encoder
from kosine.errors import CorruptCheckpoint, InputError, ParityError, UnknownOption
from kosine.packed import Float32, Packed
from kosine.positions import position_ids
from kosine.quantization import calibrated_ranges
from kosine.tokenizer import Tokenizer
from kosine_export.certificate import RangeCertificate, certify, check_weights
from kosine_export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from kosine_export.ecosystem import write_ecosystem
from kosine_export.graph.packed import QUERY_BLOCK, packed_graph
from kosine_export.graph.padded import model_graph
from kosine_export.parity.model_graph_check import check_model_graph
from kosine_export.parity.parity import Parity, kind_of, measure, other_ids, usable
from kosine_export.parity.referee import Referee, missing_packages
from kosine_export.tensorrt.build import build_plan
from kosine_export.tensorrt.library import Library, find_library
from kosine_export.texts import calibration_texts, canary_texts, parity_texts, tokenizer_texts
from kosine_export.tokenizer.classes import TRANSFORMERS
from kosine_export.tokenizer.unicode_form import UNICODE_FORMS, with_unicode_form
from kosine_kernels import reference

__all__ = ["TARGETS", "Exported", "export"]

TARGETS = ("onnx", "onnx-fp16", "tensorrt-fp16")
# What a target is built from, and brings along.
NEEDS = {"tensorrt-fp16": "onnx-fp16"}
WEIGHTS = "weights.safetensors"
# Fewer texts tell no standard deviation; more tell it no better, and only take time.
MIN_CALIBRATION, MAX_CALIBRATION = 32, 10_000
NOT_WRITTEN = "no bundle was written; report it with the checkpoint's config files"
LEAST_USABLE = 0.8  # of the probe texts; fewer, and the tokenizer is another model's
MOST_SHOWN = 5  # numbers of texts in a message


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
        pooling: "mean", "cls" or "max", for a checkpoint that states none.
        unicode: "NFC" normalises texts before tokenising; "none" does what the checkpoint does.
        calibrate: Texts like those to be encoded, or a UTF-8 file with one a line; at least 32
            different ones. The ranges of int8 and uint8 vectors are made from their vectors (of
            more than 10 000 texts, from every second, third ...). None takes texts of the
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
        ParityError: The graphs do not give what the reference gives.
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
    texts = calibration_texts() if calibrate is None else _calibration(calibrate)
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
        assumed = None if read.pooling_stated else pooling
        overrides = {
            "max_tokens": max_tokens,
            "prompts": dict(prompts or {}),
            "pooling": assumed,
            "calibration_texts": None if calibrate is None else len(texts),
        }
        referee, missing = None, missing_packages(adapter=base is not None)
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
        work = _Export(folder, read, asked, unicode, texts, overrides)
        work.run(referee)
        if library is not None:
            # Last: what costs most, and what nothing else waits for.
            work.add_plan(library, architectures, show_progress)
        return work.done(Path(bundle))


def _calibration(given: str | Path | Iterable[str]) -> list[str]:
    """At most MAX_CALIBRATION of the texts, from all over them."""
    texts = list(read_texts(str(given)) if isinstance(given, str | Path) else given)
    different = len({text for text in texts if isinstance(text, str) and text.strip()})
    if different < MIN_CALIBRATION:
        raise InputError(
            f"{different} different texts to calibrate with, blank ones aside",
            limit=f"at least {MIN_CALIBRATION}",
            remedy="give some hundreds of texts like those to be encoded, or leave --calibrate out",
        )
    return texts[:: -(-len(texts) // MAX_CALIBRATION)]


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


class _Export:
    """One export under way in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        targets: tuple[str, ...],
        unicode: str,
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
        self.files: dict[str, tuple[str, list[str]]] = {}
        self.plans: tuple[Plan, ...] = ()

    def run(self, referee: Referee | None) -> None:
        """Everything that runs here: graphs, canary, certificate, parity."""
        tokenizer = with_unicode_form(self.checkpoint.tokenizer_json, self.unicode)
        (self.folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        self.files["tokenizer"] = ("", ["tokenizer.json"])
        entries = write_tensors(self.folder / WEIGHTS, self.checkpoint.tensors)
        self._write_graphs(self.folder, entries, "float32")
        self.files["onnx"] = ("float32", ["model.onnx", "packed.onnx", WEIGHTS])
        if "onnx-fp16" in self.targets:
            self._write_fp16()
        self.files["ecosystem"] = ("", write_ecosystem(self.folder, self.checkpoint))

        self._write_manifest()
        encoder = self._encoder("float32", canary=False)
        self._check_tokenizer(encoder, referee)
        canary = self._canary(encoder, referee)
        write_tensors(self.folder / CANARY, canary.tensors())
        self.files["canary"] = ("float32", [CANARY])
        self.ranges = calibrated_ranges(self._calibration_vectors(encoder))
        del encoder  # its session holds a copy of the weights
        if "onnx-fp16" in self.targets:
            self.certificate = certify(
                self.folder, self.spec, entries, canary.batch, canary.vectors
            )
            self.certificate.require()
        self._write_manifest()
        for dtype in ("float32", *(["float16"] if "onnx-fp16" in self.targets else [])):
            self._check(dtype, referee)

    def add_plan(
        self, library: Library, architectures: Sequence[str], show_progress: bool | None
    ) -> None:
        """A TensorRT plan of the float16 packed graph, whose range certificate has passed."""
        plan = build_plan(
            self.folder,
            library,
            max_tokens=self.spec.max_tokens,
            num_layers=self.spec.num_layers,
            architectures=architectures,
            show_progress=show_progress,
        )
        self.plans = (plan,)
        self.files["tensorrt-fp16"] = ("float16", [plan.path])

    def done(self, final: Path) -> Exported:
        manifest = self._write_manifest()
        short = (f"TensorRT: {each}" for p in self.plans for each in p.evidence["shortfalls"])
        notes = (*self.checkpoint.notes, *short)
        return Exported(final, manifest, self.parity, self.certificate, notes)

    def _write_graphs(
        self, folder: Path, entries: Mapping[str, TensorEntry], precision: str
    ) -> None:
        packed, _ = packed_graph(self.spec, entries, precision=precision)
        model = model_graph(self.spec, entries, precision=precision)
        for name, graph in (("packed.onnx", packed), ("model.onnx", model)):
            path = folder / name
            path.write_bytes(graph.SerializeToString())
            onnx.checker.check_model(str(path), full_check=True)

    def _write_fp16(self) -> None:
        tensors = self.checkpoint.tensors
        check_weights(tensors)
        folder = self.folder / "fp16"
        folder.mkdir()
        half = {name: _half(name, tensor) for name, tensor in tensors.items()}
        entries = write_tensors(folder / WEIGHTS, half)
        self._write_graphs(folder, entries, "float16")
        paths = [f"fp16/{name}" for name in ("model.onnx", "packed.onnx", WEIGHTS)]
        self.files["onnx-fp16"] = ("float16", paths)

    def _check_tokenizer(self, encoder: Encoder, referee: Referee | None) -> None:
        """Token ids before any vector: vectors of other tokens say nothing about the graph."""
        asked = [*parity_texts(self.spec.max_tokens), *tokenizer_texts()]
        texts = usable(encoder, asked, referee)
        if len(texts) < len(asked) * LEAST_USABLE:
            raise CorruptCheckpoint(
                f"{len(asked) - len(texts)} of {len(asked)} probe texts have token ids beyond the "
                f"{self.spec.vocab_size} word embeddings",
                limit=f"at most {1 - LEAST_USABLE:.0%} may",
                remedy="check that the tokenizer and the weights belong together",
            )
        if referee is None:
            return
        other = other_ids(encoder, referee, texts)
        if other:
            raise self._tokenizer_differs(other, texts, referee)
        self.source["tokenizer"] = {
            **self.source["tokenizer"],
            "same_ids": {"texts": len(texts), "referee": referee.versions},
        }

    def _tokenizer_differs(
        self, other: Sequence[int], texts: Sequence[str], referee: Referee
    ) -> ParityError:
        shown = ", ".join(f"{i} ({kind_of(texts[i])})" for i in other[:MOST_SHOWN])
        if len(other) > MOST_SHOWN:
            shown += f" and {len(other) - MOST_SHOWN} more"
        found = self.source["tokenizer"]
        stated = "stated" if found["stated"] else "assumed"
        remedy = NOT_WRITTEN
        if int(version("transformers").partition(".")[0]) < TRANSFORMERS:
            remedy = f"no bundle was written; the rules are those of transformers {TRANSFORMERS}"
            remedy += ": install that, with a current sentence-transformers"
        return ParityError(
            f"token ids are not PyTorch's in {len(other)} of {len(texts)} probe texts, numbers "
            f"{shown}: tokenizer class {found['class']} ({stated}), read as {found['read_as']}; "
            f"{referee.tokenizer_class} in {referee.versions}",
            limit="every token id must be the same before vectors are compared",
            remedy=remedy,
            report="\n".join(map("note: {}".format, self.checkpoint.notes)),
        )

    def _canary(self, encoder: Encoder, referee: Referee | None) -> Canary:
        """The reference's vectors for the canary texts."""
        texts = usable(encoder, canary_texts(), referee)
        batch = encoder.prepare(texts, prompt="").batch
        if referee is None:
            vectors = _reference_vectors(self.checkpoint, batch)
        else:
            vectors = referee.encode([_formed(text, self.unicode) for text in texts])
        return Canary(tuple(texts), batch, vectors, mean_vector(vectors))

    def _calibration_vectors(self, encoder: Encoder) -> Float32:
        """The texts' vectors, alone and after the prompts in turn: a prompt moves them all."""
        prompts = [prompt for prompt in self.checkpoint.prompts.values() if prompt]
        parts = [("", self.calibration)]
        parts += [(prompt, self.calibration[i :: len(prompts)]) for i, prompt in enumerate(prompts)]
        # Not by `encode`, which would warn of the tokens that the vocabulary lacks.
        tokenizer = Tokenizer(encoder.bundle)
        batches = [tokenizer.prepare(texts, prompt).batch for prompt, texts in parts]
        return np.concatenate(
            [
                encoder.finish(encoder.run(batch.take(chosen)))
                for batch in batches
                for chosen in split_batches(batch.lengths, encoder.max_batch_tokens)
            ]
        )

    def _check(self, dtype: str, referee: Referee | None) -> None:
        """Refuse to finish a bundle that does not give what the reference gives."""
        encoder = self._encoder(dtype, canary=True)
        check_model_graph(encoder.bundle, dtype)
        if referee is None:
            return
        longest = self.spec.max_tokens
        if dtype == "float16":  # held whole here: no engine fuses its attention on a CPU
            longest = min(longest, QUERY_BLOCK)
        parity = measure(encoder, referee, usable(encoder, parity_texts(longest), referee))
        self.parity[dtype] = parity
        if not parity.passed:
            worst = parity.to_json()
            raise ParityError(
                f"the {dtype} graph does not give PyTorch's vectors: min cosine "
                f"{worst['min_cosine']:.7f}, max abs error {worst['max_abs_error']:.1e}, same "
                f"token ids in {worst['ids_equal']} of {worst['texts']} texts",
                limit=f"gate: min cosine {parity.gate.min_cosine}, every token id",
                remedy=NOT_WRITTEN,
                report="\n".join([*map("note: {}".format, self.checkpoint.notes), parity.table()]),
            )

    def _encoder(self, dtype: str, *, canary: bool) -> Encoder:
        bundle = Bundle(self.folder)
        backend = make_backend(bundle, backend="onnx", dtype=dtype)
        if canary:
            try:
                check_canary(bundle, backend)
            except ParityError as error:
                raise ParityError(error.problem, limit=error.limit, remedy=NOT_WRITTEN) from None
        return Encoder(bundle, backend)

    def _write_manifest(self) -> Manifest:
        spec = self.spec
        artifacts: tuple[Artifact, ...] = tuple(
            artifact_of(self.folder, name, precision, paths)
            for name, (precision, paths) in self.files.items()
        )
        parity: dict[str, Any] | None = None
        if "float32" in self.parity:
            parity = self.parity["float32"].to_json()
            rest = {dtype: p.to_json() for dtype, p in self.parity.items() if dtype != "float32"}
            parity["others"] = rest
        manifest = Manifest(
            kosine=kosine.__version__,
            source=self.source,
            architecture=Architecture(
                family=spec.family,
                vocab_size=spec.vocab_size,
                hidden_size=spec.hidden_size,
                embedding_size=spec.embedding_size,
                num_layers=spec.num_layers,
                num_heads=spec.num_heads,
                intermediate_size=spec.intermediate_size,
                max_position_embeddings=spec.max_position_embeddings,
                type_vocab_size=spec.type_vocab_size,
                layer_norm_eps=spec.layer_norm_eps,
                position_rule=spec.position_rule,
            ),
            dim=spec.dim,
            max_tokens=spec.max_tokens,
            pooling=Pooling(spec.pooling, spec.include_prompt),
            dense=tuple(Dense(**asdict(dense)) for dense in spec.dense),
            normalized=spec.normalize,
            prompts=self.checkpoint.prompts,
            default_prompt_name=self.checkpoint.default_prompt_name,
            similarity=self.checkpoint.similarity,
            special_ids=self.checkpoint.special_ids,
            do_lower_case=self.checkpoint.do_lower_case,
            unicode=self.unicode,
            ranges=self.ranges,
            targets=self.targets,
            artifacts=artifacts,
            parity=parity,
            certificates={}
            if self.certificate is None
            else {"onnx-fp16": self.certificate.to_json()},
            plans=self.plans,
        )
        (self.folder / MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")
        return manifest


def _half(name: str, tensor: NDArray[np.float32]) -> NDArray[Any]:
    """float16, but for what the float32 islands read: LayerNorm's numbers and Dense modules."""
    island = ".norm." in name or name.startswith("dense.")
    return tensor if island else tensor.astype(np.float16)


def _formed(text: str, form: str) -> str:
    return text if form == "none" else unicodedata.normalize("NFC", text)


def _reference_vectors(checkpoint: Checkpoint, batch: Packed) -> Float32:
    """The numpy reference's unit vectors."""
    spec = checkpoint.spec
    vectors, _ = reference.encode(
        checkpoint.tensors,
        batch.ids,
        batch.starts,
        batch.skip,
        position_ids(batch.ids, batch.starts, spec.position_rule, spec.pad_id),
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        layer_norm_eps=spec.layer_norm_eps,
        pooling=spec.pooling,
        dense=[(dense.activation, dense.use_residual) for dense in spec.dense],
    )
    return vectors
