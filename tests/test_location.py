"""Hub ids without a network: what the hub's cache holds is used, and only what is needed missed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

import factories
from kosine.errors import CheckpointNotFound, CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.checkpoint.location import locate

COMMIT = "0123456789abcdef" * 2 + "01234567"
# What repositories hold beside the model, in the patterns that are fetched and outside of them.
CLUTTER = ("README.md", "data_config.json", "train_args.txt", "onnx/config.json",
           "checkpoint-500/model.safetensors", "checkpoint-500/tokenizer.json")  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put a folder into a cache as huggingface_hub lays it out; returns the hub id."""
    constants = pytest.importorskip("huggingface_hub.constants")
    assert constants.HF_HUB_OFFLINE
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))  # for other processes

    def fill(
        folder: Path, *, without: tuple[str, ...] = (), more: tuple[str, ...] = CLUTTER, tree=True
    ) -> str:
        """`without`: listed by the hub, and not fetched; `more`: names that only the hub has."""
        top = cache / "models--organisation--name"
        (top / "blobs").mkdir(parents=True)
        (top / "refs").mkdir()
        (top / "refs" / "main").write_text(COMMIT)
        listed = {name: {"size": 1, "blob_id": "0" * 40} for name in more}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            listed[name] = {"size": len(data), "blob_id": digest[:40]}
            if name in without:
                continue
            (top / "blobs" / digest).write_bytes(data)
            link = top / "snapshots" / COMMIT / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(top / "blobs" / digest, link.parent))
        if tree:
            value = {"format_version": 1, "files": listed}
            factories.write_json(top / "trees" / f"{COMMIT}.json", value)
        return "organisation/name"

    return fill


GENERATIONS = ("1.x", "2.x", "5.4", "bare")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_nobody_needs_is_not_missed(generation, hub, tmp_path):
    from huggingface_hub import errors, snapshot_download

    folder = factories.build(tmp_path / "m", generation=generation)
    hub_id = hub(folder)
    if hasattr(errors, "IncompleteSnapshotError"):  # since 1.22, the hub's own judgement
        with pytest.raises(errors.IncompleteSnapshotError):
            snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", "*.safetensors"])
    checkpoint = read_checkpoint(hub_id)
    assert checkpoint.source["name"] == hub_id
    assert checkpoint.source["revision"] == COMMIT
    assert checkpoint.spec == read_checkpoint(folder).spec
    assert read_checkpoint(hub_id, revision=COMMIT).spec == checkpoint.spec


def test_an_offline_hub_id_is_exported_and_verified(hub, tmp_path, kosine_command):
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    hub_id = hub(factories.build(tmp_path / "m", dense=[{"outputs": 32}], normalize=True))
    done = kosine_command("export", hub_id, tmp_path / "b.kosine", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"]["passed"]
    done = kosine_command("verify", tmp_path / "b.kosine", "--against", hub_id)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("generation", "name"),
    [
        ("2.x", "config.json"),
        ("2.x", "modules.json"),
        ("2.x", "1_Pooling/config.json"),
        ("2.x", "2_Dense/model.safetensors"),
        ("2.x", "model.safetensors"),
        ("2.x", "tokenizer.json"),
        ("2.x", "tokenizer_config.json"),
        ("2.x", "sentence_bert_config.json"),
        ("2.x", "config_sentence_transformers.json"),
        ("1.x", "0_Transformer/model.safetensors"),
        ("1.x", "0_Transformer/tokenizer.json"),
    ],
)
def test_a_needed_file_that_is_not_cached_is_named(generation, name, hub, tmp_path):
    """Else another tokenizer, length or pooling would be taken without a word."""
    folder = factories.build(tmp_path / "m", generation=generation, dense=[{"outputs": 32}])
    hub_id = hub(folder, without=(name,))
    with pytest.raises(CheckpointNotFound, match=f"organisation/name without {name}") as caught:
        read_checkpoint(hub_id)
    assert "data_config" not in str(caught.value)
    assert "network" in caught.value.remedy


@pytest.mark.parametrize("name", ["vocab.txt", "special_tokens_map.json"])
def test_files_that_others_stand_for_are_not_missed(name, hub, tmp_path):
    folder = factories.build(tmp_path / "m")
    assert (folder / name).is_file()
    assert len(read_checkpoint(hub(folder, without=(name,))).spec.layers) == 2


