"""A bundle on its way: its files written one after the other, and checked as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kosine.backends.native import IN_BYTES, NATIVE_INT8
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.bundle.canary import CANARY, check_canary
from kosine.bundle.folder import MANIFEST
from kosine.bundle.int8 import INT8_WEIGHTS, Int8Weights
from kosine.bundle.manifest import Artifact, Manifest, UnicodeForm
from kosine.bundle.plans import TensorRTPlan
from kosine.bundle.tensorfile import TensorEntry, write_tensors
from kosine.bundle.writing import artifact_of
from kosine.encoder import Encoder
from kosine.errors import ParityError
from kosine.packed import Packed
from kosine.quantization import calibrated_ranges
from kosine_export.calibration import calibration_batches, calibration_vectors
from kosine_export.certificate import RangeCertificate, certify, check_weights
from kosine_export.checkpoint.checkpoint import Checkpoint
from kosine_export.ecosystem import write_ecosystem
from kosine_export.graph.files import WEIGHTS, to_half, write_graphs
from kosine_export.graph.packed import QUERY_BLOCK
from kosine_export.int8 import quantize_layers
from kosine_export.manifest import make_manifest
from kosine_export.parity.canary import make_canary
from kosine_export.parity.model_graph_check import check_model_graph
from kosine_export.parity.parity import Parity, measure
from kosine_export.parity.referee import Referee
from kosine_export.parity.token_ids import NOT_WRITTEN, check_token_ids, usable
from kosine_export.tensorrt.build import build_plan
from kosine_export.tensorrt.library import Library
from kosine_export.texts import parity_texts
from kosine_export.tokenizer.unicode_form import with_unicode_form

__all__ = ["Assembly"]


class Assembly:
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

        self.write_manifest()
        encoder = self._encoder(Bundle(self.folder), "float32", canary=False)
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
        self.write_manifest()
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

    def notes(self) -> tuple[str, ...]:
        """See `Exported`."""
        short = (f"TensorRT: {each}" for p in self.plans for each in p.evidence["shortfalls"])
        return (*self.checkpoint.notes, *short)

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
        bundle = Bundle(self.folder)
        if dtype not in IN_BYTES:  # before the encoder: two sessions have the weights twice
            check_model_graph(bundle, dtype)
        encoder = self._encoder(bundle, dtype, canary=True)
        if referee is None:
            return
        longest = self.checkpoint.max_tokens
        if dtype == "float16":  # held whole here: no engine fuses its attention on a CPU
            longest = min(longest, QUERY_BLOCK)
        parity = measure(encoder, referee, usable(encoder, parity_texts(longest), referee))
        self.parity[dtype] = parity
        parity.require(self.checkpoint.notes)

    def _encoder(self, bundle: Bundle, dtype: str, *, canary: bool) -> Encoder:
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

    def write_manifest(self) -> Manifest:
        """All that is known so far."""
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
