"""Every family, pooling, generation and storage of weights, against PyTorch."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest

import factories
import numpy_encoder
from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine.spec import PoolingMode
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.families.config import read_config
from kosine_export.families.registry import MODEL_TYPES

pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")

TEXTS = [*factories.TRICKY_TEXTS, "The quick Brown 문장 안녕 Réact", "긴 문장 " * 120]
# The numpy reference and eager PyTorch agree to float32 rounding; values are of the order of 1.
MAX_ABS_ERROR = 5e-6

CASES = {
    "bert": {},
    "bert, cls": {"pooling": "cls"},
    "bert, max": {"pooling": "max"},
    "bert, mean over the root": {"pooling": "mean_sqrt_len_tokens"},
    "bert, weighted mean": {"pooling": "weightedmean"},
    "bert, last token": {"pooling": "lasttoken"},
    "bert, two poolings, dense": {"pooling": ("cls", "mean"), "dense": [{"outputs": 32}]},
    "bert, three poolings, 5.4": {
        "pooling": ("lasttoken", "max", "weightedmean"),
        "generation": "5.4",
    },
    "bert, 1.x": {"generation": "1.x"},
    "bert, 5.4": {"generation": "5.4"},
    "bert, bare": {"generation": "bare"},
    "bert, prefixed": {"prefix": "bert."},
    "bert, sharded": {"weights": "sharded"},
    "bert, float16": {"dtype": "float16"},
    "bert, bfloat16": {"dtype": "bfloat16"},
    "bert, normalize 2.x": {"normalize": factories.NORMALIZE_PATHS[0]},
    "bert, normalize 5.4": {"normalize": factories.NORMALIZE_PATHS[1], "generation": "5.4"},
    "bert, normalize 6": {"normalize": factories.NORMALIZE_PATHS[2], "generation": "5.4"},
    "bert, dense": {"dense": [{"outputs": 32}]},
    "bert, dense relu": {
        "dense": [{"outputs": 32, "activation": "torch.nn.modules.activation.ReLU"}]
    },
    "bert, dense sigmoid": {
        "dense": [{"outputs": 32, "activation": "torch.nn.modules.activation.Sigmoid"}]
    },
    "bert, two dense, cls, normalize": {
        "pooling": "cls",
        "normalize": True,
        "generation": "5.4",
        "dense": [
            {
                "outputs": 64,
                "activation": "torch.nn.modules.activation.GELU",
                "use_residual": True,
            },
            {"outputs": 48, "bias": False, "activation": "torch.nn.modules.linear.Identity"},
        ],
    },
    "bert, prompt left out": {"include_prompt": False},
    "distilbert": {"family": "distilbert"},
    "distilbert, prefixed": {"family": "distilbert", "prefix": "distilbert.", "pooling": "cls"},
    "electra": {"family": "electra"},
    "electra, narrow embeddings": {"family": "electra", "sizes": {"embedding_size": 32}},
    "electra, prefixed": {"family": "electra", "prefix": "electra.", "pooling": "max"},
    "roberta": {"family": "roberta"},
    "roberta, two token types": {"family": "roberta", "sizes": {"type_vocab_size": 2}},
    "roberta, WordPiece": {
        "family": "roberta",
        "tokenizer": "wordpiece",
        "sizes": {"tokenizer_class": "BertTokenizer"},
    },
    "xlm-roberta": {"family": "xlm-roberta", "prefix": "roberta."},
    "camembert": {"family": "camembert"},
    "mpnet": {"family": "mpnet"},
    "mpnet, prefixed, no class stated": {
        "family": "mpnet",
        "prefix": "mpnet.",
        "tokenizer_settings": {"tokenizer_class": None},
    },
    "modernbert": {"family": "modernbert", "sizes": {"num_hidden_layers": 5}},
    "modernbert, cls, normalize": {
        "family": "modernbert",
        "pooling": "cls",
        "normalize": True,
        "generation": "5.4",
        "prefix": "model.",
    },
    "modernbert, every bias": {
        "family": "modernbert",
        "sizes": {"norm_bias": True, "attention_bias": True, "mlp_bias": True},
    },
    "modernbert, SwiGLU": {
        "family": "modernbert",
        "pooling": "cls",
        "sizes": {"hidden_activation": "silu"},
    },
    "modernbert, tanh": {
        "family": "modernbert",
        "sizes": {"hidden_activation": "gelu_pytorch_tanh"},
    },
    "modernbert of transformers 5": {
        "family": "modernbert",
        "sizes": {
            **dict.fromkeys(("global_attn_every_n_layers", "global_rope_theta")),
            "local_rope_theta": None,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_theta": 80000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
            },
        },
    },
    "camembert, prefixed, no class stated": {
        "family": "camembert",
        "prefix": "roberta.",
        "tokenizer_settings": {"tokenizer_class": None},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_vectors_equal_the_referee(case, tmp_path):
    path = factories.build(tmp_path / "model", **CASES[case])
    checkpoint = read_checkpoint(path)
    model = factories.referee(path)
    assert numpy_encoder.token_ids(checkpoint, TEXTS) == factories.referee_ids(model, TEXTS)
    expected = factories.referee_vectors(model, TEXTS)
    found = numpy_encoder.vectors(checkpoint, TEXTS)
    assert found.shape == expected.shape == (len(TEXTS), checkpoint.spec.dim)
    if checkpoint.spec.pooling.modes == ("mean_sqrt_len_tokens",):
        # These sums grow with the text's length, and their rounding with them.
        lengths = np.sqrt([len(ids) for ids in numpy_encoder.token_ids(checkpoint, TEXTS)])
        found, expected = found / lengths[:, None], expected / lengths[:, None]
    assert np.abs(found - expected).max() <= MAX_ABS_ERROR
    assert np.abs(expected[2] - expected[3]).max() > 100 * MAX_ABS_ERROR  # texts are told apart


@pytest.mark.parametrize("family", ["bert", "distilbert", "xlm-roberta"])
def test_fewer_layers_than_the_file_holds_are_the_first_ones(family, tmp_path):
    key = "n_layers" if family == "distilbert" else "num_hidden_layers"
    path = factories.build(tmp_path / "m", family=family, sizes={"num_hidden_layers": 4})
    whole = numpy_encoder.vectors(read_checkpoint(path), TEXTS)
    edit_config(path, **{key: 2})
    checkpoint = read_checkpoint(path)
    assert len(checkpoint.spec.layers) == 2
    assert any("hold 4 layers: the first 2 are taken" in note for note in checkpoint.notes)
    expected = factories.referee_vectors(factories.referee(path), TEXTS)
    found = numpy_encoder.vectors(checkpoint, TEXTS)
    assert np.abs(found - expected).max() <= MAX_ABS_ERROR
    assert np.abs(found - whole).max() > 100 * MAX_ABS_ERROR
    edit_config(path, **{key: 5})
    with pytest.raises(CorruptCheckpoint, match=r"layer\.4\..* is missing"):
        read_checkpoint(path)


@pytest.mark.parametrize("pooling", [*get_args(PoolingMode), ("weightedmean", "cls")])
def test_a_left_out_prompt_is_left_out_as_the_referee_does(pooling, tmp_path):
    path = factories.build(
        tmp_path / "m", include_prompt=False, pooling=pooling, prompts={"query": "검색 질문: "}
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint.spec.pooling.include_prompt is False
    model = factories.referee(path)
    texts = ["한국어 문장", "안녕하세요 문장 검색"]
    expected = factories.referee_vectors(model, texts, prompt_name="query")
    prompted = [checkpoint.prompts["query"] + text for text in texts]
    (prompt_ids,) = numpy_encoder.token_ids(checkpoint, [checkpoint.prompts["query"]])
    found = numpy_encoder.vectors(checkpoint, prompted, skip=len(prompt_ids) - 1)
    assert np.abs(found - expected).max() <= MAX_ABS_ERROR


@pytest.mark.parametrize("name", factories.FIVE)
def test_each_of_the_five_equals_the_referee(name, tmp_path):
    path, base = factories.FIVE[name](tmp_path)
    checkpoint = read_checkpoint(path, base=base)
    model = factories.referee(path)
    assert checkpoint.max_tokens == model.max_seq_length
    assert numpy_encoder.token_ids(checkpoint, TEXTS) == factories.referee_ids(model, TEXTS)
    error = numpy_encoder.vectors(checkpoint, TEXTS) - factories.referee_vectors(model, TEXTS)
    assert np.abs(error).max() <= MAX_ABS_ERROR
    unknown = checkpoint.special_ids["unk"]
    ids = [i for ids in numpy_encoder.token_ids(checkpoint, TEXTS) for i in ids]
    assert ids.count(unknown) < 0.1 * len(ids)


@pytest.mark.parametrize("name", sorted(set(factories.FIVE) - {"legal"}))
def test_full_models_of_the_five_survive_a_resave_by_today_s_sentence_transformers(name, tmp_path):
    path, _ = factories.FIVE[name](tmp_path / "model")
    model = factories.referee(path)
    model.save(str(tmp_path / "resaved"))
    before, after = read_checkpoint(path), read_checkpoint(tmp_path / "resaved")
    assert after.spec == before.spec
    assert numpy_encoder.token_ids(after, TEXTS) == numpy_encoder.token_ids(before, TEXTS)
    assert after.source["format"] == "sentence-transformers 5.4+"
    for tensor, value in before.tensors.items():
        assert np.array_equal(after.tensors[tensor], value), tensor


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", "encoder.layer.1.attention.self.value"),
        ("electra", "encoder.layer.1.attention.self.value"),
        ("roberta", "encoder.layer.1.attention.self.value"),
        ("distilbert", "transformer.layer.1.attention.v_lin"),
    ],
)
def test_query_key_and_value_are_fused_in_that_order(family, expected, tmp_path):
    path = factories.build(tmp_path / "m", family=family)
    tensors = read_checkpoint(path).tensors
    from safetensors.numpy import load_file

    stored = load_file(path / "model.safetensors")
    weight = tensors["layers.1.attention.qkv.weight"]
    assert weight.shape == (64, 192)
    assert np.array_equal(weight[:, 128:], stored[f"{expected}.weight"].T)
    assert np.array_equal(tensors["layers.1.attention.qkv.bias"][128:], stored[f"{expected}.bias"])


def test_tensors_are_contiguous_float32_of_the_spec_s_shapes(tmp_path):
    path = factories.build(
        tmp_path / "m", family="electra", sizes={"embedding_size": 32}, dense=[{"outputs": 48}]
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint.spec.dim == 48
    for name, value in checkpoint.tensors.items():
        assert value.dtype == np.float32, name
        assert value.flags["C_CONTIGUOUS"], name
    shapes = {name: value.shape for name, value in checkpoint.tensors.items()}
    assert shapes["embeddings.word.weight"] == (checkpoint.spec.embeddings.vocab_size, 32)
    assert shapes["embeddings.project.weight"] == (32, 64)
    assert shapes["layers.0.ffn.up.weight"] == (64, 160)
    assert shapes["layers.0.ffn.down.weight"] == (160, 64)
    assert shapes["dense.0.weight"] == (64, 48)
    assert len(shapes) == 7 + 2 * 12 + 2


def edit_config(path, **entries):
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= entries
    factories.write_json(
        path / "config.json", {key: value for key, value in config.items() if value is not None}
    )


def edit_weights(path, edit):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_the_oldest_names_of_layer_norm_parameters_are_read(tmp_path):
    path = factories.build(tmp_path / "m")
    expected = read_checkpoint(path).tensors

    def rename(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[old] = tensors.pop(name)

    edit_weights(path, rename)
    found = read_checkpoint(path).tensors
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_heads_and_buffers_are_ignored(tmp_path):
    path = factories.build(tmp_path / "m", prefix="bert.")

    def add(tensors):
        tensors["cls.predictions.bias"] = np.zeros(7, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(512, dtype=np.int64)[None]

    edit_weights(path, add)
    assert len(read_checkpoint(path).spec.layers) == 2


def test_model_type_is_taken_from_the_class_where_old_configs_lack_it(tmp_path):
    path = factories.build(tmp_path / "m", family="electra")
    edit_config(path, model_type=None)
    assert read_checkpoint(path).spec.family == "electra"


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.pop("encoder.layer.1.output.dense.bias"), "encoder.layer.1.output.dense.bias"),
        (
            lambda t: t.update({"encoder.layer.0.output.dense.bias": np.zeros(3, np.float32)}),
            "encoder.layer.0.output.dense.bias",
        ),
        (
            lambda t: t["encoder.layer.0.output.dense.bias"].__setitem__(5, np.nan),
            "encoder.layer.0.output.dense.bias",
        ),
        (
            lambda t: t["embeddings.LayerNorm.weight"].__setitem__(0, np.inf),
            "embeddings.LayerNorm.weight",
        ),
        (
            lambda t: t.update({"encoder.layer.1.output.extra.bias": np.zeros(64, np.float32)}),
            "encoder.layer.1.output.extra.bias",
        ),
        (lambda t: t.pop("embeddings.word_embeddings.weight"), "embeddings.word_embeddings.weight"),
    ],
    ids=["missing", "wrong shape", "NaN", "infinity", "surplus", "no embeddings"],
)
def test_a_damaged_tensor_is_named(edit, named, tmp_path):
    path = factories.build(tmp_path / "m")
    edit_weights(path, edit)
    with pytest.raises(CorruptCheckpoint, match=named):
        read_checkpoint(path)


def test_float64_is_narrowed_and_its_overflow_refused(tmp_path):
    path = factories.build(tmp_path / "m")
    expected = read_checkpoint(path).tensors

    def widen(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(np.float64)

    edit_weights(path, widen)
    found = read_checkpoint(path).tensors
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    edit_weights(path, lambda t: t["embeddings.LayerNorm.bias"].__setitem__(0, 1e39))
    with pytest.raises(CorruptCheckpoint, match=r"embeddings\.LayerNorm\.bias"):
        read_checkpoint(path)


def test_integer_weights_are_refused(tmp_path):
    path = factories.build(tmp_path / "m")

    def quantise(tensors):
        name = "encoder.layer.0.output.dense.weight"
        tensors[name] = np.clip(tensors[name] * 100, -127, 127).astype(np.int8)

    edit_weights(path, quantise)
    with pytest.raises(UnsupportedCheckpoint, match="I8"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"model_type": "t5"}, "t5"),
        ({"model_type": "deberta-v2"}, "deberta-v2"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": None, "architectures": ["Qwen2Model"]}, "Qwen2Model"),
        ({"auto_map": {"AutoModel": "modeling.Custom"}}, "auto_map"),
        ({"position_embedding_type": "relative_key_query"}, "relative_key_query"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"hidden_act": "relu"}, "relu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ],
)
def test_another_model_is_refused_by_name(entries, named, tmp_path):
    path = factories.build(tmp_path / "m")
    edit_config(path, **entries)
    with pytest.raises(UnsupportedCheckpoint, match=named) as caught:
        read_checkpoint(path)
    assert "support" in caught.value.limit or "never run" in caught.value.limit


def test_distilbert_spells_its_activation_otherwise(tmp_path):
    path = factories.build(tmp_path / "m", family="distilbert", sizes={"activation": "relu"})
    with pytest.raises(UnsupportedCheckpoint, match="activation 'relu'"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"hidden_size": "64"},
        {"hidden_size": -1},
        {"num_attention_heads": 3},
        {"layer_norm_eps": 0},
        {"layer_norm_eps": "1e-5"},
        {"vocab_size": True},
        {"pad_token_id": 10**6},
        {"max_position_embeddings": 2},
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(entries, tmp_path):
    path = factories.build(tmp_path / "m")
    edit_config(path, **entries)
    with pytest.raises(CorruptCheckpoint, match=r"config\.json"):
        read_checkpoint(path)


@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - {"new"}))
def test_silent_configs_get_the_defaults_of_transformers(model_type):
    from transformers import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[model_type]()
    ours = read_config({"model_type": model_type})
    embeddings, block = ours.embeddings, ours.layers[0]
    assert embeddings.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    assert len(ours.layers) == theirs.num_hidden_layers
    if MODEL_TYPES[model_type].block is not None:  # test_modernbert.py has the others
        assert set(ours.layers) == {block}
    assert block.attention.num_heads == theirs.num_attention_heads
    assert embeddings.positions.rows == theirs.max_position_embeddings
    assert embeddings.positions.pad_id == (theirs.pad_token_id or 0)
    assert embeddings.size == getattr(theirs, "embedding_size", theirs.hidden_size)
    names = ("norm_eps", "layer_norm_eps", "rms_norm_eps")
    eps = next((getattr(theirs, name) for name in names if hasattr(theirs, name)), 1e-12)
    assert block.norm.eps == eps
    assert embeddings.norm is None or embeddings.norm.eps == eps
    assert embeddings.token_types == getattr(theirs, "type_vocab_size", 0)
    intermediate = getattr(theirs, "intermediate_size", None) or theirs.hidden_dim
    assert block.feed_forward.intermediate_size == intermediate
