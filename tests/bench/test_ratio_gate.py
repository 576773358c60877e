"""Packed rows against plain padding, on the same ONNX Runtime, in the same run.

Only ratios are gated: both sides run in processes of their own, in interleaved rounds on the
same CPUs, so a slow machine or a slow spell falls on both.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from kosine_bench.contestants.contestant import Checkpoint
from kosine_bench.measuring import models
from kosine_bench.measuring.plan import Effort, Part
from kosine_bench.measuring.summary import ratio
from kosine_bench.measuring.work_file import WorkFile, write_work
from kosine_bench.measuring.worker_process import WorkerProcess
from kosine_bench.measuring.workload import WORKLOADS

pytest.importorskip("torch", reason="the padded reference's graph is exported by PyTorch")

ROUNDS = 3
ATTEMPTS = 3
THREADS = 2
LEAST_ON_BURSTS = 2.0
# Bursts alone are measured, some five seconds' worth for the slower side at base size.
EFFORT = Effort(ROUNDS, 0, 6, 6, 8, 0.0, 1e12, 0.0, 0.0)


class Comparison:
    """kosine and plain ONNX Runtime on one checkpoint and one workload."""

    def __init__(self, size: models.ModelSize, cache: Path) -> None:
        folder = models.build(size, cache)
        self.checkpoint = Checkpoint(folder, cache / "converted")
        self.work: WorkFile = write_work(
            Part(WORKLOADS["korsts"], size), self.checkpoint, EFFORT, cache
        )
        self.log = cache / "worker.log"
        for name in ("kosine-onnx-float32", "onnxruntime-plain"):
            with self.worker(name) as worker:
                worker.ask("convert", calibration=[])

    def worker(self, name: str) -> WorkerProcess:
        return WorkerProcess(
            *(Path(sys.executable), name, self.checkpoint.folder, self.checkpoint.converted),
            *(THREADS, {}, self.log),
        )

    def burst(self, name: str) -> dict[str, Any]:
        with self.worker(name) as worker:
            worker.ask("load", threads=THREADS)
            worker.ask("texts", file=str(self.work.path))
            setting = worker.ask("tune", mode="burst")["best"]
            samples: dict[str, Any] = worker.ask(
                "measure", mode="burst", scope="engine", setting=setting
            )
            return samples

    def times_faster(self) -> dict[str, Any]:
        rounds = [
            (self.burst("kosine-onnx-float32"), self.burst("onnxruntime-plain"))
            for _ in range(ROUNDS)
        ]
        return ratio([ours for ours, _ in rounds], [theirs for _, theirs in rounds])


@pytest.mark.slow
def test_packed_rows_beat_plain_padding_on_unsorted_bursts(tmp_path: Path) -> None:
    comparison = Comparison(models.SIZES["base"], tmp_path)
    measured = []
    for _ in range(ATTEMPTS):
        measured.append(comparison.times_faster())
        if measured[-1]["ratio"] >= LEAST_ON_BURSTS:
            return
    pytest.fail(f"times faster than plain padding, over {ATTEMPTS} attempts: {measured}")
