"""Write the golden vectors: `python tests/golden/make.py`, on purpose only.

They are what every later change is held to (tests/test_golden.py): the same bits from the native
engine at each dtype and ISA level. A level that this machine lacks keeps what it had.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kosine.bundle import Bundle
from kosine_export.export import export
from native_machine import ALL_TABLES, BYTES_TABLES, why_not
from test_golden import GOLDEN, SAMPLE, inputs, native_vectors, onnx_vectors

if __name__ == "__main__":
    kept = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle(
            export(SAMPLE, Path(folder) / "s.kosine", targets=("onnx", "onnx-fp16")).path
        )
        batch = inputs(bundle)
        kept |= {"ids": batch.ids, "starts": batch.starts}
        for dtype, isa in ALL_TABLES + BYTES_TABLES:
            if not why_not(dtype, isa):
                kept[f"native.{dtype}.{isa}"] = native_vectors(bundle, batch, dtype, isa)
        for dtype in ("float32", "float16"):
            kept[f"onnx.{dtype}"] = onnx_vectors(bundle, batch, dtype)
    np.savez_compressed(GOLDEN, **kept)
    print(*sorted(kept))
