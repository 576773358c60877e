"""ModernBERT: every engine against sentence-transformers, and the places where its rules change."""

from __future__ import annotations

import json

import numpy as np
import pytest

import factories
import kosine
from family_checks import check_padded_graph, engines
from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export import export as export_module
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import export
from kosine_export.families.config import read_config

pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")

WINDOW = 8  # of the checkpoint below: half of its local_attention


def words(tokens: int) -> str:
    """A text of that many tokens, [CLS] and [SEP] among them."""
    return "".join("xyzuvw"[i * i % 6] for i in range(tokens - 2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The checkpoint, its bundle, and sentence-transformers."""
    folder = tmp_path_factory.mktemp("modernbert")
    path = factories.build(
        folder / "m",
        family="modernbert",
        pooling="cls",
        max_length=512,
        sizes={"num_hidden_layers": 4, "local_attention": 2 * WINDOW + 1},
    )
    done = export(path, folder / "b.kosine")
    assert done.parity["float32"].passed
    return path, done.path, factories.referee(path)


LENGTHS = (2, 3, WINDOW, WINDOW + 1, WINDOW + 2, 2 * WINDOW + 1, 2 * WINDOW + 2, 63, 64, 65, 130)


def test_every_length_around_the_window_and_the_limit(exported):
    _, bundle, model = exported
    texts = [words(length) for length in (*LENGTHS, 511, 512, 513)]
    expected = factories.referee_vectors(model, texts, normalize_embeddings=True)
    for backend, dtype, error in engines():
        encoder = kosine.load(bundle, backend=backend, dtype=dtype)
        assert encoder.count_tokens(texts[:-1]) == [*LENGTHS, 511, 512]
        together = encoder.encode(texts)
        alone = np.concatenate([encoder.encode([text]) for text in texts])
        assert np.abs(together - expected).max() <= error, backend
        assert np.abs(alone - expected).max() <= error, backend


def test_a_token_sees_the_window_and_no_more(tmp_path):
    """One local layer, last token: a change just inside shows, one just outside does not."""
    path = factories.build(
        tmp_path / "m",
        family="modernbert",
        pooling="lasttoken",
        generation="5.4",
        sizes={"num_hidden_layers": 1, "local_attention": 2 * WINDOW, "layer_types": LOCAL},
    )
    bundle = export(path, tmp_path / "b.kosine").path
    text = words(40)
    # [SEP] is token 39, and character i is token i + 1.
    inside, outside = 38 - WINDOW, 37 - WINDOW
    changed = [text[:i] + "q" + text[i + 1 :] for i in (inside, outside)]
    for backend, dtype, _ in engines():
        encoder = kosine.load(bundle, backend=backend, dtype=dtype)
        plain, near, far = encoder.encode([text, *changed])
        assert np.abs(plain - near).max() > 1e-4, backend
        np.testing.assert_array_equal(plain, far)


LOCAL = ["sliding_attention"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padded_graph_takes_padding_on_either_side(exported, side):
    _, bundle, model = exported
    check_padded_graph(bundle, model, [words(length) for length in LENGTHS], side)


CONFIG = factories.transformers_config("modernbert", 300, num_hidden_layers=4)


def test_a_silent_config_is_that_of_transformers():
    from transformers import ModernBertConfig

    theirs = ModernBertConfig()
    windows = {"full_attention": None, "sliding_attention": theirs.local_attention // 2}
    layers = read_config({"model_type": "modernbert"}).layers
    for kind, block in zip(theirs.layer_types, layers, strict=True):
        assert block.attention.window == windows[kind]
        assert block.attention.rope_theta == theirs.rope_parameters[kind]["rope_theta"]


def test_both_spellings_say_the_same():
    layers = read_config(CONFIG).layers
    assert [layer.attention.window for layer in layers] == [None, 8, 8, None]
    assert [layer.attention.rope_theta for layer in layers] == [
        160000.0,
        10000.0,
        10000.0,
        160000.0,
    ]
    assert [layer.attention_norm for layer in layers] == [False, True, True, True]
    older = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    newer = {key: value for key, value in CONFIG.items() if key not in older}
    newer["layer_types"] = [
        "full_attention", "sliding_attention", "sliding_attention", "full_attention",
    ]  # fmt: skip
    newer["rope_parameters"] = {
        "full_attention": {"rope_theta": 160000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    assert read_config(newer) == read_config(CONFIG)
    assert read_config({**CONFIG, "local_attention": 9}).layers[1].attention.window == 4


@pytest.mark.parametrize(
    ("entries", "error", "named"),
    [
        ({"hidden_activation": "relu"}, UnsupportedCheckpoint, "hidden_activation 'relu'"),
        ({"layer_types": ["full_attention"] * 3}, CorruptCheckpoint, "layer_types"),
        ({"layer_types": ["chunked"] * 4}, UnsupportedCheckpoint, "layer type 'chunked'"),
        ({"global_attn_every_n_layers": 0}, CorruptCheckpoint, "global_attn_every_n_layers is 0"),
        ({"global_rope_theta": "x"}, CorruptCheckpoint, "rope_theta of full_attention is 'x'"),
        ({"rope_parameters": []}, CorruptCheckpoint, "rope_parameters is a list"),
        ({"rope_scaling": {"rope_type": "yarn"}}, UnsupportedCheckpoint, "rope_type 'yarn'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear"}}},
            UnsupportedCheckpoint,
            "rope_type 'linear'",
        ),
        ({"norm_eps": 0}, CorruptCheckpoint, "norm_eps is 0"),
        ({"norm_bias": 1}, CorruptCheckpoint, "norm_bias is 1"),
        ({"num_attention_heads": 3}, CorruptCheckpoint, "multiple of 3 heads"),
        ({"num_hidden_layers": 1025}, CorruptCheckpoint, "num_hidden_layers is 1025"),
        ({"is_decoder": True}, UnsupportedCheckpoint, "is_decoder"),
    ],
    ids=str,
)
def test_what_a_config_must_not_say(entries, error, named):
    with pytest.raises(error, match=named):
        read_config({**CONFIG, **entries})


def test_a_tensor_without_a_place_is_refused(tmp_path):
    """config.json says no bias, and the file has one: which is right cannot be known."""
    path = factories.build(tmp_path / "m", family="modernbert", sizes={"norm_bias": True})
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    factories.write_json(path / "config.json", {**config, "norm_bias": False})
    with pytest.raises(CorruptCheckpoint, match=r"norm\.bias has no place"):
        read_checkpoint(path)


@pytest.mark.slow
def test_base_size(tmp_path):
    """ModernBERT-base's shape, but for its vocabulary."""
    path = factories.build(
        tmp_path / "m",
        family="modernbert",
        generation="5.4",
        normalize=True,
        max_length=8192,
        sizes={
            "hidden_size": 768,
            "intermediate_size": 1152,
            "local_attention": 128,
            "max_position_embeddings": 8192,
            "num_attention_heads": 12,
            "num_hidden_layers": 22,
        },
    )
    with pytest.MonkeyPatch.context() as patch:  # what the export measures is measured below
        patch.setattr(export_module, "missing_packages", lambda **_: ("torch",))
        bundle = export(path, tmp_path / "b.kosine").path
    texts = [words(length) for length in (2, 66, 130, 512, 2048)]
    expected = factories.referee_vectors(factories.referee(path), texts, threads=2)
    for backend, dtype, error in engines():
        found = kosine.load(bundle, backend=backend, dtype=dtype).encode(texts)
        assert np.abs(found - expected).max() <= error, (backend, dtype)
        assert (found * expected).sum(axis=1).min() >= (0.999 if dtype == "bfloat16" else 0.999999)
