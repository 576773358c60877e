"""ONNX Runtime's CUDA provider on padded rectangles, in float16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kosine_bench.contestants.contestant import (
    Absent,
    Checkpoint,
    Contestant,
    Float32,
    Rows,
    Setting,
    normalise,
    padded,
)
from kosine_bench.contestants.pytorch_cuda import BULK_TEXTS

__all__ = ["OnnxRuntimeCuda", "OnnxRuntimePlainCuda"]


class OnnxRuntimeCuda(Contestant):
    """ONNX Runtime's CUDA provider on the padded float16 graph, with I/O bound to the device."""

    name = "onnxruntime-float16-cuda"
    label = "ONNX Runtime fp16, padded"
    precision = "float16"
    environment = "own"
    ours = False
    device = "cuda"
    packages = ("onnxruntime-gpu",)
    imports = "import onnxruntime"
    converts = ("kosine-cuda",)
    start_seconds = 6.0
    provider: ClassVar[str] = "CUDAExecutionProvider"
    target: ClassVar[str] = "cuda"
    graph: ClassVar[str] = "kosine-cuda/encoder.kosine/fp16/model.onnx"

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        import onnxruntime

        path = checkpoint.converted / Path(self.graph)
        if not path.is_file():
            raise Absent("there is no float16 graph: the bundle has no target onnx-fp16")
        if self.provider not in onnxruntime.get_available_providers():
            raise Absent(
                f"this onnxruntime has no {self.provider}: pip install onnxruntime-gpu instead"
            )
        if self.provider.startswith("CUDA") and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = list(dict.fromkeys((self.provider, "CPUExecutionProvider")))
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        # A provider whose libraries do not load is dropped with no more than a log line.
        if self.session.get_providers()[0] != self.provider:
            raise Absent(f"{self.provider} could not be started: CUDA or cuDNN is missing")
        self.runtime = onnxruntime
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer()
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def settings(self, mode: str) -> list[Setting]:
        if mode == "single":
            return [Setting(1)]
        if mode == "burst":
            return [Setting(32), Setting(16, "length"), Setting(8, "length")]
        return [Setting(n, "length") for n in BULK_TEXTS[:2]]

    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        return self.encode_ids(rows, setting)

    def encode_ids(self, rows: Rows, setting: Setting) -> Float32:
        vectors = np.empty((len(rows), self.checkpoint.dim), np.float32)
        for group in setting.groups([len(row) for row in rows]):
            vectors[group] = self._forward([rows[i] for i in group])
        return normalise(vectors)

    def _forward(self, rows: Rows) -> NDArray[Any]:
        ids, mask = padded(rows, self.checkpoint.pad_id)
        feed = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
        }
        binding = self.session.io_binding()
        for name in self.inputs:
            value = self.runtime.OrtValue.ortvalue_from_numpy(feed[name], self.target, 0)
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("sentence_embedding", "cpu")
        self.session.run_with_iobinding(binding)
        (vectors,) = binding.copy_outputs_to_cpu()
        return np.asarray(vectors)


class OnnxRuntimePlainCuda(OnnxRuntimeCuda):
    """The same with nothing tuned: rectangles of texts as they come."""

    name = "onnxruntime-plain-float16-cuda"
    label = "ONNX Runtime fp16, plain padding"
    serves = True

    def settings(self, mode: str) -> list[Setting]:
        return [Setting({"single": 1, "burst": 32, "bulk": 256}[mode])]
