"""The three examples do what they say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import kosine

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TEXTS = [
    "한 남자가 기타를 친다.",
    "",
    "두 사람이 걷는다.",
    "A man plays.",
    "비행기가 이륙한다.",
] * 9


@pytest.fixture(scope="module")
def encoder(sample_bundle):
    """As the examples load it: what backend and dtype "auto" takes here."""
    return kosine.load(sample_bundle)


def run(name, *arguments, stdin=None):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def load_module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_web_app(sample_bundle, encoder):
    pytest.importorskip("starlette", reason="starlette is not installed")
    pytest.importorskip("httpx2", reason="httpx2, which starlette's test client takes, is not here")
    from starlette.testclient import TestClient

    with TestClient(load_module("web_app").make_app(str(sample_bundle))) as client:
        answer = client.post("/embed", json={"texts": TEXTS})
        assert answer.status_code == 200
        np.testing.assert_allclose(answer.json()["vectors"], encoder.encode(TEXTS), atol=2e-6)
        assert client.post("/embed", json={"texts": [3]}).status_code == 422
        assert client.get("/health").json() == {"state": "serving", "waiting": 0}


def test_threaded_worker(sample_bundle, encoder):
    pairs = [f"{a}\t{b}" for a, b in pairwise(TEXTS)]
    scores = [
        float(line)
        for line in run("threaded_worker.py", sample_bundle, stdin="\n".join(pairs)).split()
    ]
    vectors = encoder.encode(TEXTS)
    np.testing.assert_allclose(scores, (vectors[:-1] * vectors[1:]).sum(axis=1), atol=6e-5)


def test_stream_file(sample_bundle, encoder, tmp_path):
    texts, vectors = tmp_path / "texts.txt", tmp_path / "vectors.f32"
    lines = [f"{text} {number}" for number, text in enumerate(TEXTS * 5)]
    texts.write_text("\n".join(lines) + "\n", "utf-8")
    run("stream_file.py", sample_bundle, texts, vectors)
    rows = np.fromfile(vectors, np.float32).reshape(-1, encoder.dim)
    np.testing.assert_allclose(rows, encoder.encode(lines), atol=2e-6)
