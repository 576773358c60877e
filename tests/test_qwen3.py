"""Qwen3 as an embedder: every engine against sentence-transformers, and who sees whom."""

from __future__ import annotations

import json

import numpy as np
import pytest

import factories
import kosine
from family_checks import check_engines, check_padded_graph, engines
from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import export
from kosine_export.families.config import read_config
from kosine_export.tokenizer.reader import read_tokenizer

pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")

LENGTHS = (1, 2, 3, 15, 16, 17, 63, 64, 65, 130, 511, 512)
QUERY = "Instruct: Given a web search query, retrieve relevant passages\nQuery:"


def words(tokens: int) -> str:
    """A text of that many tokens, the one behind it among them."""
    return "".join("xyzuvw"[i * i % 6] for i in range(tokens - 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """As Qwen3-Embedding is published: heads wider than their share, last token, unit length."""
    folder = tmp_path_factory.mktemp("qwen3")
    path = factories.build(
        folder / "m",
        family="qwen3",
        pooling="lasttoken",
        normalize=True,
        max_length=512,
        prompts={"query": QUERY, "document": ""},
        sizes={"num_hidden_layers": 3},
        prefix="model.",
    )
    done = export(path, folder / "b.kosine")
    assert done.parity["float32"].passed
    return path, done, factories.referee(path)


def test_every_length_up_to_the_limit(exported):
    _, done, model = exported
    assert factories.referee_ids(model, [""]) == [[done.manifest.special_ids["sep"]]]
    assert "cls" not in done.manifest.special_ids
    check_engines(done.path, model, [*map(words, LENGTHS), words(513)])
    encoder = kosine.load(done.path, backend="onnx")
    assert encoder.count_tokens([words(length) for length in LENGTHS]) == list(LENGTHS)


def test_prompts_of_a_query(exported):
    _, done, model = exported
    texts = ["한국어 문장 임베딩", "안녕"]
    expected = factories.referee_vectors(model, texts, prompt_name="query")
    for backend, dtype, error in engines():
        encoder = kosine.load(done.path, backend=backend, dtype=dtype)
        assert np.abs(encoder.encode_query(texts) - expected).max() <= error
        assert encoder.count_tokens([""]) == [1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padded_graph_takes_padding_on_either_side(exported, side):
    _, done, model = exported
    texts = [words(length) for length in LENGTHS if length < 300]
    check_padded_graph(done.path, model, texts, side)


def test_no_token_sees_what_follows_it(tmp_path):
    path = factories.build(tmp_path / "m", family="qwen3", pooling="cls", generation="5.4")
    bundle = export(path, tmp_path / "b.kosine").path
    for backend, dtype, _ in engines():
        encoder = kosine.load(bundle, backend=backend, dtype=dtype)
        long, other, changed = encoder.encode([words(40), "x" + words(60), "y" + words(39)])
        assert np.abs(long - other).max() <= 1e-6, backend
        assert np.abs(long - changed).max() > 1e-3, backend


def test_a_prompt_that_is_left_out(tmp_path):
    path = factories.build(
        tmp_path / "m",
        family="qwen3",
        include_prompt=False,
        pooling="mean",
        prompts={"query": "질문: "},
    )
    bundle = export(path, tmp_path / "b.kosine").path
    texts = [words(9), "한국어"]
    model = factories.referee(path)
    expected = factories.referee_vectors(
        model, texts, prompt_name="query", normalize_embeddings=True
    )
    for backend, dtype, error in engines():
        found = kosine.load(bundle, backend=backend, dtype=dtype).encode_query(texts)
        assert np.abs(found - expected).max() <= error


VARIANTS = {
    "windows": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "windows from the second layer on": {
        "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
    },
    "bias": {"attention_bias": True},
    "slower positions": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "seen to both sides": {"is_causal": False},
    "a head each": {"num_key_value_heads": 4, "head_dim": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, tmp_path):
    path = factories.build(
        tmp_path / "m",
        family="qwen3",
        pooling="lasttoken",
        generation="5.4",
        max_length=128,
        sizes=VARIANTS[name],
    )
    done = export(path, tmp_path / "b.kosine")
    assert done.parity["float32"].passed
    check_engines(done.path, factories.referee(path), [words(n) for n in (1, 4, 5, 6, 40)])


CONFIG = factories.transformers_config("qwen3", 300)


def test_a_silent_config_is_that_of_transformers():
    from transformers import Qwen3Config

    theirs, spec = Qwen3Config(), read_config({"model_type": "qwen3"})
    attention = spec.layers[0].attention
    assert len(spec.layers) == theirs.num_hidden_layers
    assert attention.num_key_value_heads == theirs.num_key_value_heads
    assert attention.head_size == theirs.head_dim
    assert attention.rope_theta == theirs.rope_parameters["rope_theta"]
    assert {block.attention.window for block in spec.layers} == {None}
    assert spec.final_norm.eps == theirs.rms_norm_eps
    assert spec.embeddings.vocab_size == theirs.vocab_size


def test_both_spellings_say_the_same():
    newer = {key: value for key, value in CONFIG.items() if key != "rope_theta"}
    newer["rope_parameters"] = {"rope_theta": 1000000.0, "rope_type": "default"}
    assert read_config(newer) == read_config(CONFIG)


@pytest.mark.parametrize(
    ("entries", "error", "named"),
    [
        ({"hidden_act": "gelu"}, UnsupportedCheckpoint, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 3}, CorruptCheckpoint, "num_key_value_heads is 3"),
        ({"layer_types": ["sliding_attention"] * 2}, UnsupportedCheckpoint, "layer type"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, UnsupportedCheckpoint, "'yarn'"),
        ({"is_causal": 1}, CorruptCheckpoint, "is_causal is 1"),
        ({"head_dim": 0}, CorruptCheckpoint, "head_dim is 0"),
        ({"rms_norm_eps": 0}, CorruptCheckpoint, "rms_norm_eps is 0"),
    ],
    ids=str,
)
def test_what_a_config_must_not_say(entries, error, named):
    with pytest.raises(error, match=named):
        read_config({**CONFIG, **entries})


def test_a_tensor_without_a_place_is_refused(tmp_path):
    path = factories.build(tmp_path / "m", family="qwen3", sizes={"attention_bias": True})
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    factories.write_json(path / "config.json", {**config, "attention_bias": False})
    with pytest.raises(CorruptCheckpoint, match=r"bias has no place"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("write", "model_type", "settings"),
    [
        (factories.write_qwen, "qwen3", {}),
        (factories.write_qwen, "qwen3", {"add_bos_token": False, "tokenizer_class": None}),
        (factories.write_qwen, "qwen3", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        (factories.write_gemma, "gemma3_text", {}),
        (factories.write_gemma, "gemma3_text", {"tokenizer_class": "GemmaTokenizerFast"}),
        (factories.write_gemma, "gemma3_text", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ],
)
def test_ids_are_those_of_transformers(write, model_type, settings, tmp_path):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    write(tmp_path, settings={key: value for key, value in settings.items() if value is not None})
    if settings.get("tokenizer_class", "") is None:
        path = tmp_path / "tokenizer_config.json"
        stated = json.loads(path.read_text(encoding="utf-8"))
        del stated["tokenizer_class"]
        factories.write_json(path, stated)
    config = {"model_type": model_type, "vocab_size": 5000}
    factories.write_json(tmp_path / "config.json", config)
    family = {"qwen3": "qwen3", "gemma3_text": "gemma3"}[model_type]
    found = read_tokenizer(tmp_path, family=family, config=config)
    ours, theirs = Tokenizer.from_str(found.json), AutoTokenizer.from_pretrained(tmp_path)
    texts = [*factories.TRICKY_TEXTS, "1234 it's\r\n\n  x  <|im_end|><bos> \U0001f436"]
    assert [ours.encode(text).ids for text in texts] == theirs(texts)["input_ids"]
    assert found.source.get("other_ids_in_4", 0) == 0


def test_a_tokenizer_that_ends_no_text_is_refused(tmp_path):
    path = factories.build(tmp_path / "m", family="qwen3")
    file = path / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["post_processor"] = data["post_processor"]["processors"][0]
    factories.write_json(file, data)
    with pytest.raises(UnsupportedCheckpoint, match=r"encodes an empty text as \[\]"):
        read_checkpoint(path)
