"""What the GPU could do at most: dense matrix products per precision, and device memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

__all__ = ["SHAPES", "measure"]

# Square ones, which libraries are tuned on most, and an encoder's own (tokens, inner, outer).
SHAPES = (
    *((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192)),
    *((16384, 768, 3072), (16384, 1024, 4096), (32768, 4096, 1024)),
)
PRECISIONS = ("float16", "bfloat16", "float32")
COPY_BYTES = 1 << 31
SECONDS = 0.25


def measure(
    device: str = "cuda",
    *,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    copy_bytes: int = COPY_BYTES,
    seconds: float = SECONDS,
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
    for precision in PRECISIONS:
        dtype = getattr(torch, precision)
        for m, k, n in shapes:
            a = torch.randn(m, k, device=device).to(dtype)
            b = torch.randn(k, n, device=device).to(dtype)
            out = torch.empty(m, n, device=device, dtype=dtype)
            spent = _seconds(partial(torch.matmul, a, b, out=out), wait, seconds)
            flops = 2.0 * m * k * n / spent
            if flops > best.get(precision, {"flops": 0.0})["flops"]:
                best[precision] = {"flops": flops, "by": "PyTorch", "shape": [m, k, n]}
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = _seconds(lambda: target.copy_(source), wait, seconds)
    return {"matrix": best, "memory": {"bytes_per_second": 2.0 * copy_bytes / spent}}


def _seconds(run: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
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
