"""Pooling that a checkpoint does not state: given by name, assumed, or refused."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest

import factories
import kosine
import numpy_encoder
from family_checks import MAX_ABS_ERROR, check_padded_graph
from kosine import cli
from kosine.bundle import Bundle
from kosine.errors import InputError, UnknownOption, UnsupportedCheckpoint
from kosine.spec import PoolingMode
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import export
from kosine_export.parity.referee import Referee
from native_machine import MISSING

pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")

TEXTS = ["한국어 문장", "[CLS] 안녕 [SEP] [UNK] [MASK] [PAD]", "긴 문장 " * 90, ""]


def bare(path, **options):
    return factories.build(path, generation="bare", **options)


def pooled_by_hand(path, mode):
    """sentence-transformers' own modules, put together for that mode."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    transformer = models.Transformer(str(path), model_kwargs=options)
    pooling = models.Pooling(64, pooling_mode=mode)
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


@pytest.mark.parametrize("mode", get_args(PoolingMode))
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_given_pooling_is_that_of_sentence_transformers(mode, family, tmp_path):
    path = bare(tmp_path / "m", family=family)
    checkpoint = read_checkpoint(path, pooling=mode)
    assert (checkpoint.spec.pooling.modes, checkpoint.pooling_stated) == ((mode,), False)
    assert any(f"{mode} pooling, as was asked for" in note for note in checkpoint.notes)
    expected = factories.referee_vectors(pooled_by_hand(path, mode), TEXTS)
    referee = Referee(path, pooling=mode)
    scale = 1.0
    if mode == "mean_sqrt_len_tokens":
        # These sums grow with the text's length, and their rounding with them: held as means.
        scale = np.sqrt([[len(ids)] for ids in referee.ids(TEXTS)])
    for found in (numpy_encoder.vectors(checkpoint, TEXTS), referee.encode(TEXTS, normalize=False)):
        assert np.abs((found - expected) / scale).max() <= MAX_ABS_ERROR


SEVERAL = [*((mode,) for mode in get_args(PoolingMode)), ("lasttoken", "cls", "max", "mean")]


# A prompt that is left out, and one that is longer than a text may be.
PROMPTS = {"query": "검색 질문: ", "endless": "긴 지시문 " * 40}


@pytest.fixture(scope="module", params=SEVERAL, ids="+".join)
def pooled(request, tmp_path_factory):
    """The modes, sentence-transformers, and the bundle."""
    folder = tmp_path_factory.mktemp("pooled")
    path = factories.build(
        folder / "m",
        family="xlm-roberta",
        pooling=request.param,
        generation="5.4",
        max_length=64,
        include_prompt=False,
        prompts=PROMPTS,
        sizes={"num_hidden_layers": 1},
    )
    done = export(path, folder / "b.kosine", prompts={"endless": ""})
    assert done.parity["float32"].passed
    return request.param, factories.referee(path), done.path


def test_every_engine_pools_as_sentence_transformers(pooled):
    modes, model, bundle = pooled
    prompts = ["", PROMPTS["query"]]
    if "max" not in modes:  # of nothing the referee's is -inf
        prompts.append(PROMPTS["endless"])
    for backend in ("onnx", *(() if MISSING else ("native",))):
        encoder = kosine.load(bundle, backend=backend, dtype="float32")
        for prompt in prompts:
            expected = factories.referee_vectors(
                model, TEXTS, prompt=prompt, normalize_embeddings=True
            )
            found = encoder.encode(TEXTS, prompt=prompt)
            assert found.shape == (len(TEXTS), 64 * len(modes))
            assert np.abs(found - expected).max() <= MAX_ABS_ERROR, (backend, prompt)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padded_graph_pools_whichever_side_is_padded(pooled, side):
    _, model, bundle = pooled
    check_padded_graph(bundle, model, TEXTS, side)


def test_other_tools_get_flags_only_where_flags_say_the_order(tmp_path):
    for name, modes, stated in (("a", ("cls", "mean"), True), ("b", ("mean", "cls"), False)):
        path = factories.build(tmp_path / name, pooling=modes, generation="5.4")
        bundle = export(path, tmp_path / f"{name}.kosine").path
        assert (bundle / "modules.json").is_file() == stated
    config = json.loads((tmp_path / "a.kosine" / "1_Pooling" / "config.json").read_text("utf-8"))
    assert [flag for flag, on in config.items() if flag.startswith("pooling") and on] == [
        "pooling_mode_cls_token",
        "pooling_mode_mean_tokens",
    ]


