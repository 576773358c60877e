"""Every contestant: by device, as the reference, and by name."""

from __future__ import annotations

from kosine_bench.contestants.contestant import Contestant
from kosine_bench.contestants.kosine import (
    KosineNativeAvx2,
    KosineNativeAvx512,
    KosineNativeBfloat16,
    KosineNativeFloat32,
    KosineNativeInt8,
    KosineNativeW8A16,
    KosineOnnx,
    KosineOnnxCuda,
    KosineOwnCuda,
    KosineTensorrt,
)
from kosine_bench.contestants.onnxruntime_cuda import OnnxRuntimeCuda, OnnxRuntimePlainCuda
from kosine_bench.contestants.pytorch_cuda import (
    SentenceTransformersCuda,
    SentenceTransformersFloat32Cuda,
    TorchCompiled,
    TorchPadded,
    TorchVarlen,
)
from kosine_bench.contestants.rivals import (
    CTranslate2Int8,
    OnnxRuntime,
    OnnxRuntimeInt8,
    OnnxRuntimePlain,
    OpenVinoBfloat16,
    OpenVinoFloat32,
    OpenVinoInt8,
    SentenceTransformersBfloat16,
    SentenceTransformersCompiled,
    SentenceTransformersFloat32,
)
from kosine_bench.contestants.tei import TextEmbeddingsInference
from kosine_bench.contestants.wrappers import FastEmbed, Infinity

__all__ = [
    *("CONTESTANTS", "FORCED", "GPU_OURS", "GPU_REFERENCE", "GPU_RIVALS", "OURS", "REFERENCE"),
    *("RIVALS", "WRAPPERS", "find"),
]

OURS: tuple[type[Contestant], ...] = (
    KosineOnnx,
    KosineNativeFloat32,
    KosineNativeBfloat16,
    KosineNativeW8A16,
    KosineNativeInt8,
    KosineNativeAvx512,
    KosineNativeAvx2,
)

RIVALS: tuple[type[Contestant], ...] = (
    SentenceTransformersFloat32,
    SentenceTransformersBfloat16,
    SentenceTransformersCompiled,
    OnnxRuntimePlain,
    OnnxRuntime,
    OnnxRuntimeInt8,
    OpenVinoFloat32,
    OpenVinoBfloat16,
    OpenVinoInt8,
    CTranslate2Int8,
    FastEmbed,
    Infinity,
    TextEmbeddingsInference,
)

GPU_OURS: tuple[type[Contestant], ...] = (KosineOwnCuda, KosineOnnxCuda, KosineTensorrt)

GPU_REFERENCE: type[Contestant] = SentenceTransformersFloat32Cuda

GPU_RIVALS: tuple[type[Contestant], ...] = (
    SentenceTransformersCuda,
    TorchPadded,
    TorchCompiled,
    TorchVarlen,
    OnnxRuntimePlainCuda,
    OnnxRuntimeCuda,
)

CONTESTANTS: dict[str, tuple[type[Contestant], ...]] = {
    "cpu": (*OURS, *RIVALS),
    "cuda": (*GPU_OURS, *GPU_RIVALS),
}

# Whose vectors all others are held against.
REFERENCE: dict[str, type[Contestant]] = {
    "cpu": SentenceTransformersFloat32,
    "cuda": GPU_REFERENCE,
}

# Held to an instruction set.
FORCED = frozenset(kind.name for kind in OURS if kind.forced)

# Their engines are measured as contestants of their own.
WRAPPERS = frozenset({"fastembed-float32", "infinity-float32"})


def find(name: str) -> Contestant:
    """The contestant called `name`."""
    for kind in (*CONTESTANTS["cpu"], GPU_REFERENCE, *CONTESTANTS["cuda"]):
        if kind.name == name:
            return kind()
    raise LookupError(f"no contestant is called {name!r}")
