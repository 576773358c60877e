"""Bundles are judged when opened and written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import kosine
from hostile import (
    edit_manifest,
    entry,
    read_everything,
    rehash,
    rewrite,
    small_bundle,
    small_manifest,
)
from kosine import bundle as bundle_module
from kosine.bundle import Bundle, artifact_of, sha256_of, writing_bundle
from kosine.errors import BundleError, BundleExists, BundleNotFound, IntegrityError, ManifestError
from kosine_export.export import export


@pytest.fixture
def small(tmp_path):
    return small_bundle(tmp_path / "small.kosine")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_true_bundles_are_read(small, sample_bundle):
    read_everything(small)
    read_everything(sample_bundle)


def test_a_bundle_may_be_reached_through_a_link(small, tmp_path):
    (tmp_path / "current").symlink_to(small, target_is_directory=True)
    read_everything(tmp_path / "current")


def test_paths_may_be_str_or_path(small):
    assert Bundle(str(small)).path == Bundle(small).path == small


@pytest.mark.parametrize("made", ["nothing", "file", "empty folder", "other folder"])
def test_what_is_no_bundle(tmp_path, made):
    path = tmp_path / "x.kosine"
    if made == "file":
        path.write_text("x")
    elif "folder" in made:
        path.mkdir()
        if made == "other folder":
            (path / "config.json").write_text("{}")
    with pytest.raises(BundleNotFound, match=r"no bundle at .*x.kosine.*kosine export") as caught:
        Bundle(path)
    assert isinstance(caught.value, FileNotFoundError)


def test_each_file_is_hashed_once(small, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        bundle_module, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path)
    )
    opened = Bundle(small)
    assert hashed == []
    for _ in range(3):
        opened.file("tokenizer.json")
    assert hashed == ["tokenizer.json"]
    opened.verify_all()
    assert sorted(hashed) == sorted(opened.manifest.files())


def test_a_file_that_changed_after_opening_is_found(small):
    opened = Bundle(small)
    path = small / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors has sha256"):
        opened.tensors()
    with pytest.raises(IntegrityError):
        opened.verify_all()


def test_a_file_that_is_not_listed(small):
    opened = Bundle(small)
    assert opened.has("packed.onnx")
    assert not opened.has("fp16/packed.onnx")
    with pytest.raises(ManifestError, match=r"no fp16/packed.onnx; it lists .*packed.onnx"):
        opened.file("fp16/packed.onnx")


def test_artifact_of(small):
    made = artifact_of(small, "tokenizer", "", ["tokenizer.json"])
    assert made.files == (entry(small, "tokenizer.json"),)


def test_rehashing_is_what_makes_tampering_pass(small):
    """The helper that hostile bundles are made with does what it says."""
    rewrite(small, "tokenizer.json", (small / "tokenizer.json").read_bytes() + b" ")
    read_everything(small)
    (small / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        Bundle(small)
    rehash(small, "tokenizer.json")
    Bundle(small)


# Writing


def fill(folder: Path, mark: str = "new") -> None:
    shutil.rmtree(folder)
    small_bundle(folder)
    (folder / "more").mkdir()
    (folder / "more" / "mark").write_text(mark)

    def change(value):
        value["artifacts"].append(
            {"name": "m", "precision": "", "files": [vars_of(entry(folder, "more/mark"))]}
        )

    edit_manifest(folder, change)


def vars_of(made) -> dict:
    return {"path": made.path, "bytes": made.bytes, "sha256": made.sha256}


def test_success_makes_the_bundle_and_leaves_nothing_else(tmp_path):
    with writing_bundle(tmp_path / "deep" / "er" / "x.kosine") as folder:
        fill(folder)
        assert not (tmp_path / "deep" / "er" / "x.kosine").exists()
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["x.kosine"]
    read_everything(tmp_path / "deep" / "er" / "x.kosine")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_failure_leaves_nothing_and_keeps_the_old(tmp_path, error, force):
    path = tmp_path / "x.kosine"
    before = None
    if force:
        with writing_bundle(path) as folder:
            fill(folder, "old")
        before = contents(path)
    with pytest.raises(error), writing_bundle(path, force=force) as folder:  # noqa: PT012
        fill(folder)
        raise error
    assert [p.name for p in tmp_path.iterdir()] == (["x.kosine"] if force else [])
    if force:
        assert contents(path) == before


def test_failure_removes_the_folders_that_were_made_on_the_way(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(ValueError), writing_bundle(tmp_path / "kept" / "a" / "b" / "x"):
        raise ValueError
    assert list((tmp_path / "kept").iterdir()) == []


def test_without_force_nothing_is_replaced(tmp_path):
    path = tmp_path / "x.kosine"
    with writing_bundle(path) as folder:
        fill(folder, "old")
    before = contents(path)
    with pytest.raises(BundleExists, match=r"exists; .*--force"), writing_bundle(path):
        pytest.fail("the block must not run")
    assert contents(path) == before


def test_force_replaces_a_whole_bundle(tmp_path):
    path = tmp_path / "x.kosine"
    for mark in ("old", "new"):
        with writing_bundle(path, force=True) as folder:
            fill(folder, mark)
    assert (path / "more" / "mark").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.kosine"]
    read_everything(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link to a bundle", "dangling link"])
def test_force_refuses_what_is_no_bundle(tmp_path, kind):
    path = tmp_path / "x.kosine"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
        (path / "precious").write_text("precious")
    else:
        target = tmp_path / "target"
        if kind == "link to a bundle":
            small_bundle(target)
        path.symlink_to(target)
    before = names(tmp_path), contents(tmp_path)
    with pytest.raises(BundleExists, match="not a bundle"), writing_bundle(path, force=True):
        pytest.fail("the block must not run")
    assert (names(tmp_path), contents(tmp_path)) == before
    assert path.is_symlink() == ("link" in kind)


def test_an_interrupt_between_the_renames_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / "x.kosine"
    with writing_bundle(path) as folder:
        fill(folder, "old")
    before = contents(path)
    rename = Path.rename

    def interrupted(self, target):
        if self.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), writing_bundle(path, force=True) as folder:
        fill(folder)
    assert contents(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.kosine"]


def test_a_rename_that_fails_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / "x.kosine"
    with writing_bundle(path) as folder:
        fill(folder, "old")
    before = contents(path)
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleError, match="No space left"), writing_bundle(path, force=True) as f:
        fill(f)
    assert contents(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.kosine"]


def test_every_file_and_folder_is_flushed_before_the_rename(tmp_path, monkeypatch):
    flushed = set()
    fsync = os.fsync

    def noted(handle):
        flushed.add(str(Path(f"/proc/self/fd/{handle}").readlink()).split(".new", 1)[-1])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    with writing_bundle(tmp_path / "x.kosine") as folder:
        fill(folder)
    assert flushed >= {"", "/manifest.json", "/weights.safetensors", "/more", "/more/mark"}


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot write"), writing_bundle(tmp_path / "file" / "x"):
        pytest.fail("the block must not run")


def test_a_failing_export_leaves_nothing_and_keeps_the_old(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(Path(__file__).parent.parent / "export" / "sample", checkpoint)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(kosine.KosineError):
        export(checkpoint, out / "x.kosine")
    assert list(out.iterdir()) == []
    old = small_bundle(out / "x.kosine")
    before = contents(old)
    with pytest.raises(kosine.KosineError):
        export(checkpoint, old, force=True)
    assert contents(old) == before
    assert list(out.iterdir()) == [old]


def test_the_small_manifest_is_valid():
    manifest = small_manifest()
    assert type(manifest).from_json(manifest.to_json().encode()) == manifest
