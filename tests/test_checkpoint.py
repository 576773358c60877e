"""Modules, limits, prompts, weights files and refusals of the checkpoint reader."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import factories
from kosine.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    InputError,
    MissingExtra,
    UnsupportedCheckpoint,
)
from kosine_export.checkpoint import location
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.files import folder as folder_module

SAMPLE = factories.SAMPLE
GENERATIONS = {
    "1.x": "sentence-transformers 1.x",
    "2.x": "sentence-transformers 2.x-5.3",
    "5.4": "sentence-transformers 5.4+",
    "bare": "transformers",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One small BERT checkpoint that tests copy and damage."""
    return factories.build(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture
def damaged(plain, tmp_path):
    def copy(file=None, edit=None):
        import shutil

        target = tmp_path / "damaged"
        if not target.exists():
            shutil.copytree(plain, target)
        if file is not None:
            path = target / file
            value = json.loads(path.read_text(encoding="utf-8"))
            changed = edit(value)
            factories.write_json(path, value if changed is None else changed)
        return target

    return copy


def test_the_sample_is_read_without_torch_or_transformers():
    code = (
        "import sys\n"
        "from kosine_export.checkpoint.checkpoint import read_checkpoint\n"
        f"checkpoint = read_checkpoint({str(SAMPLE)!r})\n"
        "print(checkpoint.spec.hidden_size, checkpoint.max_tokens, checkpoint.similarity)\n"
        "loaded = {'torch', 'transformers', 'sentence_transformers', 'onnx'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["256", "128", "cosine"]


def test_the_sample_s_hash_is_in_its_source():
    checkpoint = read_checkpoint(SAMPLE)
    digest = hashlib.sha256((SAMPLE / "model.safetensors").read_bytes()).hexdigest()
    assert checkpoint.source["sha256"] == {"model.safetensors": digest}
    assert checkpoint.source["name"] == "sample"
    assert checkpoint.source["revision"] is None
    assert checkpoint.prompts == {"query": "", "document": ""}
    assert checkpoint.config["model_type"] == "roberta"
    assert checkpoint.notes == ()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_source_says_which_format_was_read(generation, tmp_path):
    path = factories.build(tmp_path / "m", generation=generation)
    checkpoint = read_checkpoint(path)
    assert checkpoint.source["format"] == GENERATIONS[generation]
    assert checkpoint.spec.pooling.modes == ("mean",)
    assert checkpoint.max_tokens == 128


def test_a_bare_folder_means_mean_pooling_and_says_so(tmp_path):
    path = factories.build(tmp_path / "m", generation="bare")
    checkpoint = read_checkpoint(path)
    assert (checkpoint.spec.pooling.modes, checkpoint.spec.normalize) == (("mean",), False)
    assert any("mean pooling" in note for note in checkpoint.notes)


def test_a_bare_decoder_is_refused(tmp_path):
    path = factories.build(
        tmp_path / "m", generation="bare", sizes={"architectures": ["RobertaForCausalLM"]}
    )
    with pytest.raises(UnsupportedCheckpoint, match="RobertaForCausalLM"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_length": 40}, 40),
        ({"max_length": None}, 512),
        ({"max_length": 16, "tokenizer_settings": {"model_max_length": 77}}, 16),
        ({"max_length": None, "tokenizer_settings": {"model_max_length": 77}}, 77),
        ({"generation": "5.4", "max_length": 33}, 33),
        ({"generation": "5.4", "max_length": None}, 512),
        (
            {
                "generation": "5.4",
                "max_length": None,
                "tokenizer_settings": {"model_max_length": int(1e30)},
            },
            512,
        ),
        ({"generation": "bare", "max_length": None}, 512),
        ({"generation": "bare", "max_length": 60}, 60),
        ({"generation": "1.x", "max_length": 50}, 50),
    ],
    ids=str,
)
def test_the_maximum_length_is_the_referee_s(options, expected, tmp_path):
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    path = factories.build(tmp_path / "m", **options)
    assert read_checkpoint(path).max_tokens == expected
    assert factories.referee(path).max_seq_length == expected


@pytest.mark.parametrize("max_length", [None, 600])
def test_roberta_s_position_rows_limit_the_length(max_length, tmp_path):
    path = factories.build(tmp_path / "m", family="roberta", max_length=max_length)
    checkpoint = read_checkpoint(path)
    assert checkpoint.max_tokens == 514 - 1 - 1
    assert any("position rows limit max_tokens to 512" in note for note in checkpoint.notes)


def test_an_asked_for_length_wins_within_the_position_rows(plain):
    assert read_checkpoint(plain, max_tokens=512).max_tokens == 512
    assert read_checkpoint(plain, max_tokens=3).max_tokens == 3
    for wrong in (2, 0, -1, 513, True):
        with pytest.raises(InputError, match="from 3 to 512"):
            read_checkpoint(plain, max_tokens=wrong)


@pytest.mark.parametrize(
    "name",
    [
        "sentence_roberta_config.json",
        "sentence_distilbert_config.json",
        "sentence_xlm-roberta_config.json",
    ],
)
def test_older_names_of_the_limits_file_are_read(name, damaged):
    path = damaged()
    (path / "sentence_bert_config.json").rename(path / name)
    factories.write_json(path / name, {"max_seq_length": 44, "do_lower_case": True})
    checkpoint = read_checkpoint(path)
    assert checkpoint.max_tokens == 44
    assert checkpoint.do_lower_case


def test_lengths_in_tokenizer_arguments_win(damaged):
    path = damaged(
        "sentence_bert_config.json", lambda c: c.update(tokenizer_args={"model_max_length": 21})
    )
    assert read_checkpoint(path).max_tokens == 21


@pytest.mark.parametrize("generation", ["1.x", "2.x", "5.4"])
def test_do_lower_case_reaches_the_tokenizer(generation, tmp_path):
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    import numpy_encoder

    path = factories.build(tmp_path / "m", generation=generation, do_lower_case=True)
    checkpoint = read_checkpoint(path)
    assert checkpoint.do_lower_case
    texts = ["React REACT", "한국어 ABC", "É"]
    expected = factories.referee_ids(factories.referee(path), texts)
    assert numpy_encoder.token_ids(checkpoint, texts) == expected


def test_a_resave_that_moves_do_lower_case_into_the_tokenizer_is_read_as_it_is_reloaded(tmp_path):
    """transformers 5 builds BertTokenizer without the step that sentence-transformers saved."""
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    import numpy_encoder

    path = factories.build(tmp_path / "m", do_lower_case=True)
    resaved = tmp_path / "resaved"
    factories.referee(path).save(str(resaved))
    checkpoint = read_checkpoint(resaved)
    texts = ["React REACT", "한국어 ABC"]
    expected = factories.referee_ids(factories.referee(resaved), texts)
    assert numpy_encoder.token_ids(checkpoint, texts) == expected
    assert any("transformers 4 does, and gives other ids" in note for note in checkpoint.notes)


def test_prompts_are_read_and_added_to(tmp_path):
    path = factories.build(
        tmp_path / "m",
        prompts={"query": "질문: ", "document": "문서: "},
        default_prompt_name="query",
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint.prompts == {"query": "질문: ", "document": "문서: "}
    assert checkpoint.default_prompt_name == "query"
    checkpoint = read_checkpoint(path, prompts={"query": "Q: ", "passage": "P: "})
    assert checkpoint.prompts == {"query": "Q: ", "document": "문서: ", "passage": "P: "}
    with pytest.raises(InputError, match="prompt"):
        read_checkpoint(path, prompts={"query": 3})


def test_without_modules_json_the_other_files_of_sentence_transformers_are_not_read(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    path = factories.build(
        tmp_path / "m", prompts={"query": "q: "}, default_prompt_name="query", max_length=16
    )
    (path / "modules.json").unlink()
    checkpoint, model = read_checkpoint(path), factories.referee(path)
    assert checkpoint.max_tokens == model.max_seq_length == 512
    assert checkpoint.default_prompt_name is model.default_prompt_name is None
    assert "q: " not in (*checkpoint.prompts.values(), *model.prompts.values())


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        (None, "cosine"),
        ("cosine", "cosine"),
        ("dot", "dot"),
        ("euclidean", "euclidean"),
        ("manhattan", "manhattan"),
    ],
)
def test_similarity_is_read_and_null_means_cosine(similarity, expected, tmp_path):
    path = factories.build(tmp_path / "m", similarity=similarity)
    assert read_checkpoint(path).similarity == expected


@pytest.mark.parametrize(
    ("entries", "error", "named"),
    [
        ({"similarity_fn_name": "maxsim"}, UnsupportedCheckpoint, "maxsim"),
        ({"truncate_dim": 32}, UnsupportedCheckpoint, "truncate_dim"),
        ({"model_type": "SparseEncoder"}, UnsupportedCheckpoint, "SparseEncoder"),
        ({"default_prompt_name": "clustering"}, CorruptCheckpoint, "clustering"),
        ({"prompts": ["query"]}, CorruptCheckpoint, "prompts"),
        ({"prompts": {"query": 5}}, CorruptCheckpoint, "prompts"),
    ],
)
def test_root_settings_that_change_the_result_are_refused(entries, error, named, damaged):
    path = damaged("config_sentence_transformers.json", lambda c: c.update(entries))
    with pytest.raises(error, match=named):
        read_checkpoint(path)


def test_a_default_prompt_that_sentence_transformers_always_has_is_empty(damaged):
    path = damaged(
        "config_sentence_transformers.json", lambda c: c.update(default_prompt_name="query")
    )
    checkpoint = read_checkpoint(path)
    assert (checkpoint.default_prompt_name, checkpoint.prompts) == ("query", {"query": ""})


def flags(**modes):
    return {f"pooling_mode_{mode}": value for mode, value in modes.items()}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        (flags(attention=True), r"mean \+ pooling_mode_attention"),
        ({"pooling_mode": "attention"}, "attention"),
        ({"pooling_mode": ["mean", "attention"]}, r"mean \+ attention"),
        ({"pooling_mode": ["mean", 3]}, r"mean \+ 3"),
    ],
    ids=str,
)
def test_other_poolings_are_refused_by_name(entries, named, damaged):
    path = damaged("1_Pooling/config.json", lambda c: c.update(entries))
    with pytest.raises(UnsupportedCheckpoint, match=named) as caught:
        read_checkpoint(path)
    assert "mean, cls, max, mean_sqrt_len_tokens, weightedmean, last" in caught.value.limit


