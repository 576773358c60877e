"""kosine itself on a GPU, in float16: the defaults that a user gets but for the batch size."""

# ruff: noqa: ARG002  an interface's arguments are not all of use to every class

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from kosine_bench.contestants.contestant import Contestant, Setting
from kosine_bench.contestants.kosine import Kosine

__all__ = ["GPU_OURS"]


class KosineCuda(Kosine):
    """A bundle with float16 graphs on one backend, in packed rows of a few fixed shapes."""

    precision = "float16"
    device = "cuda"
    target = "cuda:0"
    start_seconds = 6.0
    options: ClassVar[dict[str, Any]] = {"max_batch_tokens": 16_384}  # A GPU wants long batches.
    tight: ClassVar[bool] = True

    def profiles(self) -> Sequence[Any]:
        """The `PlanProfile`s that rows are laid out for."""
        from kosine.backends.onnx_cuda import gpu_profiles

        return gpu_profiles(self.encoder.max_tokens)

    def computed_tokens(self, lengths: Sequence[int], setting: Setting) -> int:
        from kosine.backends.buckets import pieces
        from kosine.batching import split_batches

        sizes = np.array(lengths, np.int32)
        profiles = self.profiles()
        return sum(
            piece.shape.rows * piece.shape.width
            for indices in split_batches(sizes, self.encoder.max_batch_tokens)
            for piece in pieces(sizes[indices], profiles, tight=self.tight)
        )


class KosineOnnxCuda(KosineCuda):
    """ONNX Runtime's CUDA provider."""

    name = "kosine-onnx-float16-cuda"
    label = "kosine onnx fp16"
    backend = "onnx"
    converts = ("kosine-cuda",)
    packages = (*Kosine.packages, "onnxruntime-gpu")


class KosineTensorrt(KosineCuda):
    """A TensorRT engine."""

    name = "kosine-tensorrt-float16-cuda"
    label = "kosine tensorrt fp16"
    backend = "tensorrt"
    converts = ("kosine-tensorrt",)
    tight = False

    def profiles(self) -> Sequence[Any]:
        backend: Any = self.encoder.backend
        return tuple(backend.plan.profiles)


GPU_OURS: tuple[type[Contestant], ...] = (KosineOnnxCuda, KosineTensorrt)