def test_a_vocabulary_is_needed_where_it_is_the_tokenizer(hub, tmp_path):
    folder = factories.build(tmp_path / "m", tokenizer="vocab.txt")
    with pytest.raises(CheckpointNotFound, match=r"without special_tokens_map\.json and 1 more"):
        read_checkpoint(hub(folder, without=("vocab.txt", "special_tokens_map.json")))


def test_without_the_hub_s_listing_the_snapshot_is_all_there_is(hub, tmp_path):
    folder = factories.build(tmp_path / "m")
    hub_id = hub(folder, without=("config_sentence_transformers.json",), tree=False)
    for revision in (None, "main", COMMIT):
        checkpoint = read_checkpoint(hub_id, revision=revision)
        assert checkpoint.spec == read_checkpoint(folder).spec
        assert checkpoint.source["revision"] == COMMIT


# Pickles


@pytest.mark.parametrize(("cached", "tree"), [(False, True), (True, False), (True, True)])
def test_a_hub_id_with_a_pickle_alone_says_so(cached, tree, hub, tmp_path):
    folder = factories.build(tmp_path / "m", weights="bin")
    hub_id = hub(folder, without=() if cached else ("pytorch_model.bin",), tree=tree)
    with pytest.raises(UnsupportedCheckpoint, match="organisation/name holds its weights") as error:
        read_checkpoint(hub_id)
    assert "pytorch_model.bin only, a pickle" in str(error.value)
    assert "--allow-pickle" in error.value.remedy
    if cached:
        assert read_checkpoint(hub_id, allow_pickle=True).source["sha256"]
    else:
        with pytest.raises(CheckpointNotFound, match=r"without pytorch_model\.bin"):
            read_checkpoint(hub_id, allow_pickle=True)


def test_a_pickle_that_nothing_here_tells_of_is_hinted_at(hub, tmp_path):
    folder = factories.build(tmp_path / "m", weights="bin")
    hub_id = hub(folder, without=("pytorch_model.bin",), tree=False)
    with pytest.raises(CorruptCheckpoint, match="no weights") as caught:
        read_checkpoint(hub_id)
    assert "--allow-pickle" in caught.value.remedy


def test_a_module_with_a_pickle_alone_says_so(hub, tmp_path):
    folder = factories.build(tmp_path / "m", dense=[{"outputs": 32, "kind": "bin"}])
    hub_id = hub(folder, without=("2_Dense/pytorch_model.bin",))
    with pytest.raises(UnsupportedCheckpoint, match="name/2_Dense holds its weights"):
        read_checkpoint(hub_id)


def test_a_pickle_beside_safetensors_is_no_matter(hub, tmp_path):
    folder = factories.build(tmp_path / "m")
    hub_id = hub(folder, more=("pytorch_model.bin", "1_Pooling/pytorch_model.bin"))
    assert read_checkpoint(hub_id).source["sha256"]


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_either_form_of_the_weights_will_do(allow_pickle, hub, tmp_path):
    folder = factories.build(tmp_path / "m")
    checkpoint = read_checkpoint(
        hub(folder, more=("pytorch_model.bin",)), allow_pickle=allow_pickle
    )
    assert list(checkpoint.source["sha256"]) == ["model.safetensors"]


def test_an_adapter_in_the_cache(hub, tmp_path):
    adapter, base = factories.build_legal(tmp_path)
    hub_id = hub(adapter, more=("pytorch_model.bin", "adapter_model.bin"))
    assert read_checkpoint(hub_id, base=base).source["name"] == hub_id


# Names


def test_nothing_in_the_cache_is_one_clear_line(hub):
    hub(factories.SAMPLE)  # another model
    with pytest.raises(CheckpointNotFound, match="the hub did not serve a/b") as caught:
        locate("a/b")
    assert "\n" not in str(caught.value)


def test_a_short_name_brings_the_hub_id_it_may_stand_for():
    with pytest.raises(CheckpointNotFound) as caught:
        locate("all-MiniLM-L6-v2")
    assert "sentence-transformers/all-MiniLM-L6-v2" in caught.value.remedy


@pytest.mark.parametrize("path", ["./name", "a/b/c", "/name", Path("name")])
def test_what_is_plainly_a_path_does_not(path):
    with pytest.raises(CheckpointNotFound) as caught:
        locate(path)
    assert caught.value.remedy == "check the path"
