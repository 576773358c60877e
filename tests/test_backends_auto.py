"""What "auto" takes: the fastest that is there and passes the bundle's canary."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kosine
import stand_in_native
from hostile import small_bundle
from kosine import cli
from kosine.backends.registry import BACKENDS, candidates, capabilities, make_backend, probe
from kosine.bundle import Bundle
from kosine.bundle.canary import AUTO_TEXTS, Canary
from kosine.errors import (
    BackendUnavailable,
    KosineError,
    MissingExtra,
    MissingTarget,
    ParityError,
    UnknownOption,
)
from kosine_kernels import engine
from native_machine import Encoder as Model
from native_machine import needs_native
from specs import spec_of_sizes

HAS_BFLOAT16 = "avx512_bf16" in engine.isa_levels()
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16 products")


@pytest.fixture
def native(monkeypatch):
    return stand_in_native.install(monkeypatch)


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
    assert native.closed == native.made[:1], "what is passed over holds no memory"


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
    monkeypatch.delitem(BACKENDS, "onnx")
    with pytest.raises(ParityError, match="mean"):
        make_backend(bundle)


def passed_over(bundle, caplog, **options):
    """(choice, warnings) of a load."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "kosine"):
        took = chosen(bundle, **options)
    return took, [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("wrong", "took"),
    [
        ({"bfloat16"}, ("native", "float32")),
        ({"bfloat16", "float32"}, ("onnx", "float32")),
    ],
)
def test_wrong_vectors_are_a_warning_with_the_figures(bundle, native, caplog, wrong, took):
    native.wrong = wrong
    found, warnings = passed_over(bundle, caplog)
    assert found == took
    assert len(warnings) == len(wrong)
    for dtype, warning in zip(("bfloat16", "float32"), warnings, strict=False):
        assert f"'native' in {dtype} fails the canary: min cosine -1.0000000, mean -1" in warning
        assert "max abs error" in warning
        assert warning.endswith(f"{took[0]}/{took[1]} is taken instead")


def test_an_engine_that_is_not_there_is_no_warning(bundle, native, caplog):
    native.absent = {"bfloat16", "float32"}
    assert passed_over(bundle, caplog) == (("onnx", "float32"), [])
    native.absent = frozenset()
    assert passed_over(bundle, caplog) == (("native", "bfloat16"), [])


def test_nothing_is_said_of_what_is_taken_where_nothing_is(bundle, native, caplog, monkeypatch):
    native.wrong = {"bfloat16", "float32"}
    monkeypatch.delitem(BACKENDS, "onnx")
    with caplog.at_level(logging.WARNING, "kosine"), pytest.raises(ParityError):
        make_backend(bundle)
    assert caplog.text == ""


# What is tried


