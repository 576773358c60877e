"""Golden vectors of the sample: a change of the house must not change a bit at any ISA level.

`tests/golden/make.py` wrote them. ONNX Runtime promises no bits, so its vectors are held to 1e-6.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kosine.backends.lowering import lower
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.encoder import Encoder
from kosine.packed import Packed
from kosine.positions import position_ids
from kosine_kernels.engine import Engine
from kosine_kernels.quantized import products, quantize_weight
from native_machine import ALL_TABLES, BYTES_TABLES, needs_native, tables

GOLDEN = Path(__file__).resolve().parent / "golden" / "vectors.npz"
SAMPLE = Path(__file__).resolve().parent.parent / "export" / "sample"
SENTENCES = (
    "",
    "한 남자가 기타를 치고 있다.",
    "A man is playing a guitar.",
    "비행기가 하늘로 날아오른다.",
    "주가가 사흘 연속 하락했다. " * 3,
    "커피 한 잔 주세요. " * 9,
    "길고 긴 문장 하나가 여기에 있다. " * 40,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN))


def inputs(bundle: Bundle) -> Packed:
    encoder = Encoder(bundle, make_backend(bundle, backend="onnx", dtype="float32"))
    return encoder.prepare(SENTENCES).batch


def native_vectors(bundle: Bundle, batch: Packed, dtype: str, isa: str) -> np.ndarray:
    manifest, weights = bundle.manifest, bundle.tensors()
    steps = lower(manifest.spec)
    tensors = {name: weights[name] for name, e in weights.entries.items() if e.dtype == np.float32}
    if (dtype, isa) in BYTES_TABLES:  # of the rounding nearest to hand, not of an export's
        for name in products(steps):
            found = quantize_weight(tensors[f"{name}.weight"])
            tensors[f"{name}.weight"], tensors[f"{name}.scale"] = found
    engine = Engine(tensors, steps, dtype=dtype, threads=2, isa=isa)
    positions = position_ids(batch.ids, batch.starts, manifest.spec.embeddings.positions)
    return engine.forward(batch.ids, batch.starts, positions)[0]


def onnx_vectors(bundle: Bundle, batch: Packed, dtype: str) -> np.ndarray:
    return make_backend(bundle, backend="onnx", dtype=dtype).run(batch).vectors


def test_the_ids_are_the_same(sample_bundle, golden):
    batch = inputs(Bundle(sample_bundle))
    np.testing.assert_array_equal(batch.ids, golden["ids"])
    np.testing.assert_array_equal(batch.starts, golden["starts"])


@needs_native
@tables(ALL_TABLES + BYTES_TABLES)
def test_native_bits(sample_bundle, golden, dtype, isa):
    name = f"native.{dtype}.{isa}"
    if name not in golden:
        pytest.skip(f"no golden vectors of {isa} yet: they were written on a machine without it")
    batch = Packed(golden["ids"], golden["starts"])
    found = native_vectors(Bundle(sample_bundle), batch, dtype, isa)
    np.testing.assert_array_equal(found.view(np.uint32), golden[name].view(np.uint32))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_onnx_vectors(sample_bundle, golden, dtype):
    batch = Packed(golden["ids"], golden["starts"])
    found = onnx_vectors(Bundle(sample_bundle), batch, dtype)
    np.testing.assert_allclose(found, golden[f"onnx.{dtype}"], atol=1e-6)
