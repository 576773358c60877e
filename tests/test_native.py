"""The native backend on a real bundle: the sample, against its canary and against ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kosine.backend import Backend
from kosine.backends.lowering import RUNS, lower, require_supported
from kosine.backends.native import NativeBackend
from kosine.backends.onnx.cpu import OnnxBackend
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.bundle.canary import GATES, Canary, replay
from kosine.errors import BackendError, BackendUnavailable, UnknownOption
from kosine.packed import Packed
from kosine.spec import Dense, Norm
from kosine.spec_fields import leaves
from kosine_kernels import engine
from native_machine import each_table, needs_native


@pytest.fixture(scope="module")
def bundle(sample_bundle: Path) -> Bundle:
    return Bundle(sample_bundle)


@pytest.fixture(scope="module")
def canary(bundle: Bundle) -> Canary:
    return Canary.read(bundle)


@each_table()
@pytest.mark.parametrize("threads", [1, 2])
def test_the_canary_passes(bundle, canary, dtype, isa, threads, monkeypatch):
    monkeypatch.setenv(engine.ISA_VARIABLE, isa)
    backend = NativeBackend(bundle, dtype=dtype, threads=threads)
    assert isinstance(backend, Backend)
    assert (backend.name, backend.dtype, backend.isa) == ("native", dtype, isa)
    assert (backend.dim, backend.threads) == (bundle.manifest.dim, threads)
    found = replay(canary, backend)
    assert found.passes(GATES[dtype]), found
    # The sample is a trained model, where bfloat16 is held to more than its general gate.
    assert found.min_cosine >= 0.9999
    assert found.mean_cosine >= 0.99995


@needs_native
def test_vectors_and_norms_are_those_of_onnx_runtime(bundle, canary):
    a, b = (backend(bundle).run(canary.batch) for backend in (NativeBackend, OnnxBackend))
    assert np.abs(a.vectors - b.vectors).max() <= 2e-6
    np.testing.assert_allclose(a.norms, b.norms, rtol=1e-5)
    assert a.vectors.dtype == a.norms.dtype == np.float32


@each_table()
def test_a_text_has_the_same_bits_alone_and_anywhere(bundle, canary, dtype, isa, monkeypatch):
    monkeypatch.setenv(engine.ISA_VARIABLE, isa)
    backends = [NativeBackend(bundle, dtype=dtype, threads=threads) for threads in (1, 2)]
    whole = backends[0].run(canary.batch)
    order = np.random.default_rng(0).permutation(len(canary.batch))
    for backend in backends:
        mixed = backend.run(canary.batch.take(order))
        assert mixed.vectors.tobytes() == whole.vectors[order].tobytes()
        assert mixed.norms.tobytes() == whole.norms[order].tobytes()
        for i in order[:10]:
            assert backend.run(canary.batch.take([i])).vectors.tobytes() == (
                whole.vectors[i].tobytes()
            )


@needs_native
def test_ids_that_the_encoder_should_have_refused_are_a_typed_error(bundle):
    backend = NativeBackend(bundle)
    beyond = bundle.manifest.spec.embeddings.vocab_size
    with pytest.raises(BackendError, match=rf"ids\[1\] is {beyond}"):
        backend.run(Packed.of([[0, beyond, 2]]))
    with pytest.raises(BackendError, match="positions"):
        backend.run(Packed.of([[5] * 4000]))


class TestRefusals:
    def test_another_device(self, bundle):
        with pytest.raises(BackendUnavailable, match="cuda:0"):
            NativeBackend(bundle, device="cuda:0")

    def test_no_threads(self, bundle):
        with pytest.raises(UnknownOption, match="threads is 0"):
            NativeBackend(bundle, threads=0)

    def test_no_native_module(self, bundle, monkeypatch):
        monkeypatch.setattr(engine, "_native_missing", ImportError("not built"))
        with pytest.raises(BackendUnavailable, match="not built") as caught:
            NativeBackend(bundle)
        assert "onnx" in caught.value.remedy

    @needs_native
    def test_a_dtype_above_the_forced_level(self, bundle, monkeypatch):
        monkeypatch.setenv(engine.ISA_VARIABLE, "avx2")
        with pytest.raises(BackendUnavailable, match="bfloat16"):
            NativeBackend(bundle, dtype="bfloat16")

    @needs_native
    def test_a_level_that_does_not_exist(self, bundle, monkeypatch):
        monkeypatch.setenv(engine.ISA_VARIABLE, "avx1024")
        with pytest.raises(UnknownOption, match="avx1024"):
            NativeBackend(bundle)

    @needs_native
    def test_a_model_whose_shape_the_engine_cannot_run(self, bundle, monkeypatch):
        monkeypatch.setattr("kosine.backends.native.lower", lambda spec: lower(spec) * 2)
        with pytest.raises(BackendError, match=r"is Embed; Embed must be first"):
            NativeBackend(bundle)


class TestFields:
    """What a spec may ask for, and the answer to each value that the native engine lacks."""

    @pytest.fixture
    def spec(self, bundle):
        dense = Dense(bundle.manifest.dim, 64, bias=True, activation="tanh", use_residual=False)
        norm = Norm("layer_norm", 1e-5, bias=False)
        return replace(bundle.manifest.spec, dense=(dense,), final_norm=norm)

    def test_every_field_with_alternatives_has_an_answer(self, spec):
        named = {path for _, path, value, _ in leaves(spec) if isinstance(value, str)}
        assert len(named) >= 8
        assert named - set(RUNS) == {"family"}

    def test_every_switch_of_a_layer_is_lowered(self, spec):
        block = replace(spec.layers[-1], norm_placement="pre")
        spec = replace(spec, layers=(*spec.layers[:-1], block))
        switches = [
            where
            for where, path, value, _ in leaves(spec)
            if where.startswith(f"layers[{len(spec.layers) - 1}]")
            and (isinstance(value, bool) or value is None)
            # Buckets come with positions of that name; a norm is no switch.
            and not path.endswith(("buckets", "query_key_norm"))
        ]
        assert len(switches) == 8
        found = [lower(changed(spec, where)) for where in switches]
        assert len({*found, lower(spec)}) == 1 + len(switches)

    @pytest.mark.parametrize("path", sorted(RUNS))
    def test_an_unknown_value_is_refused_by_its_name(self, spec, path):
        if path.startswith("layers.attention.query_key_norm"):
            (*others, last) = spec.layers
            normed = replace(last.attention, query_key_norm=Norm("rms_norm", 1e-6, bias=False))
            spec = replace(spec, layers=(*others, replace(last, attention=normed)))
        require_supported(spec, "b")
        where = [place for place, name, _, _ in leaves(spec) if name == path][-1]
        with pytest.raises(BackendError) as caught:
            require_supported(changed(spec, where), "b")
        assert f"b: {where} is" in str(caught.value)
        assert caught.value.limit
        assert "backend='onnx'" in caught.value.remedy

    @needs_native
    def test_auto_moves_on(self, bundle, monkeypatch):
        wider = {**RUNS, "layers.attention.window": (128,)}
        monkeypatch.setattr("kosine.backends.lowering.RUNS", wider)
        assert make_backend(bundle, backend="auto").name == "onnx"
        with pytest.raises(BackendError, match=r"attention\.window is None"):
            make_backend(bundle, backend="native")


def changed(spec, where: str):
    """The spec with a value that no engine knows at `layers[1].attention.window`."""
    name, _, rest = where.partition(".")
    name, _, number = name.partition("[")
    value = getattr(spec, name)
    if number:
        at = int(number[:-1])
        part = changed(value[at], rest) if rest else "another"
        return replace(spec, **{name: (*value[:at], part, *value[at + 1 :])})
    if rest:
        return replace(spec, **{name: changed(value, rest)})
    unknown = 7 if value is None or isinstance(value, int) else "another"
    return replace(spec, **{name: (not value) if isinstance(value, bool) else unknown})