def test_several_poolings_stand_in_the_order_of_the_referee(damaged):
    """Flags have an order of their own; a list is taken as it stands."""
    every = flags(
        lasttoken=True,
        weightedmean_tokens=True,
        mean_sqrt_len_tokens=True,
        mean_tokens=True,
        max_tokens=True,
        cls_token=True,
    )
    path = damaged("1_Pooling/config.json", lambda c: c.update(every))
    found = read_checkpoint(path).spec
    modes = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    assert found.pooling.modes == modes
    assert found.dim == 6 * 64
    path = damaged("1_Pooling/config.json", lambda c: c.update(pooling_mode=["mean", "cls"]))
    assert read_checkpoint(path).spec.pooling.modes == ("mean", "cls")


def test_one_pooling_in_a_list_is_that_pooling(damaged):
    path = damaged("1_Pooling/config.json", lambda c: c.update(pooling_mode=["max"]))
    assert read_checkpoint(path).spec.pooling.modes == ("max",)


def test_a_pooling_config_without_a_mode_is_mean_as_in_the_referee(damaged):
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    path = damaged("1_Pooling/config.json", lambda _: {"word_embedding_dimension": 64})
    checkpoint = read_checkpoint(path)
    assert checkpoint.spec.pooling.modes == ("mean",)
    assert any("no mode" in note for note in checkpoint.notes)
    assert factories.referee(path)[1].pooling_mode == "mean"


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(pooling_mode=[]),
        lambda c: c.update(pooling_mode=3),
        lambda c: c.update(word_embedding_dimension="64"),
        lambda c: c.update(word_embedding_dimension=32),
        lambda c: c.update(include_prompt="yes"),
        lambda c: [c],
    ],
    ids=["no mode", "number", "text width", "other width", "include_prompt", "list"],
)
def test_damaged_pooling_is_refused(edit, damaged):
    path = damaged("1_Pooling/config.json", edit)
    with pytest.raises(CorruptCheckpoint):
        read_checkpoint(path)


