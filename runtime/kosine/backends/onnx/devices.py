"""ONNX Runtime on the device that was asked for."""

from __future__ import annotations

from kosine.backend import Backend, Capabilities
from kosine.backends.device import is_cuda
from kosine.backends.onnx.cpu import OnnxBackend
from kosine.backends.onnx.library import probe
from kosine.bundle import Bundle

__all__ = ["CAPABILITIES", "make_onnx", "probe"]

CAPABILITIES = Capabilities(
    ("float32", "float16"), {"cpu": ("float32",), "cuda": ("float16", "float32")}
)


def make_onnx(
    bundle: Bundle,
    *,
    dtype: str = "float32",
    device: str = "auto",
    threads: int | None = None,
    spin: bool = False,
) -> Backend:
    """The engine for `device`: "cuda" and "cuda:N" are a GPU, "auto" is the CPU."""
    if is_cuda(device):
        from kosine.backends.onnx.cuda import OnnxCudaBackend

        return OnnxCudaBackend(bundle, dtype=dtype, device=device, threads=threads, spin=spin)
    return OnnxBackend(bundle, dtype=dtype, device=device, threads=threads, spin=spin)
