"""The GPU engine's graphs are timed, by shape and by kernel: on a stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host_gpu import HostCuda, ReferenceForward, stand_in
from kosine.bundle import Bundle
from kosine_bench.measuring import gpu_graphs
from kosine_bench.measuring.models import SIZES, flops_per_text


class Calls:
    def launch(self, name, grid) -> None:  # noqa: ARG002
        assert grid[0] >= 16

    def multiply_by_cublas(self, name, rows) -> None:  # noqa: ARG002
        assert rows == 3


class Timed(ReferenceForward):
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._calls = Calls()

    def enqueue(self, shape) -> None:
        super().enqueue(shape)
        self._calls.launch("embed", (shape.tokens, 1))
        self._calls.multiply_by_cublas("layers.0.ffn.up", 3)
        self._calls.multiply_by_cublas("layers.1.ffn.up", 3)


def test_graphs_and_kernels_are_timed(sample_bundle: Path, tmp_path: Path, monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr("kosine.backends.cuda.backend.forward_class", lambda: Timed)
    monkeypatch.setattr(HostCuda, "seconds", lambda _, enqueue: enqueue() or 2e-6, raising=False)
    monkeypatch.setattr(gpu_graphs, "BATCHES", ((1, 16), (2, 500), (3, 20)))
    monkeypatch.setattr(gpu_graphs.machine, "visible_gpu", lambda: None)
    output = tmp_path / "graphs.json"
    gpu_graphs.main([str(sample_bundle), "--output", str(output)])
    result = json.loads(output.read_text(encoding="utf-8"))
    assert [(row["sentences"], row["tokens"]) for row in result["graphs"]] == [(1, 16), (3, 20)]
    for row in result["graphs"]:
        assert row["graph_us"] > 0
        assert row["kernels_us"] == {"embed": 2.0, "product up": 4.0}
    assert result["made"]["seed"] == gpu_graphs.SEED


@pytest.mark.parametrize("tokens", [16, 500])
def test_operations_are_those_of_the_limits(sample_bundle: Path, tokens: int):
    spec = Bundle(sample_bundle).manifest.spec
    assert gpu_graphs.operations(spec, 3, tokens) == pytest.approx(
        3 * flops_per_text(SIZES["sample"], tokens)
    )
