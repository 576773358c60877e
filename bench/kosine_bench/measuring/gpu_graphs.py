"""kosine's GPU engine alone: the time of its graphs by shape, and of each kernel in them.

    python -m kosine_bench.measuring.gpu_graphs BUNDLE... --output FILE

No texts, and no Python between a graph's kernels. What the whole library makes of that, beside its
rivals, is `kosine bench --device cuda`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kosine.backends.cuda.backend import PIECE_TOKENS, CudaBackend
from kosine.backends.cuda.shape import Shape, shape_of, token_steps
from kosine.bundle import Bundle
from kosine.packed import Packed
from kosine.spec import EncoderSpec
from kosine_bench.measuring import machine
from kosine_bench.measuring.result_file import now

__all__ = ["measure", "operations"]

SEED = 1
# Sentences, and tokens of each.
BATCHES = ((1, 16), (8, 16), (32, 16), (256, 16), (512, 16), (64, 128), (1, 512), (16, 512))
REPEATS, REPLAYS = 7, 5


def operations(spec: EncoderSpec, sentences: int, tokens: int) -> int:
    """Floating-point operations of products and attention, for sentences of so many tokens."""
    total = 0
    for block in spec.layers:
        attention, forward = block.attention, block.feed_forward
        columns = 2 * attention.width + 2 * attention.shared_width
        columns += (3 if forward.gated else 2) * forward.intermediate_size
        total += 2 * spec.hidden_size * columns + 4 * tokens * attention.width
    return total * sentences * tokens


def measure(bundle: Bundle, dtype: str = "float16") -> list[dict[str, Any]]:
    """For each of BATCHES that the model takes: microseconds of the graph, and by kernel a sum.

    A kernel's time is that of eight in a row, so its operands are in the cache.
    """
    spec = bundle.manifest.spec
    backend = CudaBackend(bundle, dtype=dtype)
    random = np.random.default_rng(SEED)
    found = []
    for sentences, tokens in BATCHES:
        if tokens > bundle.manifest.max_tokens:
            continue
        rows = random.integers(0, spec.embeddings.vocab_size, (sentences, tokens), np.int32)
        batch = Packed.of([*rows])
        begin = time.perf_counter()
        backend.run(batch)
        first = time.perf_counter() - begin
        backend.run(batch)  # captures
        shape = shape_of(batch.lengths, token_steps(PIECE_TOKENS))
        seconds = _replays(backend, shape)
        found.append(
            {
                "model": bundle.path.name,
                "dtype": dtype,
                "sentences": sentences,
                "tokens": tokens,
                "graph_us": round(seconds * 1e6, 1),
                "flops": round(operations(spec, sentences, tokens) / seconds),
                "first_call_s": round(first, 2),
                "kernels_us": _by_kernel(backend, shape),
            }
        )
    backend.close()
    return found


def _replays(backend: CudaBackend, shape: Shape) -> float:
    """Seconds of one replay: the median of several means."""
    gpu, graph = backend._gpu, backend._graphs[shape]
    means = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in range(REPLAYS):
            gpu.replay(graph)
        gpu.synchronize()
        means.append((time.perf_counter() - begin) / REPLAYS)
    return statistics.median(means)


def _by_kernel(backend: CudaBackend, shape: Shape) -> dict[str, float]:
    gpu = backend._gpu
    calls: Any = backend._forward._calls
    launch, multiply = calls.launch, calls.multiply_by_cublas
    sums: dict[str, float] = {}

    def timed(name: str, call: Any, *args: Any, **options: Any) -> None:
        call(*args, **options)
        seconds = gpu.seconds(lambda: call(*args, **options))
        sums[name] = round(sums.get(name, 0) + seconds * 1e6, 1)

    calls.launch = lambda name, *rest, **o: timed(name, launch, name, *rest, **o)
    calls.multiply_by_cublas = lambda name, *rest: timed(
        "product " + name.rpartition(".")[2], multiply, name, *rest
    )
    try:
        backend._forward.enqueue(shape)
    finally:
        del calls.launch, calls.multiply_by_cublas
    return sums


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    gpu = machine.visible_gpu()
    result = {
        "made": {"date": now(), **machine.commit(), "seed": SEED},
        "machine": machine.describe(1, gpu),
        "graphs": [row for path in args.bundles for row in measure(Bundle(path), args.dtype)],
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
