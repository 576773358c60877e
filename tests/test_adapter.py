"""LoRA adapters merged into their base, against peft."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import factories
import numpy_encoder
from kosine.errors import CorruptCheckpoint, InputError, UnsupportedCheckpoint
from kosine_export.checkpoint.adapter import read_adapter
from kosine_export.checkpoint.checkpoint import read_checkpoint

pytest.importorskip("peft", reason="the referee, kosine[torch], is absent")

TEXTS = ["한국어 문장", "상법 제651조의 내용은?", "긴 문장 " * 90]
LEGAL = Path(__file__).parent.parent.parent / "shared" / "checkpoints" / "legal-adapter"


@pytest.fixture
def legal(tmp_path):
    return factories.build_legal(tmp_path)


def referee_error(adapter, base):
    checkpoint = read_checkpoint(adapter, base=base)
    expected = factories.referee_vectors(factories.referee(adapter), TEXTS)
    return np.abs(numpy_encoder.vectors(checkpoint, TEXTS) - expected).max()


def test_the_merged_adapter_equals_the_referee(legal):
    assert referee_error(*legal) <= 5e-6


def test_merging_adds_the_scaled_product_to_query_and_value_alone(legal):
    from safetensors.numpy import load_file

    adapter, base = legal
    merged, plain = read_checkpoint(adapter, base=base).tensors, read_checkpoint(base).tensors
    lora = load_file(adapter / "adapter_model.safetensors")
    for layer in (0, 1):
        name = f"layers.{layer}.attention.qkv.weight"
        change = merged[name] - plain[name]
        for columns, target in ((slice(0, 64), "query"), (slice(128, 192), "value")):
            at = f"base_model.model.encoder.layer.{layer}.attention.self.{target}"
            product = lora[f"{at}.lora_B.weight"] @ lora[f"{at}.lora_A.weight"]
            np.testing.assert_allclose(change[:, columns], 2 * product.T, atol=1e-6)
        assert not change[:, 64:128].any()
    changed = {name for name in plain if not np.array_equal(plain[name], merged[name])}
    assert changed == {"layers.0.attention.qkv.weight", "layers.1.attention.qkv.weight"}


def test_rank_and_alpha_patterns_are_honoured(legal):
    adapter, base = legal
    ranks = {"layer.1.attention.self.query": 4}
    factories.write_adapter(
        adapter, base, ranks=ranks, rank_pattern=ranks, alpha_pattern={"value": 3}
    )
    assert referee_error(adapter, base) <= 5e-6


def test_layers_to_transform_is_honoured(legal):
    adapter, base = legal
    factories.write_adapter(adapter, base, layers=1, layers_to_transform=[0])
    assert referee_error(adapter, base) <= 5e-6


def test_a_base_that_is_cut_to_its_first_layers(legal):
    adapter, base = legal
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    factories.write_json(base / "config.json", config | {"num_hidden_layers": 1})
    with pytest.raises(CorruptCheckpoint, match=r"layer\.1\."):  # adapted, and not there
        read_checkpoint(adapter, base=base)
    factories.write_adapter(adapter, base, layers=1)
    assert referee_error(adapter, base) <= 5e-6


def test_a_pattern_of_targets_is_taken_from_the_tensors(legal):
    adapter, base = legal
    factories.write_adapter(adapter, base, target_modules=r".*\.(query|value)")
    assert referee_error(adapter, base) <= 5e-6


def test_fan_in_fan_out_adds_the_transposed_product():
    from kosine_export.checkpoint.adapter import Adapter, Pair

    class Stored:
        def read(self, name):
            return {"a": np.float32([[1, 2, 3]]), "b": np.float32([[1], [10]])}[name]

    for transposed in (False, True):
        adapter = Adapter("base", Stored(), {"layer": Pair("a", "b", 1, 2.0)}, transposed, {})
        weight = np.zeros((3, 2) if transposed else (2, 3), np.float32)
        expected = np.float32([[2, 4, 6], [20, 40, 60]])
        merged = adapter.merge("layer.weight", weight)
        assert np.array_equal(merged, expected.T if transposed else expected)
        assert merged.flags["C_CONTIGUOUS"]


def test_the_adapter_s_own_files_win_over_the_base_s(legal):
    adapter, base = legal
    root = json.loads((adapter / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    root["prompts"] = {"query": "질문: "}
    factories.write_json(adapter / "config_sentence_transformers.json", root)
    factories.write_limits(adapter, "2.x", 64, False)
    factories.write_pooling(adapter / "1_Pooling", "cls", 64, "2.x", False)
    checkpoint = read_checkpoint(adapter, base=base)
    assert checkpoint.prompts == {"query": "질문: "}
    assert checkpoint.max_tokens == 64
    assert checkpoint.spec.pooling.modes == ("cls",)
    assert checkpoint.spec.pooling.include_prompt is False


def test_what_the_adapter_leaves_out_is_the_base_s(tmp_path):
    base = factories.build(
        tmp_path / "base",
        pooling="max",
        prompts={"query": "q: "},
        similarity="dot",
        max_length=40,
    )
    factories.write_adapter(tmp_path / "adapter", base)
    checkpoint = read_checkpoint(tmp_path / "adapter", base=base)
    assert checkpoint.spec.pooling.modes == ("max",)
    assert checkpoint.max_tokens == 40
    assert checkpoint.prompts == {"query": "q: "}
    assert checkpoint.similarity == "dot"


def test_source_names_both_and_their_hashes(legal):
    adapter, base = legal
    source = read_checkpoint(adapter, base=base).source
    assert source["name"] == "adapter"
    assert list(source["sha256"]) == ["adapter_model.safetensors"]
    assert source["base"]["name"] == "base"
    assert list(source["base"]["sha256"]) == ["model.safetensors"]
    assert source["versions"]["sentence_transformers"] == "3.1.1"


def test_an_adapter_without_its_base_says_which_and_how(legal):
    adapter, base = legal
    with pytest.raises(InputError, match="--base DIR") as caught:
        read_checkpoint(adapter)
    assert str(base) in caught.value.problem


@pytest.mark.parametrize("pinned", [True, False])
def test_the_base_s_pinned_revision_is_asked_of_the_hub(pinned, legal, monkeypatch):
    import huggingface_hub

    adapter, base = legal
    factories.write_adapter(
        adapter, base, base_model_name_or_path="organisation/base", revision="abc"
    )
    asked = []

    def download(hub_id, **options):
        asked.append((hub_id, options["revision"]))
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    name = "organisation/base" if pinned else "organisation/other"
    read_checkpoint(adapter, base=name)
    assert asked == [(name, "abc" if pinned else None)]


def test_a_base_for_a_checkpoint_that_is_no_adapter_is_refused(legal):
    _, base = legal
    with pytest.raises(InputError, match="no adapter"):
        read_checkpoint(base, base=base)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_rslora": True}, "rsLoRA"),
        ({"bias": "all"}, "bias 'all'"),
        ({"bias": "lora_only"}, "lora_only"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"peft_type": None}, "None"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"rank_pattern": {"(a+)+": 4}}, "rank_pattern"),
    ],
    ids=str,
)
def test_what_is_no_plain_sum_is_refused_by_name(settings, named, legal):
    adapter, base = legal
    factories.write_adapter(adapter, base, **settings)
    with pytest.raises(UnsupportedCheckpoint) as caught:
        read_checkpoint(adapter, base=base)
    assert named in caught.value.problem
    assert "supported" in caught.value.limit
    assert "merge_and_unload" in caught.value.remedy


def edit_lora(adapter, edit):
    from safetensors.numpy import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


AT = "base_model.model.encoder.layer.1.attention.self.query"


def test_tensors_of_another_kind_are_refused(legal):
    adapter, base = legal
    edit_lora(adapter, lambda t: t.update({f"{AT}.lora_magnitude_vector": np.ones(64, np.float32)}))
    with pytest.raises(UnsupportedCheckpoint, match="lora_magnitude_vector"):
        read_checkpoint(adapter, base=base)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.pop(f"{AT}.lora_B.weight"), "lora_A of encoder.layer.1"),
        (
            lambda t: [t.pop(f"{AT}.lora_{half}.weight") for half in "AB"],
            "encoder.layer.1.attention.self.query",
        ),
        (
            lambda t: t.update({f"{AT}.lora_B.weight": np.zeros((64, 3), np.float32)}),
            "encoder.layer.1.attention.self.query",
        ),
        (
            lambda t: t[f"{AT}.lora_A.weight"].__setitem__((0, 0), np.nan),
            "encoder.layer.1.attention.self.query.lora_A",
        ),
        (lambda t: t.clear(), "no LoRA pair"),
    ],
    ids=["half missing", "pair missing", "wrong rank", "NaN", "empty"],
)
def test_a_damaged_adapter_is_refused(edit, named, legal):
    adapter, base = legal
    edit_lora(adapter, edit)
    with pytest.raises(CorruptCheckpoint, match=named):
        read_checkpoint(adapter, base=base)


def test_a_base_of_other_sizes_is_refused(legal, tmp_path):
    adapter, _ = legal
    other = factories.build_klue_large(tmp_path / "large")
    with pytest.raises(CorruptCheckpoint, match="LoRA pair"):
        read_checkpoint(adapter, base=other)


def test_the_real_legal_adapter_is_read():
    if not LEGAL.is_dir():
        pytest.skip(f"the real adapter is not at {LEGAL}")
    adapter = read_adapter(LEGAL)
    assert adapter.base == "jhgan/ko-sroberta-multitask"
    assert len(adapter.pairs) == 24
    assert {pair.rank for pair in adapter.pairs.values()} == {8}
    assert {pair.scale for pair in adapter.pairs.values()} == {2.0}
    weight = np.zeros((768, 768), np.float32)
    delta = adapter.merge("encoder.layer.11.attention.self.value.weight", weight)
    assert np.linalg.matrix_rank(delta[:64, :64]) == 8
    with pytest.raises(InputError, match=r"ko-sroberta-multitask.*--base DIR"):
        read_checkpoint(LEGAL)
