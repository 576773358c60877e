"""The other runtimes, one small class each, set up the way their own documentation advises."""

# ruff: noqa: ARG002  an interface's arguments are not all of use to every class

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kosine_bench.contestants.contestant import (
    Checkpoint,
    Contestant,
    Float32,
    PaddedContestant,
    Rows,
    Setting,
    normalise,
)

__all__ = [
    *("CTranslate2Int8", "OnnxRuntime", "OnnxRuntimeInt8", "OnnxRuntimePlain"),
    *("OpenVinoBfloat16", "OpenVinoFloat32", "OpenVinoInt8", "SentenceTransformersBfloat16"),
    *("SentenceTransformersCompiled", "SentenceTransformersFloat32"),
]


def _pool(hidden: NDArray[Any], mask: NDArray[np.int64], pooling: str) -> Float32:
    """Unit rows from a (b, s, dim) hidden state: of the first token, or the mean of real ones."""
    if pooling == "cls":
        return normalise(hidden[:, 0])
    weights = mask.astype(np.float32)
    summed = np.matmul(weights[:, None, :], np.asarray(hidden, np.float32))[:, 0]
    return normalise(summed / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9))


class SentenceTransformersFloat32(Contestant):
    """sentence-transformers on PyTorch: the reference that every output is held against."""

    name = "torch-float32"
    label = "PyTorch fp32"
    precision = "float32"
    packages = ("sentence-transformers", "transformers", "torch")
    imports = "import sentence_transformers"
    sorts = True
    serves = True
    start_seconds = 8.0
    target: ClassVar[str] = "cpu"

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.torch = torch
        self.pad_id = checkpoint.pad_id
        self.model = SentenceTransformer(
            str(checkpoint.folder),
            device=self.target,
            model_kwargs={"dtype": getattr(torch, self.precision)},
        ).eval()

    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        vectors: Float32 = self.model.encode(
            list(texts),
            batch_size=setting.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, np.float32)

    def encode_ids(self, rows: Rows, setting: Setting) -> Float32:
        torch = self.torch
        groups = setting.groups([len(row) for row in rows])
        outputs: list[Any] = [None] * len(rows)
        with torch.inference_mode():
            for group in groups:
                batch = [torch.tensor(rows[i]) for i in group]
                ids = torch.nn.utils.rnn.pad_sequence(
                    batch, batch_first=True, padding_value=self.pad_id
                )
                mask = torch.nn.utils.rnn.pad_sequence(
                    [torch.ones_like(row) for row in batch], batch_first=True
                )
                features = self.model({"input_ids": ids, "attention_mask": mask})
                pooled = features["sentence_embedding"].float().numpy()
                for i, vector in zip(group, pooled, strict=True):
                    outputs[i] = vector
        return normalise(np.stack(outputs))


class SentenceTransformersBfloat16(SentenceTransformersFloat32):
    """The same with bfloat16 weights and activations."""

    name = "torch-bfloat16"
    label = "PyTorch bf16"
    precision = "bfloat16"
    serves = False


class SentenceTransformersCompiled(SentenceTransformersBfloat16):
    """bfloat16 through torch.compile: dynamic shapes, weights frozen into the code."""

    name = "torch-compiled"
    label = "PyTorch bf16 compiled"
    environ: ClassVar[dict[str, str]] = {"TORCHINDUCTOR_FREEZING": "1"}
    start_seconds = 55.0  # Frozen code is compiled anew by each process.
    most_rounds: ClassVar[dict[str, int]] = {"base": 2, "large": 1}

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        super().load(checkpoint, threads)
        transformer: Any = self.model[0].auto_model
        compiled = self.torch.compile(transformer.forward, dynamic=True)

        def forward(input_ids: Any, attention_mask: Any, **_: Any) -> Any:
            # Token types are all 0, the default; with and without them would be compiled twice.
            return compiled(input_ids=input_ids, attention_mask=attention_mask)

        transformer.forward = forward
        # Compiled code is specialised on a batch of one, so both kinds are compiled here.
        row = [0, 5, 6, 7, 8, 9, 2]
        self.encode_ids([row], Setting(1))
        self.encode_ids([row, row[:5], row[:4]], Setting(3))


