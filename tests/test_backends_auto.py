"""What "auto" takes: the fastest that is there and passes the bundle's canary."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kosine
from kosine import backends, cli
from kosine.backends import AUTO, make_backend
from kosine.backends.onnx import OnnxBackend
from kosine.bundle import Bundle
from kosine.canary import AUTO_TEXTS, Canary
from kosine.errors import BackendUnavailable, ParityError
from kosine.packed import Packed, Pooled
from kosine_kernels import engine
from native_machine import needs_native

HAS_BFLOAT16 = "avx512_bf16" in engine.isa_levels()
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16 products")


class Engine:
    """A stand-in for any backend; `wrong` lists the dtypes in which it turns canary rows over."""

    made: list[tuple[str, str]] = []  # noqa: RUF012
    absent: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()
    wrong_from_row = 0
    name = "native"

    def __init__(self, bundle: Bundle, *, dtype: str, **_: Any) -> None:
        if dtype in self.absent:
            raise BackendUnavailable(f"no {dtype} here")
        self.made.append((self.name, dtype))
        self.dtype = dtype
        self._inner = OnnxBackend(bundle, threads=1)
        self.dim = self._inner.dim

    def run(self, batch: Packed) -> Pooled:
        pooled = self._inner.run(batch)
        if self.dtype in self.wrong:
            pooled.vectors[self.wrong_from_row :, :] *= -1
        return pooled


@pytest.fixture
def native(monkeypatch):
    """A fresh stand-in behind the name "native"."""
    kind = type("StandIn", (Engine,), {"made": []})
    monkeypatch.setattr("kosine.backends.native.NativeBackend", kind)
    return kind


@pytest.fixture(scope="module")
def bundle(sample_bundle: Path) -> Bundle:
    return Bundle(sample_bundle)


def chosen(bundle: Bundle, **options: Any) -> tuple[str, str]:
    made = make_backend(bundle, **options)
    return made.name, made.dtype


@pytest.mark.parametrize("named", ["auto", "native"])
def test_bfloat16_is_taken_where_it_is_there_and_passes(bundle, native, named, caplog):
    with caplog.at_level(logging.INFO, "kosine"):
        assert chosen(bundle, backend=named) == ("native", "bfloat16")
    assert native.made == [("native", "bfloat16")]
    assert "backend native, dtype bfloat16 chosen" in caplog.text


@pytest.mark.parametrize("named", ["auto", "native"])
def test_float32_where_bfloat16_is_not_there(bundle, native, named, caplog):
    native.absent = {"bfloat16"}
    with caplog.at_level(logging.INFO, "kosine"):
        assert chosen(bundle, backend=named) == ("native", "float32")
    assert "backend native in bfloat16 passed over: no bfloat16 here" in caplog.text


@pytest.mark.parametrize("canary", [True, False])
@pytest.mark.parametrize("named", ["auto", "native"])
@pytest.mark.parametrize("row", [0, AUTO_TEXTS, 63])
def test_a_dtype_that_nobody_asked_for_passes_the_whole_canary(bundle, native, row, named, canary):
    native.wrong, native.wrong_from_row = {"bfloat16"}, row
    assert chosen(bundle, backend=named, canary=canary) == ("native", "float32")
    assert [dtype for _, dtype in native.made] == ["bfloat16", "float32"]


def test_a_dtype_that_was_named_is_never_replaced(bundle, native):
    native.absent = {"bfloat16"}
    with pytest.raises(BackendUnavailable):
        make_backend(bundle, backend="native", dtype="bfloat16")
    native.absent = frozenset()
    native.wrong = {"bfloat16"}
    assert chosen(bundle, backend="native", dtype="bfloat16") == ("native", "bfloat16")
    with pytest.raises(ParityError, match="bfloat16 fails the canary"):
        make_backend(bundle, dtype="bfloat16")


def test_another_backend_where_every_dtype_of_one_fails(bundle, native):
    native.wrong = {"bfloat16", "float32"}
    assert chosen(bundle) == ("onnx", "float32")


def test_wrong_vectors_are_reported_before_absence(bundle, native, monkeypatch):
    native.wrong, native.absent = {"bfloat16"}, {"float32"}
    monkeypatch.setitem(AUTO, "cpu", {"native": ("bfloat16", "float32")})
    with pytest.raises(ParityError, match="mean"):
        make_backend(bundle)


def test_the_precision_that_is_always_there_comes_last():
    for tried in AUTO.values():
        *_, last = tried.values()
        assert last[-1] == "float32"
    assert list(AUTO["cpu"]) == ["native", "onnx"]


@needs_native
@needs_bfloat16
def test_the_real_engine_takes_bfloat16_for_the_sample(bundle, sample_bundle):
    encoder = kosine.load(sample_bundle)
    assert (encoder.backend.name, encoder.backend.dtype) == ("native", "bfloat16")
    exact = kosine.load(sample_bundle, dtype="float32")
    assert encoder.fingerprint != exact.fingerprint
    texts = Canary.read(bundle).texts
    cosines = np.sum(encoder.encode(texts) * exact.encode(texts), axis=1)
    print("lowest cosine of bfloat16 against float32", cosines.min())
    assert cosines.min() >= 0.9999


@needs_native
@needs_bfloat16
def test_a_forced_level_without_bfloat16_means_float32(bundle, monkeypatch):
    monkeypatch.setenv(engine.ISA_VARIABLE, "avx2")
    assert chosen(bundle) == ("native", "float32")


def test_info_says_what_auto_takes(sample_bundle, bundle, capsys):
    made = make_backend(bundle)
    assert cli.main(["info", str(sample_bundle), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["auto"] == {"backend": made.name, "dtype": made.dtype}
    assert cli.main(["info", str(sample_bundle)]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if line.endswith("(auto)")]
    assert len(marked) == 1
    assert f"{made.name}/{made.dtype}" in marked[0]


def test_info_where_nothing_runs(sample_bundle, capsys, monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {"native": backends.BACKENDS["native"]})
    monkeypatch.setitem(AUTO, "cpu", {"native": ("float32",)})
    monkeypatch.setattr(engine, "_native_missing", ImportError("not built"))
    assert cli.main(["info", str(sample_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["auto"] is None
