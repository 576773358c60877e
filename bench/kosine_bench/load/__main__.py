"""Latency against load: the batcher packed, beside the same batcher on padded rectangles.

    python -m kosine_bench.load [BUNDLE] [--quick] [--batch-tokens N] [--out FILE] [--plot FILE]

Without a bundle it is that of `kosine bench`: base size, random weights, made on first use.
Texts of 5 to 63 tokens, with the lengths of the korsts workload (mean 17), arrive open-loop
(Poisson). Capacity is measured first, for each way of batching, with a queue that never runs dry;
each way is then offered the same parts of its own capacity, so that both curves are as finely
drawn. There are three passes over all points, every other one in the opposite order, the two ways
taking turns, so that a drifting machine slows both alike; a point's percentiles are the medians of
its passes'. Both ways use the same backend, policy, token budget, texts and (stretched) arrivals;
"padded" lengthens every sentence of a batch to the longest one, which is what a rectangle
computes. Figures are comparable within one run only.

In the result: p99 at 70 % of capacity against its bar, 4 x the unloaded p50 + one full batch; the
requests that kept their deadline at 200 %; and how many times the load of padded batching packed
batching carries at equal p99, at that bar and at levels fixed beforehand
(`load.equal_p99`). Beside them, under "without_overhead", what both ways would carry if nothing but
the engine took any time (`load.without_overhead`); and the same at smaller budgets, which suit
padding better where small batches cost little more per token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import kosine
from kosine_bench.load.base_model import base_bundle
from kosine_bench.load.chart import plot
from kosine_bench.load.curve import BATCH_TOKENS, curve, status
from kosine_bench.load.sampling import FULL, QUICK

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write, draw; exits 1 if a figure is outside its bar.

    Twice the load of padded batching is asked for; see `status`.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", nargs="?", help="the benchmark's base model if left out")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few loads, 4 s each, one pass: too short for twice the load to show",
    )
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--plot", type=Path, help="where to draw the curve (.svg or .png)")
    options = parser.parse_args(argv)
    encoder = kosine.load(options.bundle or base_bundle())
    report = curve(encoder, QUICK if options.quick else FULL, options.batch_tokens)
    report["backend"], report["dtype"] = encoder.backend.name, encoder.backend.dtype
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if options.plot is not None:
        plot(report, options.plot)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return status(report)


if __name__ == "__main__":
    raise SystemExit(main())
