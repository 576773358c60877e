"""`kosine verify`: float32 first, whatever the machine, then what was asked for or is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import stand_in_native
from conftest import SAMPLE
from gpu_machine import stand_in, with_plan
from kosine import cli
from kosine.bundle.canary import GATES
from kosine_kernels import engine
from rehash import change_tensor, perturb_weights


@pytest.fixture
def native(monkeypatch):
    return stand_in_native.install(monkeypatch)


@pytest.fixture
def verify(capsys):
    """(exit code, the object of --json, the text), the code the same both ways."""

    def call(*words) -> tuple[int, dict, str]:
        given = [str(word) for word in words]
        code = cli.main(["verify", *given, "--json"])
        value = json.loads(capsys.readouterr().out)
        assert cli.main(["verify", *given]) == code
        assert value["passed"] == (code == 0)
        return code, value, capsys.readouterr().out

    return call


@pytest.fixture
def refused(capsys):
    def call(*words) -> str:
        assert cli.main(["verify", *map(str, words)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    return call


def ran(value: dict) -> list[tuple[str, str, bool]]:
    return [(c["backend"], c["dtype"], c["passed"]) for c in value["checks"]]


@pytest.fixture(scope="module")
def scaled(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One feed-forward matrix scaled by 1.02, and hashed anew."""
    path = tmp_path_factory.mktemp("scaled") / "scaled.kosine"
    shutil.copytree(sample_bundle, path)
    change_tensor(path, "layers.2.ffn.up.weight", lambda x: x * np.float32(1.02))
    return path


# On the machine at hand


def test_a_scaled_matrix_fails_here(verify, scaled):
    code, value, text = verify(scaled)
    assert code == 1
    assert value["checks"][0]["dtype"] == "float32"
    assert not value["checks"][0]["passed"]
    assert 0.9999 < value["checks"][0]["min_cosine"] < 0.999999
    assert text.endswith("scaled.kosine: FAILED\n")


def test_a_good_bundle_passes_here(verify, sample_bundle):
    code, value, text = verify(sample_bundle)
    assert code == 0
    assert value["checks"][0]["dtype"] == "float32"
    assert {entry["dtype"] for entry in value["checks"]} <= {"float32", "bfloat16"}
    assert (value["note"], value["ids_equal"]) == ("", 64)
    assert text.endswith(": PASSED\n")