def test_missing_pooling_files_are_not_guessed(damaged):
    path = damaged()
    (path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"1_Pooling/config\.json is missing"):
        read_checkpoint(path)


def module(dotted, folder=""):
    return {"idx": 9, "name": "9", "path": folder, "type": dotted}


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda m: m[:1], "Transformer"),
        (lambda m: [*m, module("sentence_transformers.models.CNN", "2_CNN")], "CNN"),
        (lambda m: [*m, module("sentence_transformers.models.LayerNorm")], "LayerNorm"),
        (lambda _: [module("sentence_transformers.models.StaticEmbedding")], "StaticEmbedding"),
        (lambda m: [*m, m[1]], "Pooling, Pooling"),
        (lambda m: m[::-1], "Pooling, Transformer"),
        (lambda m: [*m, module("custom_st.Transformer")], "custom_st"),
        (
            lambda m: [
                *m,
                module("sentence_transformers.models.Normalize"),
                module("sentence_transformers.models.Dense"),
            ],
            "Normalize, Dense",
        ),
        (lambda _: [], "no module"),
    ],
    ids=["no pooling", "CNN", "LayerNorm", "static", "twice", "order", "code", "late", "none"],
)
def test_other_modules_are_refused_by_name(edit, named, damaged):
    path = damaged("modules.json", edit)
    with pytest.raises(UnsupportedCheckpoint, match=named) as caught:
        read_checkpoint(path)
    assert "Transformer, Pooling, Dense and Normalize" in caught.value.limit


