"""Bundles on disk: judged before they are opened, written whole or not at all.

A bundle is a folder `NAME.kosine/` with a `manifest.json` that lists every other file with its
size and sha256. Opening one checks that the folder holds exactly those files, that none is a
link, and that the sizes fit; each file's sha256 is checked when that file is first opened.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from kosine.errors import (
    BundleError,
    BundleExists,
    BundleNotFound,
    IntegrityError,
    ManifestError,
    UnsafeBundle,
)
from kosine.graphscan import MAX_GRAPH_BYTES, scan_graph
from kosine.manifest import MAX_MANIFEST_BYTES, Artifact, FileEntry, Manifest
from kosine.tensorfile import TensorFile

__all__ = ["MANIFEST", "Bundle", "artifact_of", "sha256_of", "writing_bundle"]

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
MAX_FILES = 256
CHUNK = 1 << 20


class Bundle:
    """A bundle opened for reading.

    Args:
        path: The bundle's folder.

    Raises:
        BundleNotFound, ManifestError, SchemaTooNew, UnsafeBundle, IntegrityError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise BundleNotFound(
                f"no bundle at {str(path)!r}",
                limit=f"a bundle is a folder with a {MANIFEST}",
                remedy="make one with `kosine export CHECKPOINT BUNDLE`",
            )
        if (self.path / MANIFEST).is_symlink():
            raise _unsafe(f"{MANIFEST} is a link", "regular files")
        with (self.path / MANIFEST).open("rb") as file:
            self.manifest = Manifest.from_json(file.read(MAX_MANIFEST_BYTES + 1))
        self._files = self.manifest.files()
        self._verified: set[str] = set()
        self._check_listing()

    def file(self, name: str) -> Path:
        """The path of a listed file, after its sha256 was found right (once per `Bundle`)."""
        entry = self._files.get(name)
        if entry is None:
            raise ManifestError(
                f"the bundle has no {name}",
                limit=f"it lists {', '.join(sorted(self._files))}",
                remedy="export it again with the target that holds it",
            )
        path = self.path / entry.path
        if name not in self._verified:
            digest = sha256_of(path)
            if digest != entry.sha256:
                raise IntegrityError(
                    f"{name} has sha256 {digest[:12]}…",
                    limit=f"the manifest says {entry.sha256[:12]}…",
                    remedy="copy or export the bundle again",
                )
            self._verified.add(name)
        return path

    def has(self, name: str) -> bool:
        return name in self._files

    def verify_all(self) -> None:
        """Check every file's sha256 now, and judge every graph, whatever backend will run."""
        for name in self._files:
            self.file(name)
            if name.endswith(".onnx"):
                self.graph(name)

    def tensors(self, name: str = WEIGHTS) -> TensorFile:
        """A safetensors file of the bundle, memory-mapped."""
        return TensorFile(self.file(name))

    def graph(self, name: str) -> Path:
        """An ONNX graph's path, after its bytes and all they point to were judged.

        Raises:
            UnsafeBundle: External data that is not exactly a tensor of the weights file beside
                the graph, or anything else that `scan_graph` refuses.
        """
        path = self.file(name)
        folder = PurePosixPath(name).parent
        with path.open("rb") as file:
            externals = scan_graph(file.read(MAX_GRAPH_BYTES + 1), name)
        if externals:
            weights = self.tensors(str(folder / WEIGHTS))
            places = {(entry.offset, entry.nbytes) for entry in weights.entries.values()}
        for tensor in externals:
            if tensor.location != WEIGHTS:
                raise _unsafe(
                    f"{name} keeps tensor {tensor.name[:60]!r} in {tensor.location[:60]!r}", WEIGHTS
                )
            if (tensor.offset, tensor.length) not in places:
                raise _unsafe(
                    f"{name} reads tensor {tensor.name[:60]!r} at {tensor.offset}+{tensor.length}",
                    f"the tensors of {WEIGHTS}",
                )
        return path

    def _check_listing(self) -> None:
        if len(self._files) > MAX_FILES:
            raise _unsafe(f"the manifest lists {len(self._files)} files", f"at most {MAX_FILES}")
        for name in self._files:
            _check_path(name)
        if len({name.casefold() for name in self._files}) != len(self._files):
            raise _unsafe("the manifest lists paths that differ in case only", "distinct paths")
        found: set[str] = set()
        for name, mode, size in _walk(self.path):
            if not stat.S_ISREG(mode):
                raise _unsafe(f"{name[:80]!r} is a link or a special file", "regular files")
            if name == MANIFEST:
                continue
            entry = self._files.get(name)
            if entry is None:
                raise _unsafe(f"{name[:80]!r} is not in the manifest", "the files that it lists")
            if size != entry.bytes:
                raise IntegrityError(
                    f"{name} is {size} bytes long",
                    limit=f"the manifest says {entry.bytes}",
                    remedy="copy or export the bundle again",
                )
            found.add(name)
        missing = sorted(set(self._files) - found)
        if missing:
            raise IntegrityError(
                f"{missing[0]} is missing", remedy="copy or export the bundle again"
            )


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifact_of(folder: Path, name: str, precision: str, paths: Iterable[str]) -> Artifact:
    """Describe files that lie under `folder`, for the manifest."""
    entries = [
        FileEntry(path, (folder / path).stat().st_size, sha256_of(folder / path)) for path in paths
    ]
    return Artifact(name, precision, tuple(entries))