def test_the_export_records_a_given_pooling_and_verify_follows_it(tmp_path, capfd):
    path = bare(tmp_path / "m")
    bundle = tmp_path / "b.kosine"
    assert cli.main(["export", str(path), str(bundle), "--pooling", "cls"]) == 0
    assert "cls pooling, as was asked for" in capfd.readouterr().out
    manifest = Bundle(bundle).manifest
    assert manifest.spec.pooling.modes == ("cls",)
    assert manifest.source["overrides"] == {"pooling": "cls"}
    assert manifest.parity is not None
    assert manifest.parity["passed"]
    assert cli.main(["verify", str(bundle), "--against", str(path)]) == 0
    # Negative control: without the record the referee pools by mean, and that must show.
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    value = json.loads(text)
    value["source"]["overrides"] = {}
    (bundle / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    assert cli.main(["verify", str(bundle), "--against", str(path)]) == 1


def test_a_stated_pooling_is_not_overridden(tmp_path):
    path = factories.build(tmp_path / "m", pooling="mean")
    with pytest.raises(InputError, match="cls was asked for, and the checkpoint states mean"):
        read_checkpoint(path, pooling="cls")
    done = export(path, tmp_path / "b.kosine", pooling="mean")
    assert done.manifest.source["overrides"] == {}


def test_the_command_line_calls_lasttoken_last_too(tmp_path, capfd):
    path = factories.build(tmp_path / "m", pooling="mean")
    assert cli.main(["export", str(path), str(tmp_path / "b"), "--pooling", "last"]) == 2
    assert "lasttoken was asked for, and the checkpoint states mean" in capfd.readouterr().err


@pytest.mark.parametrize("mode", ["last", "mean+max", "CLS", ""])
def test_unknown_pooling_is_refused_with_the_known_ones(mode, tmp_path):
    with pytest.raises(UnknownOption, match="known: mean, cls, max"):
        export(factories.SAMPLE, tmp_path / "b.kosine", pooling=mode)
    assert not (tmp_path / "b.kosine").exists()


@pytest.mark.parametrize("asked", [None, "cls"])
def test_a_pooling_module_without_a_mode_takes_the_given_one(asked, tmp_path):
    path = factories.build(tmp_path / "m", dense=[{"outputs": 32}])
    factories.write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": 64})
    checkpoint = read_checkpoint(path, pooling=asked)
    assert checkpoint.spec.pooling.modes == (asked or "mean",)
    assert any("states no mode" in note for note in checkpoint.notes)
    expected = Referee(path, pooling=asked).encode(TEXTS, normalize=False)
    assert np.abs(numpy_encoder.vectors(checkpoint, TEXTS) - expected).max() <= MAX_ABS_ERROR


def test_an_adapter_on_a_plain_base_takes_the_given_one(tmp_path):
    base = bare(tmp_path / "base", family="roberta", tokenizer="wordpiece")
    factories.write_adapter(tmp_path / "adapter", base)
    checkpoint = read_checkpoint(tmp_path / "adapter", base=base, pooling="max")
    referee = Referee(tmp_path / "adapter", base=base, pooling="max")
    expected = referee.encode(TEXTS, normalize=False)
    assert np.abs(numpy_encoder.vectors(checkpoint, TEXTS) - expected).max() <= MAX_ABS_ERROR


# What is not guessed


def test_a_classifier_is_refused_by_name_unless_a_pooling_is_given(tmp_path):
    path = bare(
        tmp_path / "m",
        prefix="bert.",
        sizes={"architectures": ["BertForSequenceClassification"], "num_labels": 1},
    )
    with pytest.raises(UnsupportedCheckpoint, match="BertForSequenceClassification") as caught:
        read_checkpoint(path)
    assert "cross-encoder" in str(caught.value)
    assert "--pooling" in caught.value.remedy
    done = export(path, tmp_path / "b.kosine", pooling="cls")
    assert done.parity["float32"].passed


def test_a_cross_encoder_of_today_is_refused_by_name(tmp_path):
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(bare(tmp_path / "m")), num_labels=1, device="cpu")
    model.save_pretrained(str(tmp_path / "cross"))
    with pytest.raises(UnsupportedCheckpoint, match=r"CrossEncoder|ForSequenceClassification"):
        read_checkpoint(tmp_path / "cross")