@pytest.mark.parametrize("outside", ["../1_Pooling", "/etc", "a/../../b", "C:\\x", "\\\\host\\x"])
def test_paths_that_leave_the_checkpoint_are_refused(outside, damaged):
    path = damaged("modules.json", lambda m: m[1].update(path=outside))
    with pytest.raises(CorruptCheckpoint, match="stay inside"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"transformer_task": "fill-mask"}, "transformer_task"),
        ({"modality_config": {"image": {}}}, "modality_config"),
        ({"query_length": 32}, "query_length"),
        ({"query_expansion": {"strategy": "fixed"}}, "query_expansion"),
        ({"processing_kwargs": {"text": {"padding": "longest"}}}, "processing_kwargs"),
        ({"tokenizer_args": {"do_lower_case": True}}, "tokenizer_args.do_lower_case"),
        ({"tokenizer_name_or_path": "other/tokenizer"}, "tokenizer_name_or_path"),
    ],
    ids=str,
)
def test_transformer_settings_that_change_the_result_are_refused(entries, named, damaged):
    path = damaged("sentence_bert_config.json", lambda c: c.update(entries))
    with pytest.raises(UnsupportedCheckpoint, match=named):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "entries", [{"max_seq_length": 2}, {"max_seq_length": "128"}, {"do_lower_case": "no"}], ids=str
)
def test_damaged_limits_are_refused(entries, damaged):
    path = damaged("sentence_bert_config.json", lambda c: c.update(entries))
    with pytest.raises(CorruptCheckpoint, match="sentence_bert_config"):
        read_checkpoint(path)


DENSE = "2_Dense/config.json"