@contextmanager
def writing_bundle(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder; on success it becomes the bundle at `path`, otherwise it vanishes.

    The files are fsynced and the folder is renamed into place, so a reader sees the old bundle,
    the new one, or none. With `force` an existing *bundle* is replaced; anything else at
    `path` is never removed.
    """
    final = Path(path)
    if final.is_symlink() or final.exists():
        if not force:
            raise BundleExists(
                f"{str(path)!r} exists", remedy="choose another name, or pass --force to replace it"
            )
        if final.is_symlink() or not (final / MANIFEST).is_file():
            raise BundleExists(
                f"{str(path)!r} exists and is not a bundle",
                limit="--force replaces bundles only",
                remedy="choose another name",
            )
    token = f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}"
    working, retired = final.parent / f"{token}.new", final.parent / f"{token}.old"
    made = [folder for folder in final.parents if not folder.exists()]
    try:
        working.mkdir(parents=True)
    except OSError as error:
        raise BundleError(
            f"cannot write at {str(path)!r}: {error.strerror}", remedy="choose a writable folder"
        ) from None
    try:
        yield working
        for written in _contents(working):
            _fsync(written)
        _put_in_place(working, final, retired, force=force)
    finally:
        shutil.rmtree(working, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
        with suppress(OSError):  # not empty: the bundle is there, or someone else's files are
            for folder in made:
                folder.rmdir()


def _put_in_place(working: Path, final: Path, retired: Path, *, force: bool) -> None:
    try:
        if force and final.exists():
            final.rename(retired)
        working.rename(final)
    except OSError as error:
        raise BundleError(
            f"cannot write {str(final)!r}: {error.strerror}", remedy="choose another name"
        ) from None
    finally:
        # Also where an interrupt strikes between the two renames.
        if retired.exists() and not final.exists():
            retired.rename(final)
    _fsync(final.parent)


def _check_path(name: str) -> None:
    """Relative, forward slashes, no `..`, nothing that another system reads differently."""
    parts = PurePosixPath(name).parts
    if (
        not parts
        or name != "/".join(parts)
        or ".." in parts
        or name.startswith("/")
        or any(character in '\\:*?"<>|' or not character.isprintable() for character in name)
        or any(part.endswith((".", " ")) for part in parts)
        or name.casefold() == MANIFEST
    ):
        raise _unsafe(f"the manifest lists the path {name[:80]!r}", "paths inside the bundle")


def _walk(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(relative path, mode, size) of everything that is not a plain folder, links not followed."""
    pending = [folder]
    while pending:
        current = pending.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    pending.append(Path(entry.path))
                else:
                    name = Path(entry.path).relative_to(folder).as_posix()
                    yield name, info.st_mode, info.st_size


def _contents(folder: Path) -> Iterator[Path]:
    """Every file and folder under `folder`, and last the folder itself."""
    for current, _, files in os.walk(folder, topdown=False):
        yield from (Path(current) / name for name in files)
        yield Path(current)


def _fsync(path: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there, and files were flushed on close
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unsafe(problem: str, limit: str) -> UnsafeBundle:
    return UnsafeBundle(problem, limit=limit, remedy="use a bundle written by `kosine export`")