class OnnxRuntime(PaddedContestant):
    """ONNX Runtime on the graph that sentence-transformers' ONNX backend runs."""

    name = "onnxruntime-float32"
    label = "ONNX Runtime fp32"
    precision = "float32"
    converts = ("onnx",)
    packages = ("onnxruntime",)
    imports = "import onnxruntime"
    most_streams = 8

    def open(self, threads: int, streams: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(
            str(self.checkpoint.converted / self.converts[0] / "model.onnx"),
            options,
            providers=["CPUExecutionProvider"],
        )

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Float32:
        feed = {"input_ids": ids, "attention_mask": mask}
        (hidden,) = self.session.run(["last_hidden_state"], feed)
        return _pool(hidden, mask, self.pooling)


class OnnxRuntimePlain(OnnxRuntime):
    """The same with nothing tuned: each call is one rectangle of up to 32 texts as they come."""

    name = "onnxruntime-plain"
    label = "ONNX Runtime fp32, plain padding"
    serves = True

    def settings(self, mode: str) -> list[Setting]:
        return [Setting(1 if mode == "single" else 32)]


class OnnxRuntimeInt8(OnnxRuntime):
    """Dynamic quantisation: int8 weights per channel, activation scales per tensor and call."""

    name = "onnxruntime-int8"
    label = "ONNX Runtime int8"
    precision = "int8"
    converts = ("onnx-int8",)
    serves = True


class OpenVinoFloat32(PaddedContestant):
    """OpenVINO on the graph it converts from PyTorch itself."""

    name = "openvino-float32"
    label = "OpenVINO fp32"
    precision = "float32"
    converts = ("openvino",)
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    imports = "import openvino"
    hint: ClassVar[str | None] = "f32"
    # Its first pass over 224 sentences took a third longer than those after it.
    keeps_shapes = True
    most_streams = 8

    def open(self, threads: int, streams: int) -> None:
        import openvino

        config: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads * streams,
            "NUM_STREAMS": streams,
        }
        if self.hint:
            config["INFERENCE_PRECISION_HINT"] = self.hint
        path = self.checkpoint.converted / self.converts[0] / "model.xml"
        compiled = openvino.Core().compile_model(path, "CPU", config)
        # A request serves one call at a time; whichever is idle takes the next rectangle.
        self.idle = [compiled.create_infer_request() for _ in range(streams)]

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Float32:
        request = self.idle.pop()
        request.infer([ids, mask], share_inputs=True)
        vectors = _pool(request.get_output_tensor(0).data, mask, self.pooling)
        self.idle.append(request)
        return vectors


class OpenVinoBfloat16(OpenVinoFloat32):
    """OpenVINO told that bfloat16 is precise enough."""

    name = "openvino-bfloat16"
    label = "OpenVINO bf16"
    precision = "bfloat16"
    hint = "bf16"
    serves = True


class OpenVinoInt8(OpenVinoFloat32):
    """NNCF post-training quantisation for transformers, calibrated on the workload's kind."""

    name = "openvino-int8"
    label = "OpenVINO int8"
    precision = "int8"
    converts = ("openvino-int8",)
    packages = ("openvino", "nncf")
    hint = None


class CTranslate2Int8(PaddedContestant):
    """CTranslate2's encoder: it drops the padding itself."""

    name = "ctranslate2-int8"
    label = "CTranslate2 int8"
    precision = "int8"
    converts = ("ctranslate2",)
    packages = ("ctranslate2",)
    imports = "import ctranslate2"
    serves = True
    most_streams = 8

    def open(self, threads: int, streams: int) -> None:
        import ctranslate2

        self.encoder = ctranslate2.Encoder(
            str(self.checkpoint.converted / "ctranslate2" / "model"),
            device="cpu",
            compute_type="int8",
            inter_threads=streams,
            intra_threads=threads,
        )

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Float32:
        lengths = mask.sum(axis=1)
        rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        hidden = np.asarray(self.encoder.forward_batch(rows).last_hidden_state)
        return _pool(hidden, mask, self.pooling)

    def computed_tokens(self, lengths: Sequence[int], setting: Setting) -> int:
        return sum(lengths)