@pytest.mark.parametrize(
    ("entries", "error", "named"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.Mish"},
            UnsupportedCheckpoint,
            "Mish",
        ),
        ({"activation_function": "os.system"}, UnsupportedCheckpoint, "os.system"),
        ({"module_input_name": "token_embeddings"}, UnsupportedCheckpoint, "token_embeddings"),
        ({"module_output_name": "other"}, UnsupportedCheckpoint, "other"),
        ({"use_residual": True}, UnsupportedCheckpoint, "use_residual"),
        ({"in_features": 32}, CorruptCheckpoint, "linear.weight"),
        ({"out_features": 0}, CorruptCheckpoint, "out_features"),
        ({"bias": False}, CorruptCheckpoint, "linear.bias"),
        ({"bias": "yes"}, CorruptCheckpoint, "bias"),
    ],
    ids=str,
)
def test_a_dense_that_cannot_be_fused_is_refused(entries, error, named, tmp_path):
    path = factories.build(tmp_path / "m", dense=[{"outputs": 48}])
    config = json.loads((path / DENSE).read_text(encoding="utf-8"))
    factories.write_json(path / DENSE, config | entries)
    with pytest.raises(error, match=named):
        read_checkpoint(path)


def test_dense_widths_must_follow_one_another(tmp_path):
    path = factories.build(tmp_path / "m")
    factories.write_dense(path / "2_Dense", 32, 16)
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    modules.append(module("sentence_transformers.models.Dense", "2_Dense"))
    factories.write_json(path / "modules.json", modules)
    with pytest.raises(CorruptCheckpoint, match="2_Dense takes 32"):
        read_checkpoint(path)


def test_dense_weights_are_in_the_source(tmp_path):
    path = factories.build(tmp_path / "m", dense=[{"outputs": 48}])
    assert list(read_checkpoint(path).source["sha256"]) == [
        "model.safetensors",
        "2_Dense/model.safetensors",
    ]


def test_a_pickle_is_read_only_when_asked_for_and_said_so(tmp_path):
    path = factories.build_matching(tmp_path / "bin", weights="bin")
    with pytest.raises(UnsupportedCheckpoint, match=r"pytorch_model\.bin") as caught:
        read_checkpoint(path)
    assert "--allow-pickle" in caught.value.remedy
    assert "weights_only=True" in caught.value.remedy
    checkpoint = read_checkpoint(path, allow_pickle=True)
    assert any("weights_only=True" in note for note in checkpoint.notes)
    assert list(checkpoint.source["sha256"]) == ["pytorch_model.bin"]
    expected = read_checkpoint(factories.build_matching(tmp_path / "safe")).tensors
    for name, value in expected.items():
        assert np.array_equal(checkpoint.tensors[name], value), name


def test_a_dense_pickle_needs_the_same_permission(tmp_path):
    path = factories.build(tmp_path / "m", dense=[{"outputs": 48, "kind": "bin"}])
    with pytest.raises(UnsupportedCheckpoint, match="2_Dense"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, allow_pickle=True)
    assert checkpoint.tensors["dense.0.weight"].shape == (64, 48)
    assert any("pickle" in note for note in checkpoint.notes)


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_a_hostile_pickle_runs_nothing(tmp_path, monkeypatch):
    import pickle

    path = factories.build(tmp_path / "m", weights="bin")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Payload()}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptCheckpoint, match="weights_only=True"):
        read_checkpoint(path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_without_torch_names_the_extra(tmp_path, monkeypatch):
    path = factories.build(tmp_path / "m", weights="bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"pip install 'kosine\[torch\]'"):
        read_checkpoint(path, allow_pickle=True)


def test_a_missing_shard_is_named(tmp_path):
    path = factories.build(tmp_path / "m", weights="sharded")
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CorruptCheckpoint, match="model-00002-of-00002"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\\b", "..", ""])
def test_shards_outside_the_folder_are_refused(name, tmp_path):
    path = factories.build(tmp_path / "m", weights="sharded")
    factories.write_json(path / "model.safetensors.index.json", {"weight_map": {"x": name}})
    with pytest.raises(CorruptCheckpoint, match="shard"):
        read_checkpoint(path)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def corrupt_header(file):
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncate, "model.safetensors is damaged"),
        (corrupt_header, "model.safetensors is damaged"),
        (lambda file: file.write_bytes(b""), "model.safetensors is damaged"),
        (
            lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n"),
            "Git LFS pointer",
        ),
        (lambda file: file.unlink(), "no weights"),
    ],
    ids=["truncated", "header", "empty", "pointer", "absent"],
)
def test_damaged_weights_are_named(damage, named, damaged):
    path = damaged()
    damage(path / "model.safetensors")
    with pytest.raises(CorruptCheckpoint, match=named):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
