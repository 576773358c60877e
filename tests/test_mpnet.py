"""MPNet: every engine against sentence-transformers, around the ends of its buckets."""

from __future__ import annotations

import numpy as np
import pytest

import factories
import kosine
from family_checks import check_padded_graph, engines
from kosine.errors import UnsupportedCheckpoint
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import export

pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")

LENGTHS = (2, 3, 8, 9, 10, 17, 126, 127, 128, 129, 130, 131, 200, 511, 512)


def words(tokens: int) -> str:
    """A text of that many tokens, <s> and </s> among them."""
    return " ".join("가나다라마바"[i * i % 6] for i in range(tokens - 2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpnet")
    path = factories.build(
        folder / "m", family="mpnet", generation="5.4", pooling="cls", max_length=512
    )
    done = export(path, folder / "b.kosine")
    assert done.parity["float32"].passed
    return path, done.path, factories.referee(path)


def test_every_engine_at_every_length(exported):
    _, bundle, model = exported
    texts = [*map(words, LENGTHS), words(513)]
    expected = factories.referee_vectors(model, texts, normalize_embeddings=True)
    for backend, dtype, error in engines():
        encoder = kosine.load(bundle, backend=backend, dtype=dtype)
        assert encoder.count_tokens(texts[:-1]) == list(LENGTHS)
        together = encoder.encode(texts)
        alone = np.concatenate([encoder.encode([text]) for text in texts])
        assert np.abs(together - expected).max() <= error, (backend, dtype)
        assert np.abs(alone - expected).max() <= error, (backend, dtype)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padded_graph_takes_padding_on_either_side(exported, side):
    _, bundle, model = exported
    texts = [words(length) for length in LENGTHS if length < 300]
    check_padded_graph(bundle, model, texts, side)


def test_another_number_of_buckets_is_refused(tmp_path):
    """transformers makes a table of that many rows, and still counts on 32."""
    sizes = {"relative_attention_num_buckets": 64}
    path = factories.build(tmp_path / "m", family="mpnet", sizes=sizes)
    with pytest.raises(UnsupportedCheckpoint, match="relative_attention_num_buckets is 64"):
        read_checkpoint(path)


def test_positions_are_counted_from_2_whatever_the_config_says(tmp_path):
    path = factories.build(tmp_path / "m", family="mpnet", sizes={"pad_token_id": 4})
    assert read_checkpoint(path).spec.embeddings.positions.pad_id == 1
