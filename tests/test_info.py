"""`kosine info`: from the manifest alone, without making an engine, and in no time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import kosine
from kosine import cli
from kosine.backends.registry import BACKENDS, capabilities, make_backend
from kosine.bundle import Bundle
from kosine_kernels import engine
from native_machine import needs_native
from rehash import rewrite_manifest


@pytest.fixture
def info(capsys):
    def call(bundle: Path) -> tuple[dict, str]:
        assert cli.main(["info", str(bundle), "--json"]) == 0
        value = json.loads(capsys.readouterr().out)
        assert cli.main(["info", str(bundle)]) == 0
        return value, capsys.readouterr().out

    return call


def test_it_says_what_auto_tries_first(info, sample_bundle):
    made = make_backend(Bundle(sample_bundle))
    value, text = info(sample_bundle)
    assert value["auto"] == {"backend": made.name, "dtype": made.dtype}
    marked = [line for line in text.splitlines() if "(auto, where it passes the canary)" in line]
    assert len(marked) == 1
    assert f"{made.name}/{made.dtype}" in marked[0]


def test_every_engine_has_its_fingerprint_or_the_reason_why_not(info, sample_bundle):
    value, text = info(sample_bundle)
    engines = {(entry["backend"], entry["dtype"]): entry for entry in value["engines"]}
    assert set(engines) == {(b, d) for b in BACKENDS for d in capabilities(b).dtypes}
    for (backend, dtype), entry in engines.items():
        if entry["runs"]:
            encoder = kosine.load(sample_bundle, backend=backend, dtype=dtype)
            assert entry["fingerprint"] == encoder.fingerprint
            assert entry["fingerprint"] in text
        else:
            with pytest.raises(kosine.KosineError) as caught:
                kosine.load(sample_bundle, backend=backend, dtype=dtype)
            assert entry["reason"] == str(caught.value)
            assert entry["reason"] in text
    assert engines["onnx", "float32"]["runs"]
    assert not engines["tensorrt", "float16"]["runs"]


def test_nothing_but_the_manifest_is_read_and_no_engine_is_made(info, sample_bundle, monkeypatch):
    expected = info(sample_bundle)

    def never(*_, **__):
        raise AssertionError("info opened a file or made an engine")

    monkeypatch.setattr(Bundle, "file", never)
    monkeypatch.setattr("kosine.backends.registry._make", never)
    assert info(sample_bundle) == expected


def test_the_flat_values_of_schema_1_are_still_there(info, sample_bundle):
    value, _ = info(sample_bundle)
    assert (value["dim"], value["max_tokens"], value["normalized"]) == (256, 128, False)
    assert value["pooling"] == {"mode": "mean", "include_prompt": True}
    assert value["dense"] == []
    assert value["architecture"]["num_layers"] == len(value["spec"]["layers"]) == 4
    assert value["architecture"]["position_rule"] == "roberta"


def test_it_takes_less_than_half_a_second_of_its_own(sample_bundle):
    """Processor time, so that a busy machine does not matter; without the interpreter's start."""
    code = f"""
import sys, time
import numpy, tokenizers
from kosine.cli import main
began = time.process_time()
assert main(["info", {str(sample_bundle)!r}]) == 0
spent = time.process_time() - began
assert spent < 0.5, spent
assert "onnxruntime" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_where_nothing_runs(info, sample_bundle, monkeypatch):
    monkeypatch.setattr(engine, "_native_missing", ImportError("not built"))
    monkeypatch.setattr("kosine.backends.onnx.library.importlib.util.find_spec", lambda _: None)
    value, text = info(sample_bundle)
    assert value["auto"] is None
    assert not any(entry["runs"] for entry in value["engines"])
    assert "not built" in text
    assert "pip install 'kosine[onnx]'" in text


@needs_native
def test_a_level_that_cannot_be_followed(info, sample_bundle, monkeypatch):
    """As `kosine.load`: "auto" stops at it, and takes no other engine."""
    monkeypatch.setenv(engine.ISA_VARIABLE, "avx521")
    value, text = info(sample_bundle)
    assert value["auto"] is None
    assert "KOSINE_ISA cannot be followed" in text


def test_the_parity_line(info, sample_bundle, tmp_path):
    value, text = info(sample_bundle)
    parity = value["parity"]
    assert f"centred {parity['centred']['min_cosine']:.8f}" in text

    # Bundles that were written before it was measured have no such entry.
    def without(m):
        for each in (m["parity"], *m["parity"].get("others", {}).values()):
            each.pop("centred", None)

    older = rewrite_manifest(sample_bundle, tmp_path / "b", without)
    assert "centred" not in info(older)[1]
    none = rewrite_manifest(sample_bundle, tmp_path / "c", lambda m: m.update(parity=None))
    assert "parity       not measured" in info(none)[1]
    # Its form is open: another kosine may write another.
    for number, other in enumerate(({}, {"others": []}, {"others": {"bfloat16": 1}, "texts": 3})):
        odd = rewrite_manifest(
            sample_bundle, tmp_path / f"d{number}", lambda m, parity=other: m.update(parity=parity)
        )
        assert "not in the form that this version of kosine writes" in info(odd)[1]
