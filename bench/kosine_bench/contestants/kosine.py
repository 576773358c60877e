"""kosine itself, as one more contestant: the defaults that a user gets, nothing tuned."""

# ruff: noqa: ARG002  an interface's arguments are not all of use to every class

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kosine_bench.contestants.contestant import (
    Absent,
    Checkpoint,
    Contestant,
    Float32,
    Rows,
    Setting,
)

__all__ = [
    *("Kosine", "KosineNativeAvx2", "KosineNativeAvx512", "KosineNativeBfloat16"),
    *("KosineNativeFloat32", "KosineNativeInt8", "KosineNativeW8A16", "KosineOnnx"),
    *("KosineOnnxCuda", "KosineOwnCuda", "KosineTensorrt"),
]


class Kosine(Contestant):
    """A bundle on one backend at one dtype."""

    environment = "own"
    ours = True
    target: ClassVar[str] = "auto"
    options: ClassVar[dict[str, Any]] = {}
    converts = ("kosine",)
    packages: ClassVar[tuple[str, ...]] = ("kosine", "numpy", "tokenizers")
    imports = "import kosine"
    serves = True
    backend: ClassVar[str]

    def bundle(self, checkpoint: Checkpoint) -> Path:
        return checkpoint.converted / self.converts[0] / "encoder.kosine"

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        import kosine
        from kosine import errors

        refusals = (
            *(errors.BackendUnavailable, errors.MissingExtra, errors.MissingTarget),
            *(errors.PlanMismatch, errors.UnknownOption),
        )

        engine: dict[str, Any] = {"backend": self.backend, "dtype": self.precision}
        try:
            self.encoder = kosine.load(
                self.bundle(checkpoint),
                **engine,
                device=self.target,
                threads=threads,
                **self.options,
            )
        except refusals as error:
            raise Absent(str(error)) from error

    def settings(self, mode: str) -> list[Setting]:
        """One: the encoder cuts and packs a call's texts itself (`batch_size` 0: not set)."""
        return [Setting(0)]

    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        vectors: Float32 = self.encoder.encode(list(texts), show_progress_bar=False)
        return vectors

    def encode_ids(self, rows: Rows, setting: Setting) -> Float32:
        from kosine.batching import split_batches
        from kosine.packed import Packed

        batch = Packed.of(rows)
        vectors: Float32 = np.empty((len(batch), self.encoder.dim), np.float32)
        for chosen in split_batches(batch.lengths, self.encoder.max_batch_tokens):
            vectors[chosen] = self.encoder.compute(batch.take(chosen)).vectors
        return vectors

    def computed_tokens(self, lengths: Sequence[int], setting: Setting) -> int:
        return sum(lengths)


class KosineOnnx(Kosine):
    """Packed rows on ONNX Runtime."""

    name = "kosine-onnx-float32"
    label = "kosine onnx fp32"
    precision = "float32"
    backend = "onnx"
    packages = (*Kosine.packages, "onnxruntime")

    def computed_tokens(self, lengths: Sequence[int], setting: Setting) -> int:
        from kosine.backends.rows.plan import plan_rows
        from kosine.batching import split_batches

        sizes = np.array(lengths, np.int32)
        return sum(
            plan.num_tokens
            for indices in split_batches(sizes, self.encoder.max_batch_tokens)
            for plan in plan_rows(sizes[indices])
        )


class KosineNativeFloat32(Kosine):
    """The native engine."""

    name = "kosine-native-float32"
    label = "kosine native fp32"
    precision = "float32"
    backend = "native"

    def isa_level(self) -> str:
        from kosine_kernels.engine import Unavailable, select_isa

        try:
            return select_isa(self.precision)
        except Unavailable as error:
            raise Absent(str(error)) from error


class KosineNativeBfloat16(KosineNativeFloat32):
    """The native engine in bfloat16."""

    name = "kosine-native-bfloat16"
    label = "kosine native bf16"
    precision = "bfloat16"


class KosineNativeW8A16(KosineNativeFloat32):
    """The native engine with weights of bytes, which are multiplied as floats.

    Its bundle is one of its own: where rounding misses parity, no other loses its bundle.
    """

    name = "kosine-native-w8a16"
    label = "kosine native w8a16"
    precision = "w8a16"
    converts = ("kosine-int8",)


class KosineNativeInt8(KosineNativeW8A16):
    """The native engine with weights and activations of bytes."""

    name = "kosine-native-int8"
    label = "kosine native int8"
    precision = "int8"

    def w8a16_share(self, checkpoint: Checkpoint) -> float | None:
        from kosine.bundle import Bundle

        record = Bundle(self.bundle(checkpoint)).manifest.int8
        return None if record is None else record.bytes_only_share


class KosineNativeAvx512(KosineNativeFloat32):
    """The native engine with nothing above AVX512, whatever else this CPU has."""

    name = "kosine-native-avx512-float32"
    label = "kosine native fp32 (AVX512, forced)"
    forced = "avx512"
    environ: ClassVar[dict[str, str]] = {"KOSINE_ISA": forced}
    serves = False


class KosineNativeAvx2(KosineNativeAvx512):
    """The native engine with nothing above AVX2."""

    name = "kosine-native-avx2-float32"
    label = "kosine native fp32 (AVX2, forced)"
    forced = "avx2"
    environ: ClassVar[dict[str, str]] = {"KOSINE_ISA": forced}


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
        from kosine.backends.onnx.cuda import gpu_profiles

        return gpu_profiles(self.encoder.max_tokens)

    def computed_tokens(self, lengths: Sequence[int], setting: Setting) -> int:
        from kosine.backends.rows.buckets import pieces
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


class KosineOwnCuda(KosineCuda):
    """kosine's own kernels, which pad nothing but the end of a batch."""

    name = "kosine-cuda-float16"
    label = "kosine cuda fp16"
    backend = "cuda"
    converts = ("kosine-cuda",)
    options: ClassVar[dict[str, Any]] = {}
    packages = (*Kosine.packages, "triton")

    def computed_tokens(self, lengths: Sequence[int], setting: Setting) -> int:
        return sum(lengths)


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
