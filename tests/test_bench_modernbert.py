"""The benchmark's ModernBERT: a checkpoint that everyone reads, and its operations counted."""

from __future__ import annotations

import numpy as np
import pytest

import factories
import kosine
from kosine_bench import command
from kosine_bench.contestants import conversion
from kosine_bench.contestants.contestant import Checkpoint
from kosine_bench.measuring import models
from kosine_bench.measuring.models import SIZES, ModelSize, flops_per_text
from kosine_export.export import export

TINY = ModelSize("tiny", 32_000, 64, 4, 2, 96, 256, "modernbert")


def test_everyone_reads_the_checkpoint(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    path = models.build(TINY, tmp_path)
    texts = ["한 남자가 기타를 치고 있다.", "비행기가 이륙하고 있다. " * 20]
    expected = factories.referee_vectors(factories.referee(path), texts, normalize_embeddings=True)
    done = export(path, tmp_path / "b.kosine")
    assert done.parity["float32"].passed
    assert [block.attention.window for block in done.manifest.spec.layers] == [None, 64, 64, None]
    assert done.manifest.max_tokens == TINY.max_tokens == 256
    found = kosine.load(done.path, backend="onnx").encode(texts)
    assert np.abs(found - expected).max() <= 5e-6
    assert abs(float(found[0] @ found[1])) < 0.99


def test_masks_without_infinity_are_its_own(tmp_path):
    torch = pytest.importorskip("torch")
    path = models.build(TINY, tmp_path)
    checkpoint = Checkpoint(path, tmp_path)
    ids = torch.tensor([[2, *range(5, 203), 3], [2, *range(5, 23), 3, *[1] * 180]])
    mask = (ids != 1).long()
    with torch.no_grad():
        found, expected = (
            conversion._transformer(checkpoint, finite_masks=finite)(ids, mask)
            for finite in (True, False)
        )
    assert torch.isfinite(found).all()
    assert (found - expected)[mask == 1].abs().max() <= 1e-5


def test_operations_are_those_of_the_window():
    size = SIZES["modernbert-base"]
    assert size.linear_weights == 22 * (4 * 768**2 + 3 * 768 * 1152)
    linear = 2.0 * size.linear_weights
    assert flops_per_text(size, 100) == 100 * linear + 4.0 * 22 * 768 * 100 * 100
    whole, local = 8 * 2048, 14 * 129  # of 22 layers every third sees all
    assert flops_per_text(size, 2048) == 2048 * linear + 4.0 * 768 * 2048 * (whole + local)


def test_what_is_measured_of_it_by_default():
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    chosen = command.plan(parser.parse_args(["--device", "cpu"]))
    parts = {
        part.workload.name: part for part in chosen.parts if part.size.name == "modernbert-base"
    }
    assert parts["korsts"].modes == ("bulk",)
    assert parts["documents"].modes == ("single", "bulk")
    assert {part.size.name for part in chosen.parts if part.workload.name == "documents"} == {
        "modernbert-base"
    }