CUDA = [
    ("cuda", "float16"),
    ("cuda", "bfloat16"),
    ("tensorrt", "float16"),
    ("onnx", "float16"),
    ("onnx", "float32"),
]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("auto", "auto", "auto"),
            [("native", "bfloat16"), ("native", "float32"), ("onnx", "float32")],
        ),
        (("auto", "float32", "cpu"), [("native", "float32"), ("onnx", "float32")]),
        (("auto", "bfloat16", "auto"), [("native", "bfloat16")]),
        (("auto", "float16", "auto"), [("onnx", "float16")]),
        (("auto", "auto", "cuda:1"), CUDA),
        (("auto", "float16", "cuda"), [CUDA[0], *CUDA[2:4]]),
        (("auto", "bfloat16", "cuda"), CUDA[1:2]),
        (("cuda", "auto", "auto"), CUDA[:2]),
        (("native", "auto", "auto"), [("native", "bfloat16"), ("native", "float32")]),
        (("onnx", "auto", "auto"), [("onnx", "float32")]),
        (("onnx", "auto", "cuda"), CUDA[3:]),
        (("onnx", "float16", "cpu"), [("onnx", "float16")]),
        (("tensorrt", "auto", "auto"), CUDA[2:3]),
        # These refuse the device themselves.
        (("native", "auto", "cuda"), [("native", "float32")]),
        (("tensorrt", "auto", "cpu"), CUDA[2:3]),
        (("cuda", "float16", "cpu"), CUDA[:1]),
        (("auto", "float32", "tpu"), [("native", "float32"), ("onnx", "float32")]),
    ],
)
def test_candidates(options, expected):
    assert candidates(*options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("auto", "int8", "cuda"),
            "device 'cuda' has no dtype 'int8'; cuda runs in float16, bfloat16; tensorrt runs in "
            "float16; onnx runs in float32, float16; ",
        ),
        (("native", "float16", "auto"), "backend 'native' has no dtype 'float16'; native runs in "),
        (("onnx", "bfloat16", "auto"), "backend 'onnx' has no dtype 'bfloat16'; onnx runs in "),
        (("tensorrt", "float32", "auto"), "backend 'tensorrt' has no dtype 'float32'; "),
    ],
)
def test_no_such_dtype_there(options, message):
    with pytest.raises(UnknownOption) as caught:
        candidates(*options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("named", BACKENDS)
@pytest.mark.parametrize("dtype", ["int8", "w8a16"])
def test_weights_of_bytes_run_on_the_native_engine_where_they_are_named(named, dtype):
    assert candidates("auto", dtype, "auto") == [("native", dtype)]
    if named == "native":
        assert candidates(named, dtype, "auto") == [("native", dtype)]
    else:
        with pytest.raises(UnknownOption, match=f"backend '{named}' has no dtype '{dtype}'"):
            candidates(named, dtype, "auto")
    for device in ("cpu", "cuda", "auto"):
        assert dtype not in {each for _, each in candidates("auto", "auto", device)}
        assert dtype not in {each for _, each in candidates(named, "auto", device)}


@pytest.mark.parametrize("verb", ["verify", "embed", "score", "eval"])
def test_help_claims_what_runs(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    shown = capsys.readouterr().out
    assert "auto, float32, bfloat16, float16, w8a16, int8" in " ".join(shown.split())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_precision_that_is_always_there_comes_last(device):
    assert candidates("auto", "auto", device)[-1] == ("onnx", "float32")


# KOSINE_ISA


class Machine:
    """The native module on a processor with these levels."""

    known = ("avx2", "avx512", "avx512_bf16", "amx_bf16")

    def __init__(self, *levels: str) -> None:
        self.levels = levels

    def isa_levels(self) -> tuple[str, ...]:
        return self.levels

    def select_isa(self, dtype: str, isa: str | None = None) -> str:
        level = os.environ.get(engine.ISA_VARIABLE, "") if isa is None else isa
        if not level and not self.levels:
            raise engine.Unavailable("this processor has no AVX2; one of avx2; use another backend")
        if level and level not in self.known:
            raise ValueError(f"unknown ISA level '{level}'; known: avx2; choose one of these")
        if level and level not in self.levels:
            raise engine.Unavailable(f"ISA level '{level}' is not on this machine; none; choose")
        level = level or self.levels[-1]
        if dtype == "bfloat16" and self.known.index(level) < 2:
            raise engine.Unavailable(
                f"dtype bfloat16 does not run at ISA level '{level}'; it needs avx512_bf16; "
                "use float32"
            )
        return level

    def install(self, monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
        monkeypatch.setattr("kosine.backends.native.select_isa", self.select_isa)
        monkeypatch.setattr("kosine.backends.native.isa_levels", self.isa_levels)
        monkeypatch.setenv(engine.ISA_VARIABLE, forced)


OLD, NEW = ("avx2", "avx512"), ("avx2", "avx512", "avx512_bf16")


@pytest.mark.parametrize("named", ["auto", "native"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("levels", "forced"),
    [(NEW, "avx521"), (OLD, "avx512_bf16"), (NEW, "amx_bf16"), (OLD, "AVX2"), ((), "avx521")],
)
def test_a_level_that_cannot_be_followed_is_an_error(
    bundle, monkeypatch, named, dtype, levels, forced
):
    Machine(*levels).install(monkeypatch, forced)
    with pytest.raises(UnknownOption, match=f"KOSINE_ISA cannot be followed: .*'{forced}'"):
        make_backend(bundle, backend=named, dtype=dtype)
    # Who asks for another engine is not concerned.
    assert chosen(bundle, backend="onnx") == ("onnx", "float32")


@pytest.mark.parametrize("named", ["auto", "native"])
@pytest.mark.parametrize(
    ("levels", "forced", "words", "remedy"),
    [
        (NEW, "avx2", "here with KOSINE_ISA=avx2: ", "unset KOSINE_ISA, or use dtype='float32'"),
        (OLD, "avx2", "here with KOSINE_ISA=avx2: ", "use dtype='float32'"),
        (OLD, "", "here: dtype bfloat16 does not run at ISA level 'avx512'", "use dtype='float32'"),
        ((), "", "here: this processor has no AVX2", "use backend='onnx'"),
        ((), "avx2", "here: ISA level 'avx2' is not on this machine", "use backend='onnx'"),
    ],
)
def test_bfloat16_that_cannot_be_had_blames_what_stands_in_the_way(
    bundle, monkeypatch, named, levels, forced, words, remedy
):
    Machine(*levels).install(monkeypatch, forced)
    with pytest.raises(BackendUnavailable) as caught:
        make_backend(bundle, backend=named, dtype="bfloat16")
    assert f"backend 'native' cannot run in bfloat16 {words}" in str(caught.value)
    assert caught.value.remedy == remedy


def test_a_processor_without_a_level_means_another_engine(bundle, monkeypatch):
    Machine().install(monkeypatch, "avx2")
    assert chosen(bundle) == ("onnx", "float32")


@needs_native
@pytest.mark.parametrize("forced", ["avx521", "amx_bf16"])
def test_the_real_engine_refuses_such_a_level(sample_bundle, monkeypatch, forced):
    if forced in engine.isa_levels():
        pytest.skip(f"this CPU has {forced}")
    monkeypatch.setenv(engine.ISA_VARIABLE, forced)
    for options in ({}, {"dtype": "float32"}, {"dtype": "bfloat16"}, {"backend": "native"}):
        with pytest.raises(UnknownOption, match=f"KOSINE_ISA cannot be followed: .*'{forced}'"):
            kosine.load(sample_bundle, **options)


@needs_native
def test_the_real_engine_names_the_variable(sample_bundle, monkeypatch):
    monkeypatch.setenv(engine.ISA_VARIABLE, "avx2")
    with pytest.raises(BackendUnavailable, match=r"'native' .*with KOSINE_ISA=avx2: .*bfloat16"):
        kosine.load(sample_bundle, dtype="bfloat16")


# Probing


def error_of(call, *words, **options):
    try:
        call(*words, **options)
    except KosineError as error:
        return type(error)
    return None


@pytest.mark.parametrize("forced", ["", "avx2", "avx521"])
def test_a_probe_raises_what_making_the_engine_would(bundle, monkeypatch, forced):
    monkeypatch.setenv(engine.ISA_VARIABLE, forced)
    for name in BACKENDS:
        for dtype in capabilities(name).dtypes:
            made = error_of(make_backend, bundle, backend=name, dtype=dtype, threads=1)
            assert error_of(probe, bundle, name, dtype) is made, (name, dtype)


def test_a_probe_of_what_is_not_installed(bundle, monkeypatch):
    monkeypatch.setattr(engine, "_native_missing", ImportError("not built"))
    monkeypatch.setattr("kosine.backends.onnx.library.importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match="not built"):
        probe(bundle, "native", "float32")
    with pytest.raises(MissingExtra, match="needs onnxruntime"):
        probe(bundle, "onnx", "float32")


def test_a_probe_of_a_target_that_was_not_exported(tmp_path):
    with pytest.raises(MissingTarget, match=r"no fp16/packed\.onnx"):
        probe(Bundle(small_bundle(tmp_path / "b")), "onnx", "float16")


@needs_native
@pytest.mark.parametrize("head_size", [8, 16, 24, 32, 112, 128, 136, 144])
def test_the_probe_knows_the_head_sizes_of_the_engine(head_size):
    model = Model(hidden=2 * head_size, heads=2, inner=32, layers=1)
    try:
        model.engine()
        runs = True
    except ValueError:
        runs = False
    spec = spec_of_sizes(hidden=2 * head_size, heads=2)
    described = SimpleNamespace(manifest=SimpleNamespace(spec=spec), path=Path("b"))
    assert (error_of(probe, described, "native", "float32") is None) == runs


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


@pytest.mark.parametrize("backend", ["auto", "onnx", "native"])
@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 1_025, 10**6])
def test_threads_that_make_no_sense(sample_bundle, backend, threads):
    with pytest.raises(UnknownOption, match="1 to 1024"):
        make_backend(Bundle(sample_bundle), backend=backend, threads=threads)


@pytest.mark.parametrize("device", [None, 0, b"cpu"])
def test_devices_that_are_no_names(sample_bundle, device):
    with pytest.raises(UnknownOption, match="auto, cpu, cuda or cuda:N; name it as a str"):
        make_backend(Bundle(sample_bundle), device=device)