@pytest.mark.parametrize(
    "content",
    [b"{", b"", '{"이름": 1}'.encode("cp949"), b"5", b"[" * 200_000],
    ids=["cut", "empty", "not UTF-8", "number", "deep"],
)
def test_damaged_json_is_named_by_file(file, content, damaged):
    path = damaged()
    (path / file).write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=Path(file).name):
        read_checkpoint(path)


def test_an_oversized_json_is_not_read(damaged):
    path = damaged()
    with (path / "config.json").open("ab") as file:
        file.truncate(folder_module.MAX_JSON_BYTES + 1)
    with pytest.raises(CorruptCheckpoint, match=r"config\.json has \d+ bytes"):
        read_checkpoint(path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CorruptCheckpoint, match=r"no config\.json"):
        read_checkpoint(tmp_path)


def test_a_tokenizer_larger_than_the_embeddings_is_read_with_a_note(damaged):
    size = json.loads((damaged() / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    path = damaged(
        "tokenizer.json", lambda t: t["model"]["vocab"].update({"덤": size, "또덤": size + 1})
    )
    notes = read_checkpoint(path).notes
    assert any(f"ids up to {size + 1} and the model {size} word" in note for note in notes)


def test_cls_beyond_the_embeddings_is_refused(damaged):
    size = json.loads((damaged() / "config.json").read_text(encoding="utf-8"))["vocab_size"]

    def renumber(tokenizer):
        tokenizer["model"]["vocab"]["[CLS]"] = size
        tokenizer["added_tokens"] = []

    path = damaged("tokenizer.json", renumber)
    config = path / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    factories.write_json(config, {**settings, "added_tokens_decoder": {}})
    with pytest.raises(CorruptCheckpoint, match=f"cls and sep have ids {size} and"):
        read_checkpoint(path)


@pytest.mark.parametrize("path", ["nowhere", "./org/name", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(path, monkeypatch):
    def fail(*_args, **_options):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(location, "download", fail)
    with pytest.raises(CheckpointNotFound):
        read_checkpoint(path)


def test_a_path_object_is_never_a_hub_id():
    with pytest.raises(CheckpointNotFound, match="no checkpoint folder"):
        read_checkpoint(Path("organisation") / "name")


def test_a_file_is_not_a_checkpoint(plain):
    with pytest.raises(CheckpointNotFound, match="is a file"):
        read_checkpoint(plain / "model.safetensors")


def test_an_unreachable_hub_id_is_one_clear_line(monkeypatch):
    import huggingface_hub

    def offline(*_args, **_options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointNotFound, match="organisation/name at revision v1") as caught:
        read_checkpoint("organisation/name", revision="v1")
    assert "\n" not in str(caught.value)
    assert "give the folder" in caught.value.remedy
    assert isinstance(caught.value, CheckpointError)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_hub_id_is_fetched_without_code_and_without_pickles(allow_pickle, plain, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(hub_id, **options):
        asked.update(options, hub_id=hub_id)
        return str(plain)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = read_checkpoint("organisation/name", revision="v1", allow_pickle=allow_pickle)
    assert (asked["hub_id"], asked["revision"]) == ("organisation/name", "v1")
    assert checkpoint.source["name"] == "organisation/name"
    assert checkpoint.source["revision"] == plain.name
    patterns = asked["allow_patterns"]
    assert not any(pattern.endswith((".py", "*")) for pattern in patterns)
    assert any(pattern.endswith(".bin") for pattern in patterns) == allow_pickle


def test_a_revision_of_a_local_folder_is_refused(plain):
    with pytest.raises(InputError, match="revision 'v1'"):
        read_checkpoint(plain, revision="v1")
