"""EmbeddingGemma: every engine against sentence-transformers, around its window."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

import factories
import kosine
from family_checks import check_engines, check_padded_graph, engines
from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import export
from kosine_export.families.config import read_config

pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")

WINDOW = 8  # half of the sliding_window below
LENGTHS = (2, 3, WINDOW, WINDOW + 1, WINDOW + 2, 2 * WINDOW + 1, 63, 64, 65, 130, 511, 512)
DENSE = [
    {"outputs": 96, "bias": False, "activation": "torch.nn.modules.linear.Identity"},
    {"outputs": 64, "bias": False, "activation": "torch.nn.modules.linear.Identity"},
]


def words(tokens: int) -> str:
    """A text of that many tokens, <bos> and <eos> among them."""
    return "".join("xyzuvw"[i * i % 6] for i in range(tokens - 2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """As EmbeddingGemma is published."""
    folder = tmp_path_factory.mktemp("gemma3")
    path = factories.build(
        folder / "m",
        family="gemma3_text",
        generation="5.4",
        normalize=True,
        dense=DENSE,
        max_length=512,
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
        sizes={"num_hidden_layers": 4, "sliding_window": 2 * WINDOW},
    )
    done = export(path, folder / "b.kosine")
    assert done.parity["float32"].passed
    return path, done.path, factories.referee(path)


def test_every_length_around_the_window_and_the_limit(exported):
    _, bundle, model = exported
    check_engines(bundle, model, [words(length) for length in (*LENGTHS, 513)])
    encoder = kosine.load(bundle, backend="onnx")
    assert encoder.count_tokens([words(length) for length in LENGTHS]) == list(LENGTHS)


def test_prompts_by_role(exported):
    _, bundle, model = exported
    texts = ["한국어 문장 임베딩", "안녕"]
    expected = factories.referee_vectors(model, texts, prompt_name="document")
    for backend, dtype, error in engines():
        found = kosine.load(bundle, backend=backend, dtype=dtype).encode_document(texts)
        assert np.abs(found - expected).max() <= error


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padded_graph_takes_padding_on_either_side(exported, side):
    _, bundle, model = exported
    check_padded_graph(bundle, model, [words(length) for length in LENGTHS if length < 300], side)


def test_a_token_sees_the_window_and_no_more(tmp_path):
    """One local layer, last token: a change just inside shows, one just outside does not."""
    path = factories.build(
        tmp_path / "m",
        family="gemma3_text",
        pooling="lasttoken",
        sizes={
            "num_hidden_layers": 1,
            "sliding_window": 2 * WINDOW,
            "layer_types": ["sliding_attention"],
        },
    )
    bundle = export(path, tmp_path / "b.kosine").path
    text = words(40)
    # <eos> is token 39, and character i is token i + 1.
    inside, outside = 38 - WINDOW, 37 - WINDOW
    changed = [text[:i] + "q" + text[i + 1 :] for i in (inside, outside)]
    for backend, dtype, _ in engines():
        encoder = kosine.load(bundle, backend=backend, dtype=dtype)
        plain, near, far = encoder.encode([text, *changed])
        assert np.abs(plain - near).max() > 1e-4, backend
        np.testing.assert_array_equal(plain, far)


VARIANTS = {
    "heads of 256": {"head_dim": 256, "query_pre_attn_scalar": 256, "num_attention_heads": 2},
    "a text that is read forwards": {"use_bidirectional_attention": False, "sliding_window": 5},
    "an odd window": {"sliding_window": 7},
    "bias": {"attention_bias": True},
    "slower positions of whole layers": {
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "transformers 5": {
        "rope_theta": None,
        "rope_local_base_freq": None,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_theta": 70000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 300.0, "rope_type": "default"},
        },
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, tmp_path):
    path = factories.build(
        tmp_path / "m", family="gemma3_text", max_length=128, sizes=VARIANTS[name]
    )
    done = export(path, tmp_path / "b.kosine")
    assert done.parity["float32"].passed
    texts = [words(n) for n in (2, 4, 5, 6, 7, 9, 40)]
    check_engines(done.path, factories.referee(path), texts)


CONFIG = factories.transformers_config("gemma3_text", 300, num_hidden_layers=3)


def test_a_silent_config_is_that_of_transformers():
    from transformers import Gemma3TextConfig

    theirs, spec = Gemma3TextConfig(), read_config({"model_type": "gemma3_text"})
    windows = {"full_attention": None, "sliding_attention": theirs.sliding_window - 1}
    for kind, block in zip(theirs.layer_types, spec.layers, strict=True):
        assert block.attention.window == windows[kind]
        assert block.attention.rope_theta == theirs.rope_parameters[kind]["rope_theta"]
        assert block.attention.causal
        assert block.attention.num_key_value_heads == theirs.num_key_value_heads
    assert spec.embeddings.vocab_size == theirs.vocab_size


def test_the_window_of_a_config_is_halved():
    windows = [block.attention.window for block in read_config(CONFIG).layers]
    assert windows == [8, 8, None]
    odd = read_config({**CONFIG, "sliding_window": 7}).layers[0].attention
    assert (odd.window, odd.causal) == (3, False)


def test_what_is_folded_into_tensors(tmp_path):
    path = factories.build(tmp_path / "m", family="gemma3_text")
    stored, found = load_file(path / "model.safetensors"), read_checkpoint(path).tensors
    words = stored["embed_tokens.weight"] * np.float32(64**0.5)
    assert np.array_equal(found["embeddings.word.weight"], words)
    assert np.array_equal(found["final.norm.weight"], 1 + stored["norm.weight"])
    assert np.array_equal(
        found["layers.1.attention.key.norm.weight"], 1 + stored["layers.1.self_attn.k_norm.weight"]
    )


@pytest.mark.parametrize(
    ("entries", "error", "named"),
    [
        ({"hidden_activation": "gelu"}, UnsupportedCheckpoint, "hidden_activation 'gelu'"),
        ({"attn_logit_softcapping": 50.0}, UnsupportedCheckpoint, "attn_logit_softcapping is 50"),
        ({"query_pre_attn_scalar": 64}, UnsupportedCheckpoint, "query_pre_attn_scalar is 64"),
        ({"num_key_value_heads": 3}, CorruptCheckpoint, "num_key_value_heads is 3"),
        ({"layer_types": ["full_attention"]}, CorruptCheckpoint, "layer_types"),
        ({"rope_scaling": {"rope_type": "yarn"}}, UnsupportedCheckpoint, "rope_type 'yarn'"),
        ({"rope_local_base_freq": 0}, CorruptCheckpoint, "rope_theta of sliding_attention is 0"),
        ({"use_bidirectional_attention": "all"}, CorruptCheckpoint, "is 'all'"),
    ],
    ids=str,
)
def test_what_a_config_must_not_say(entries, error, named):
    with pytest.raises(error, match=named):
        read_config({**CONFIG, **entries})
