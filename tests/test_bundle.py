"""Bundles are judged when opened and written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import kosine
from hostile import (
    edit_manifest,
    entry,
    opened_files,
    read_everything,
    rehash,
    rewrite,
    small_bundle,
    small_manifest,
)
from kosine.bundle import folder as bundle_module
from kosine.bundle.canary import Canary
from kosine.bundle.folder import Bundle
from kosine.bundle.writing import artifact_of, sha256_of, writing_bundle
from kosine.errors import (
    BundleError,
    BundleExists,
    BundleNotFound,
    IntegrityError,
    ManifestError,
    UnsafeBundle,
)
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


def test_each_file_is_opened_and_hashed_once(small, monkeypatch):
    hashed = []

    def sha256(data):
        hashed.append(len(data))
        return hashlib.sha256(data).hexdigest()

    with opened_files() as opened:
        bundle = Bundle(small)
        monkeypatch.setattr(bundle_module, "_sha256", sha256)
        for _ in range(3):
            bundle.data("tokenizer.json")
        assert hashed == [bundle.manifest.files()["tokenizer.json"].bytes]
        for _ in range(2):
            bundle.verify_all()
            Canary.read(bundle)
    files = bundle.manifest.files()
    assert sorted(hashed) == sorted(each.bytes for each in files.values())
    ours = [name for name in opened if name.startswith(str(small))]
    assert sorted(ours) == sorted(str(small / name) for name in ["manifest.json", *files])


def test_data_is_a_read_only_mapping(small):
    data = Bundle(small).data("weights.safetensors")
    assert isinstance(data, mmap.mmap)
    with pytest.raises(TypeError):
        data[0] = 1


def test_reading_goes_on_after_the_memory_was_given_back(small):
    bundle = Bundle(small)
    before = {name: value.copy() for name, value in bundle.tensors().tensors().items()}
    views = bundle.tensors().tensors()
    bundle.release()
    for name, value in before.items():
        np.testing.assert_array_equal(views[name], value)


def test_a_bundle_that_is_replaced_changes_nothing_for_those_who_have_it_open(small, tmp_path):
    """Not even for files that nobody has read yet."""
    before = contents(small)
    opened = Bundle(small)
    small.rename(tmp_path / "old")
    small_bundle(small)
    rewrite(small, "tokenizer.json", b"{}")
    shutil.rmtree(tmp_path / "old")
    opened.verify_all()
    assert {name: bytes(opened.data(name)) for name in opened.manifest.files()} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }


def test_the_bundle_has_its_manifests_sha256(small):
    assert Bundle(small).sha256 == sha256_of(small / "manifest.json")


def test_empty_files_are_files(small):
    (small / "empty").write_bytes(b"")

    def change(value):
        value["artifacts"][0]["files"].append(vars_of(entry(small, "empty")))

    edit_manifest(small, change)
    opened = Bundle(small)
    opened.verify_all()
    assert opened.data("empty") == b""


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_a_file_that_may_not_be_read(small, name, monkeypatch):
    refuse(monkeypatch, os, "open", lambda path, *_: Path(path).name == name, errno.EACCES)
    with pytest.raises(BundleError, match=f"{name} cannot be read: Permission denied"):
        Bundle(small)


def test_a_file_that_becomes_a_pipe_is_not_waited_for(small, monkeypatch):
    """Between the look at it and its opening."""
    path = small / "tokenizer.json"
    real = bundle_module._check_regular

    def checked(where, info):
        real(where, info)
        if where == path:
            path.unlink()
            os.mkfifo(path)

    monkeypatch.setattr(bundle_module, "_check_regular", checked)
    with pytest.raises(UnsafeBundle, match=r"tokenizer\.json.* is a folder, a pipe or a device"):
        Bundle(small)


def refuse(monkeypatch, module, name, when, code):
    """Make a function of the system fail where `when` says so of its arguments."""
    real = getattr(module, name)

    def refusing(*args, **options):
        if when(*args):
            raise OSError(code, os.strerror(code))
        return real(*args, **options)

    monkeypatch.setattr(module, name, refusing)


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


def old_and_new(path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Write an old bundle at `path`; what it holds, and what the new one will hold."""
    with writing_bundle(path) as folder:
        fill(folder, "old")
    (path / "of the old one.txt").write_text("x")
    old = contents(path)
    new = {name: data for name, data in old.items() if name != "of the old one.txt"}
    new["more/mark"] = b"new"
    return old, {**new, "manifest.json": b""}


