"""What the machine could do at most: matrix products per precision, and memory traffic.

A figure's share of its limit is only as honest as the limit, so each one is the best of every
library and shape tried here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

__all__ = ["measure_cpu", "measure_gpu"]

SHAPES = ((512, 768, 3072), (1024, 1024, 4096), (2048, 2048, 2048))
SECONDS = 0.4
READ_BYTES = 1 << 30

# Square ones, which libraries are tuned on most, and an encoder's own (tokens, inner, outer).
GPU_SHAPES = (
    *((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192)),
    *((16384, 768, 3072), (16384, 1024, 4096), (32768, 4096, 1024)),
)
GPU_PRECISIONS = ("float16", "bfloat16", "float32")
GPU_COPY_BYTES = 1 << 31
GPU_SECONDS = 0.25


def measure_cpu(threads: int) -> dict[str, Any]:
    """Peak operations per second by precision, and bytes read per second.

    Returns:
        `{"matrix": {precision: {"flops": f, "by": library, "shape": [m, k, n]}},
        "memory": {"bytes_per_second": b}}`; a precision that nothing here can run is left out.
    """
    best: dict[str, dict[str, Any]] = {}
    for library in (_torch_products, _onnxruntime_products, _numpy_products):
        try:
            products = library(threads)
        except ImportError:
            continue
        for precision, by, make in products:
            for m, k, n in SHAPES:
                try:
                    seconds = _best_seconds(make(m, k, n))
                except (RuntimeError, NotImplementedError):
                    continue
                flops = 2.0 * m * k * n / seconds
                if flops > best.get(precision, {"flops": 0.0})["flops"]:
                    best[precision] = {"flops": flops, "by": by, "shape": [m, k, n]}
    return {"matrix": best, "memory": {"bytes_per_second": _read_speed(threads)}}


Product = tuple[str, str, Callable[[int, int, int], Callable[[], object]]]


def _best_seconds(run: Callable[[], object]) -> float:
    """The fastest of the calls that fit into `SECONDS`, after two to warm up."""
    run()
    run()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while True:
        start = time.perf_counter()
        run()
        stop = time.perf_counter()
        best = min(best, stop - start)
        if stop > end:
            return best


def _torch_products(threads: int) -> list[Product]:
    import torch

    torch.set_num_threads(threads)

    def dense(dtype: Any) -> Callable[[int, int, int], Callable[[], object]]:
        def make(m: int, k: int, n: int) -> Callable[[], object]:
            a = torch.rand(m, k).to(dtype)
            linear = torch.nn.Linear(k, n, bias=False).to(dtype).requires_grad_(False)
            return lambda: linear(a)

        return make

    def int8(m: int, k: int, n: int) -> Callable[[], object]:
        a = torch.randint(-100, 100, (m, k), dtype=torch.int8)
        b = torch.randint(-100, 100, (n, k), dtype=torch.int8).t()
        return lambda: torch._int_mm(a, b)

    return [
        ("float32", "PyTorch", dense(torch.float32)),
        ("bfloat16", "PyTorch", dense(torch.bfloat16)),
        ("int8", "PyTorch", int8),
    ]


def _onnxruntime_products(threads: int) -> list[Product]:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def run(kind: str, given: int, made: int, weights: Any, a: Any) -> Callable[[], object]:
        (m, k), n = a.shape, weights.dims[1]
        graph = helper.make_graph(
            [helper.make_node(kind, ["a", "b"], ["c"])],
            "product",
            [helper.make_tensor_value_info("a", given, [m, k])],
            [helper.make_tensor_value_info("c", made, [m, n])],
            [weights],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, {"a": a})

    def int8(m: int, k: int, n: int) -> Callable[[], object]:
        rng = np.random.default_rng(0)
        weights = numpy_helper.from_array(rng.integers(-100, 100, (k, n), np.int8), "b")
        a = rng.integers(0, 200, (m, k)).astype(np.uint8)
        return run("MatMulInteger", TensorProto.UINT8, TensorProto.INT32, weights, a)

    def float32(m: int, k: int, n: int) -> Callable[[], object]:
        rng = np.random.default_rng(0)
        weights = numpy_helper.from_array(rng.random((k, n), np.float32), "b")
        a = rng.random((m, k), np.float32)
        return run("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, weights, a)

    return [("float32", "ONNX Runtime", float32), ("int8", "ONNX Runtime", int8)]


def _numpy_products(_: int) -> list[Product]:
    def float32(m: int, k: int, n: int) -> Callable[[], object]:
        rng = np.random.default_rng(0)
        a = rng.random((m, k), np.float32)
        b = rng.random((k, n), np.float32)
        out = np.empty((m, n), np.float32)
        return lambda: np.matmul(a, b, out=out)

    return [("float32", "NumPy", float32)]


def _read_speed(threads: int) -> float:
    """Bytes read per second from a block far larger than any cache, all threads together."""
    from concurrent.futures import ThreadPoolExecutor

    block = np.ones(READ_BYTES // 8, np.float64)
    parts = np.array_split(block, threads)
    with ThreadPoolExecutor(threads) as pool:
        # A maximum reads every byte once, keeps nothing, and releases the GIL.
        seconds = _best_seconds(lambda: list(pool.map(np.max, parts)))
    return READ_BYTES / seconds


def measure_gpu(
    device: str = "cuda",
    *,
    shapes: Sequence[tuple[int, int, int]] = GPU_SHAPES,
    copy_bytes: int = GPU_COPY_BYTES,
    seconds: float = GPU_SECONDS,
) -> dict[str, Any]:
    """Peak operations per second by precision, and bytes moved per second in device memory.

    Random operands: products of zeros draw less power and run at clocks that no encoder sees.

    Returns:
        `{"matrix": {precision: {"flops": f, "by": library, "shape": [m, k, n]}},
        "memory": {"bytes_per_second": b}}`; bytes read and written are both counted.
    """
    import torch

    wait: Callable[[], object] = torch.cuda.synchronize if device.startswith("cuda") else list
    best: dict[str, dict[str, Any]] = {}
    for precision in GPU_PRECISIONS:
        dtype = getattr(torch, precision)
        for m, k, n in shapes:
            a = torch.randn(m, k, device=device).to(dtype)
            b = torch.randn(k, n, device=device).to(dtype)
            out = torch.empty(m, n, device=device, dtype=dtype)
            spent = _gpu_seconds(partial(torch.matmul, a, b, out=out), wait, seconds)
            flops = 2.0 * m * k * n / spent
            if flops > best.get(precision, {"flops": 0.0})["flops"]:
                best[precision] = {"flops": flops, "by": "PyTorch", "shape": [m, k, n]}
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = _gpu_seconds(lambda: target.copy_(source), wait, seconds)
    return {"matrix": best, "memory": {"bytes_per_second": 2.0 * copy_bytes / spent}}


def _gpu_seconds(run: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
    """Seconds of one call: the best of several groups of calls, each as long as `seconds` / 4.

    Calls of a group are queued without waiting, so that launching is hidden behind computing.
    """
    for _ in range(3):
        run()
    wait()
    start = time.perf_counter()
    run()
    wait()
    calls = max(int(seconds / 4 / max(time.perf_counter() - start, 1e-6)), 1)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        stop = time.perf_counter()
        best = min(best, (stop - start) / calls)
        if stop > end:
            return best