def test_a_decoder_s_class_is_refused_unless_a_pooling_is_given(tmp_path):
    path = bare(tmp_path / "m", family="roberta", sizes={"architectures": ["RobertaForCausalLM"]})
    with pytest.raises(UnsupportedCheckpoint, match="RobertaForCausalLM"):
        read_checkpoint(path)
    expected = Referee(path, pooling="mean").encode(TEXTS, normalize=False)
    found = numpy_encoder.vectors(read_checkpoint(path, pooling="mean"), TEXTS)
    assert np.abs(found - expected).max() <= MAX_ABS_ERROR


@pytest.mark.parametrize("within", [False, True])
def test_the_transformer_alone_of_a_checkpoint_is_noticed(within, tmp_path, monkeypatch):
    path = factories.build(tmp_path / "m", generation="1.x", pooling="cls")
    alone = path / "0_Transformer"
    if within:
        monkeypatch.chdir(alone)
        alone = "."
    with pytest.raises(UnsupportedCheckpoint, match="0_Transformer is the Transformer module"):
        read_checkpoint(alone)
    assert read_checkpoint(path).spec.pooling.modes == ("cls",)
    expected = Referee(alone, pooling="mean").encode(TEXTS, normalize=False)
    found = numpy_encoder.vectors(read_checkpoint(alone, pooling="mean"), TEXTS)
    assert np.abs(found - expected).max() <= MAX_ABS_ERROR


@pytest.mark.parametrize("listing", ["[]", "{", "5", '[{"path": "other"}]', '["m"]'])
def test_a_modules_json_above_that_does_not_list_the_folder_is_nothing(listing, tmp_path):
    path = bare(tmp_path / "m")
    (tmp_path / "modules.json").write_text(listing, encoding="utf-8")
    assert read_checkpoint(path).spec.pooling.modes == ("mean",)


def test_the_base_of_an_adapter_may_be_the_transformer_alone(tmp_path):
    """The adapter states the pooling, so nothing is guessed."""
    adapter, base = factories.build_legal(tmp_path)
    folder = tmp_path / "whole"
    factories.write_json(folder / "modules.json", [{"path": "0_Transformer", "type": "x"}])
    (folder / "0_Transformer").symlink_to(base, target_is_directory=True)
    checkpoint = read_checkpoint(adapter, base=folder / "0_Transformer")
    assert checkpoint.spec.pooling.modes == ("mean",)


# Modules that do nothing, and modules that hold modules


def saved(path, modules):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=modules, device="cpu").save(str(path))
    return path


@pytest.mark.parametrize("generation", ["2.x", "5.4"])
def test_dropout_is_nothing_at_inference(generation, tmp_path):
    path = factories.build(
        tmp_path / "m", generation=generation, dense=[{"outputs": 32}], normalize=True
    )
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    kind = {
        "2.x": "sentence_transformers.models.Dropout",
        "5.4": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
    }[generation]
    for index, folder in ((3, "8_Dropout"), (2, "9_Dropout")):
        factories.write_json(path / folder / "config.json", {"dropout": 0.5})
        modules.insert(index, {"path": folder, "type": kind})
    for index, entry in enumerate(modules):
        entry |= {"idx": index, "name": str(index)}
    factories.write_json(path / "modules.json", modules)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.spec.dim, checkpoint.spec.normalize) == (32, True)
    model = factories.referee(path)
    assert [type(module).__name__ for module in model].count("Dropout") == 2
    expected = factories.referee_vectors(model, TEXTS)
    assert np.abs(numpy_encoder.vectors(checkpoint, TEXTS) - expected).max() <= MAX_ABS_ERROR


def test_dropout_before_the_pooling_is_refused_as_the_referee_fails_on_it(tmp_path):
    path = factories.build(tmp_path / "m")
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    modules.insert(1, {"path": "", "type": "sentence_transformers.models.Dropout"})
    factories.write_json(path / "modules.json", modules)
    with pytest.raises(UnsupportedCheckpoint, match="Transformer, Dropout, Pooling"):
        read_checkpoint(path)


def test_a_model_inside_a_model_is_refused_by_that_name_and_the_remedy_works(tmp_path):
    from sentence_transformers.sentence_transformer import modules as models

    inner = factories.referee(factories.build(tmp_path / "m"))
    nested = saved(tmp_path / "nested", [inner, models.Normalize()])
    with pytest.raises(UnsupportedCheckpoint, match="SentenceTransformer inside a Sent") as caught:
        read_checkpoint(nested)
    assert "modules=[*inner, ...]" in caught.value.remedy
    flat = read_checkpoint(saved(tmp_path / "flat", [*inner, models.Normalize()]))
    assert flat.spec.normalize
