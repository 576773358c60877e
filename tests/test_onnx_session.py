"""The session that the ONNX backend opens on a CPU, as ONNX Runtime's own profile shows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from kosine.backends.onnx.cpu import start_session


@pytest.mark.parametrize("apart", [True, False])
def test_residuals_and_layer_norms_stay_apart(sample, tmp_path, monkeypatch, apart):
    """Fused they take much longer; and a fusion that is no longer called so would come back."""
    if not apart:
        monkeypatch.setattr("kosine.backends.onnx.cpu.SLOW_FUSIONS", [])
    batch = sample.prepare(["한 남자가 기타를 친다.", "비행기가 뜬다."]).batch
    expected = sample.compute(batch).vectors
    options = sample.backend._options(onnxruntime)
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = start_session(sample.backend._graph.data, sample.backend._weights, options)
    monkeypatch.setattr(sample.backend, "_session", session)
    vectors = sample.compute(batch).vectors
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    ran = {event["args"].get("op_name") for event in events if "args" in event}
    assert ("SkipLayerNormalization" in ran) is not apart
    assert "LayerNormalization" in ran
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
