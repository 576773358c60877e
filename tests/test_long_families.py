"""Texts up to the limit of each family, around every length at which arithmetic changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import factories
import kosine
from family_checks import engines
from full_size_trial import text_of
from kosine_export import export as export_module
from kosine_export.export import export

pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")

pytestmark = pytest.mark.slow

# Blocks of the native engine's attention are of 512 keys, those of the ONNX graph of 1,024 queries.
LENGTHS = (2, 64, 65, 66, 128, 129, 130, 256, 257, 258, 511, 512, 513, 1023, 1024, 1025)
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "xlm-roberta": (8192, {"pooling": "cls", "sizes": {"max_position_embeddings": 8194}}),
    "modernbert": (8192, {"sizes": {"num_hidden_layers": 4, "local_attention": 128}}),
    "gte": (8192, {"pooling": "cls"}),
    "qwen3": (8192, {"pooling": "lasttoken"}),
    "gemma3_text": (2048, {"sizes": {"num_hidden_layers": 3, "sliding_window": 512}}),
}


@pytest.mark.parametrize("family", CASES)
def test_every_engine_at_every_length(family, tmp_path):
    longest, options = CASES[family]
    sizes = {"max_position_embeddings": longest, **options.get("sizes", {})}
    path = factories.build(
        tmp_path / "m",
        family=family,
        generation="5.4",
        normalize=True,
        max_length=longest,
        **{**options, "sizes": sizes},
    )
    with pytest.MonkeyPatch.context() as patch:  # what the export measures is measured below
        patch.setattr(export_module, "missing_packages", lambda **_: ("torch",))
        bundle = export(path, tmp_path / "b.kosine").path
    lengths = (*LENGTHS, longest - 1, longest)
    counter = kosine.load(bundle, backend="onnx")
    texts = [text_of(counter, length) for length in lengths]
    assert counter.count_tokens(texts) == list(lengths)
    texts.append(texts[-1] + texts[3])  # which is cut
    model = factories.referee(path, attention="sdpa")
    expected = factories.referee_vectors(model, texts, threads=2)
    for backend, dtype, error in engines():
        found = kosine.load(bundle, backend=backend, dtype=dtype).encode(texts)
        assert np.abs(found - expected).max() <= error, (backend, dtype)