@pytest.mark.parametrize("backend", ["auto", "onnx"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_named_dtype_comes_after_float32(verify, sample_bundle, scaled, backend, dtype):
    given = ("--backend", backend, "--dtype", dtype)
    code, value, text = verify(sample_bundle, *given)
    assert code == 0
    assert [d for _, d, _ in ran(value)] == list(dict.fromkeys(["float32", dtype]))
    assert value["dtype"] == dtype
    for entry in value["checks"]:
        assert f"{entry['backend']}/{entry['dtype']}\n" in text
        assert entry["gate"] == GATES[entry["dtype"]].to_json()
        assert entry["centred"]["texts"] >= 32
        assert entry["centred"]["min_cosine"] >= 0.999
    # The float16 graph has weights of its own, and they are good: the check of float32 fails.
    code, value, _ = verify(scaled, *given)
    assert code == 1
    assert ran(value)[0][1:] == ("float32", False)
    assert ran(value)[-1][1:] == (dtype, dtype == "float16")


# On a machine with a native engine in bfloat16


def test_the_reduced_dtype_of_auto_comes_after_float32(verify, sample_bundle, native):
    code, value, text = verify(sample_bundle)
    assert code == 0
    assert ran(value) == [("native", "float32", True), ("native", "bfloat16", True)]
    assert (value["backend"], value["dtype"]) == ("native", "bfloat16")
    assert text.index("native/float32") < text.index("native/bfloat16")
    assert native.made[:2] == [("native", "float32"), ("native", "bfloat16")]


@pytest.mark.usefixtures("native")
def test_a_scaled_matrix_fails_where_bfloat16_would_pass_it(verify, scaled):
    code, value, _ = verify(scaled)
    assert code == 1
    assert ran(value) == [("native", "float32", False), ("native", "bfloat16", True)]


def test_what_auto_passes_over_is_shown(verify, sample_bundle, native):
    native.wrong = {"bfloat16"}
    code, value, text = verify(sample_bundle)
    assert code == 0
    assert ran(value) == [("native", "float32", True), ("native", "bfloat16", False)]
    assert (value["backend"], value["dtype"]) == ("native", "float32")
    assert "native/bfloat16 falls short of its gate: auto passes over it" in text


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_a_named_dtype_that_falls_short_fails(verify, sample_bundle, native, backend):
    native.wrong = {"bfloat16"}
    code, value, text = verify(sample_bundle, "--dtype", "bfloat16", "--backend", backend)
    assert code == 1
    assert ran(value) == [("native", "float32", True), ("native", "bfloat16", False)]
    assert "passes over" not in text
    assert text.endswith("FAILED\n")


@pytest.mark.parametrize("wrong", ["wrong", "bent"])
def test_a_native_engine_that_is_wrong_in_float32_fails(verify, sample_bundle, native, wrong):
    """Although "auto" would take ONNX Runtime, or bfloat16, whose gate is wider."""
    setattr(native, wrong, {"float32"})
    code, value, _ = verify(sample_bundle)
    assert code == 1
    assert ran(value)[0] == ("native", "float32", False)
    assert ran(value)[-1] == ("native", "bfloat16", True)
    native.absent = {"bfloat16"}
    code, value, _ = verify(sample_bundle)
    assert code == 1
    assert ran(value) == [("native", "float32", False), ("onnx", "float32", True)]


def test_float32_runs_on_onnx_runtime_where_there_is_no_native_engine(
    verify, sample_bundle, native
):
    native.absent = {"float32", "bfloat16"}
    code, value, _ = verify(sample_bundle)
    assert (code, ran(value)) == (0, [("onnx", "float32", True)])


def test_an_engine_that_cannot_run_is_passed_over_too(verify, refused, sample_bundle, native):
    native.broken = {"bfloat16"}
    code, value, _ = verify(sample_bundle)
    assert (code, ran(value)) == (0, [("native", "float32", True)])
    assert "bfloat16 broke" in refused(sample_bundle, "--dtype", "bfloat16")


def test_token_ids_that_differ_fail(verify, sample_bundle, tmp_path):
    path = tmp_path / "b.kosine"
    shutil.copytree(sample_bundle, path)

    def changed(ids):
        ids = ids.copy()
        ids[1] += 1
        return ids

    change_tensor(path, "ids", changed, file="canary.safetensors")
    code, value, _ = verify(path)
    assert (code, value["checks"][0]["ids_equal"]) == (1, 63)


# Another engine than the one that was named


def test_a_backend_without_float32_leaves_it_to_another(
    verify, sample_bundle, tmp_path, monkeypatch
):
    stand_in(monkeypatch)
    bundle = with_plan(sample_bundle, tmp_path / "b.kosine")
    code, value, text = verify(bundle, "--backend", "tensorrt")
    assert code == 0
    first, second = ran(value)
    assert first[0] in ("native", "onnx")
    assert first[1:] == ("float32", True)
    assert second == ("tensorrt", "float16", True)
    assert value["backend"] == "tensorrt"
    assert f"there is no float32 on backend tensorrt: {first[0]} ran it on the CPU" in text
    assert value["note"] in text
    # The weights are checked there too.
    perturb_weights(bundle)
    code, value, _ = verify(bundle, "--backend", "tensorrt")
    assert code == 1
    assert not value["checks"][0]["passed"]


def test_what_cannot_be_made_is_refused(refused, sample_bundle, native):
    assert "no TensorRT plan" in refused(sample_bundle, "--backend", "tensorrt")
    native.absent = {"bfloat16"}
    assert "no bfloat16 here" in refused(sample_bundle, "--dtype", "bfloat16")
    native.absent = {"bfloat16", "float32"}
    assert "no float32 here" in refused(sample_bundle, "--backend", "native")


def test_a_level_that_cannot_be_followed_is_refused(refused, sample_bundle, monkeypatch):
    if not engine.isa_levels():
        pytest.skip("the native module is not in this build")
    monkeypatch.setenv(engine.ISA_VARIABLE, "avx521")
    assert "KOSINE_ISA cannot be followed" in refused(sample_bundle)


# Against PyTorch


@pytest.mark.usefixtures("native")
def test_against_a_checkpoint_float32_comes_first_too(verify, sample_bundle, scaled):
    code, value, text = verify(sample_bundle, "--against", SAMPLE)
    assert code == 0
    assert value["check"] == "parity"
    assert ran(value) == [("native", "float32", True), ("native", "bfloat16", True)]
    assert value["checks"][0]["centred"]["min_cosine"] >= 0.999999
    assert text.count("centred min") == 2
    code, value, _ = verify(scaled, "--against", SAMPLE)
    assert code == 1
    assert ran(value) == [("native", "float32", False), ("native", "bfloat16", True)]


def test_few_texts_of_ones_own_are_too_few_for_a_centred_cosine(verify, sample_bundle, tmp_path):
    (tmp_path / "t.txt").write_text("가\n나\n", encoding="utf-8")
    code, value, text = verify(
        sample_bundle, "--against", SAMPLE, "--texts", tmp_path / "t.txt", "--backend", "onnx"
    )
    assert code == 0
    assert value["centred"] is None
    assert value["groups"]["alone"]["centred"] is None
    assert "not measured" in text