def breaking_rename(monkeypatch, at: int, error: BaseException) -> list[Path]:
    """Make the rename number `at` fail, after the file was moved if it is an interrupt."""
    done: list[Path] = []
    rename = Path.rename

    def renaming(self, target):
        done.append(self)
        if len(done) == at + 1:
            if not isinstance(error, Exception):
                rename(self, target)
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renaming)
    return done


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_whichever_rename_fails_the_old_is_kept(tmp_path, error):
    path = tmp_path / "x.kosine"
    old, new = old_and_new(path)
    inode = path.stat().st_ino
    for at in range(20):
        expected = BundleError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.MonkeyPatch.context() as patch:
            done = breaking_rename(patch, at, error)
            try:
                with writing_bundle(path, force=True) as folder:
                    fill(folder)
            except expected:
                assert contents(path) == old
                assert [p.name for p in tmp_path.iterdir()] == ["x.kosine"]
                assert not [name for name in names(path) if name.startswith(".")]
                continue
        break
    assert at == len(done) == len(old) + len(new)
    found = contents(path)
    assert {**found, "manifest.json": b""} == new
    assert path.stat().st_ino == inode
    read_everything(path)


def test_between_the_old_files_and_the_new_there_is_no_bundle(tmp_path, monkeypatch):
    path = tmp_path / "x.kosine"
    old, _ = old_and_new(path)
    seen = []
    rename = Path.rename

    def looking(self, target):
        made = rename(self, target)
        try:
            Bundle(path)
            seen.append("bundle")
        except BundleNotFound:
            seen.append("none")
        return made

    monkeypatch.setattr(Path, "rename", looking)
    with writing_bundle(path, force=True) as folder:
        fill(folder)
    assert seen == ["none"] * (len(seen) - 1) + ["bundle"]
    assert len(seen) > len(old)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY])
@pytest.mark.parametrize("kind", ["bundle", "empty folder"])
def test_no_folder_that_is_there_is_renamed(tmp_path, monkeypatch, kind, code):
    """It may be in a lower layer of a container's image (EXDEV), or a mount (EBUSY)."""
    path = tmp_path / "x.kosine"
    path.mkdir()
    if kind == "bundle":
        path.rmdir()
        old_and_new(path)

    def folders(self, target):
        return self.is_dir() or Path(target).is_dir()

    refuse(monkeypatch, Path, "rename", folders, code)
    with writing_bundle(path, force=kind == "bundle") as folder:
        fill(folder)
    assert (path / "more" / "mark").read_text() == "new"
    assert not (path / "of the old one.txt").exists()
    assert names(tmp_path) == ["x.kosine"]
    read_everything(path)


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_folder_is_filled(tmp_path, force):
    path = tmp_path / "x.kosine"
    path.mkdir()
    inode = path.stat().st_ino
    with pytest.raises(ValueError), writing_bundle(path, force=force):  # noqa: PT012
        assert not (path / "manifest.json").exists()
        raise ValueError
    assert names(path) == []
    with writing_bundle(path, force=force) as folder:
        fill(folder)
    assert path.stat().st_ino == inode
    assert names(tmp_path) == ["x.kosine"]
    assert not [name for name in names(path) if name.startswith(".")]
    read_everything(path)


def test_links_in_the_old_bundle_are_replaced_and_not_followed(tmp_path):
    """Of a model hub's cache, say."""
    path, blobs = tmp_path / "x.kosine", tmp_path / "blobs"
    small_bundle(blobs)
    path.mkdir()
    for name in names(blobs):
        (path / name).symlink_to(blobs / name)
    (path / "more").symlink_to(blobs)
    before = contents(blobs)
    with writing_bundle(path, force=True) as folder:
        fill(folder)
    assert contents(blobs) == before
    assert not any(each.is_symlink() for each in path.rglob("*"))
    read_everything(path)


def test_an_export_into_an_empty_folder(tmp_path):
    (tmp_path / "x.kosine").mkdir()
    checkpoint = Path(__file__).parent.parent / "export" / "sample"
    done = export(checkpoint, tmp_path / "x.kosine", targets=())
    assert kosine.load(done.path, backend="onnx").encode("가").shape == (done.manifest.dim,)


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
