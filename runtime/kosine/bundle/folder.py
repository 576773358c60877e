"""Bundles on disk: judged before anything in them is used, written whole or not at all.

A bundle is a folder `NAME.kosine/` with a `manifest.json` that lists every other file with its
size and sha256. Opening one opens each of those files, once, and maps it into memory: a regular
file of the right size, at the end of any links. Its sha256 is that of the mapping, taken when it
is first read, and the mapping is what every reader gets, in forked children too. So a bundle
that is replaced meanwhile changes nothing for those who have the old one open. (Writing into the
files of an open bundle does: replace them instead.) Files that are not listed are never opened.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from numpy.typing import NDArray

from kosine.bundle.graphscan import MAX_GRAPH_BYTES, scan_graph
from kosine.bundle.manifest import MAX_MANIFEST_BYTES, Artifact, FileEntry, Manifest
from kosine.bundle.tensorfile import Mapped, TensorFile, map_file
from kosine.errors import (
    BundleError,
    BundleExists,
    BundleNotFound,
    IntegrityError,
    ManifestError,
    UnsafeBundle,
)

__all__ = ["MANIFEST", "Bundle", "Graph", "artifact_of", "sha256_of", "writing_bundle"]

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
MAX_FILES = 256
# Not every system has each of these.
READ = os.O_RDONLY | sum(getattr(os, x, 0) for x in ("O_BINARY", "O_NONBLOCK", "O_NOCTTY"))


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX graph that was judged, and the weights that it names.

    Attributes:
        name: Its path in the bundle.
        data: The ONNX file.
        tensors: Each initializer that lies in the weights file, as a read-only view of it.
    """

    name: str
    data: bytes
    tensors: Mapping[str, NDArray[Any]]


class Bundle:
    """A bundle opened for reading.

    Args:
        path: The bundle's folder. It and the files in it may be links.

    Attributes:
        path: As it was given.
        manifest: What `manifest.json` says.
        sha256: Of `manifest.json`, which lists the sha256 of every other file.

    Raises:
        BundleNotFound, ManifestError, SchemaTooNew, UnsafeBundle, IntegrityError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        raw = self._read_manifest()
        self.manifest = Manifest.from_json(raw)
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self._files = self.manifest.files()
        self._verified: set[str] = set()
        self._check_names()
        self._data = {name: self._map(entry) for name, entry in self._files.items()}

    def data(self, name: str) -> Mapped:
        """The bytes of a listed file, mapped read-only, after their sha256 was found right.

        Raises:
            ManifestError: The file is not listed.
            IntegrityError: It is not what the manifest says.
        """
        entry = self._files.get(name)
        if entry is None:
            raise ManifestError(
                f"the bundle has no {name}",
                limit=f"it lists {', '.join(sorted(self._files))}",
                remedy="export it again with the target that holds it",
            )
        data = self._data[name]
        if name not in self._verified:
            digest = hashlib.sha256(data).hexdigest()
            if digest != entry.sha256:
                raise IntegrityError(
                    f"{name} has sha256 {digest[:12]}…",
                    limit=f"the manifest says {entry.sha256[:12]}…",
                    remedy="copy or export the bundle again",
                )
            self._verified.add(name)
        return data

    def file(self, name: str) -> Path:
        """The path of a listed file, for tools that take nothing else; checked as `data` is.

        What such a tool opens later may be another file by then. Engines get `data`.
        """
        self.data(name)
        return self.path / name

    def has(self, name: str) -> bool:
        return name in self._files

    def verify_all(self) -> None:
        """Check every file's sha256 now, and judge every graph, whatever backend will run."""
        for name in self._files:
            self.data(name)
            if name.endswith(".onnx"):
                self.graph(name)

    def tensors(self, name: str = WEIGHTS) -> TensorFile:
        """A safetensors file of the bundle, memory-mapped."""
        return TensorFile(self.path / name, self.data(name))

    def graph(self, name: str) -> Graph:
        """An ONNX graph, after its bytes and all they point to were judged.

        Raises:
            UnsafeBundle: External data that is not exactly a tensor of the weights file beside
                the graph, or anything else that `scan_graph` refuses.
        """
        data = self.data(name)[: MAX_GRAPH_BYTES + 1]
        externals = scan_graph(data, name)
        places: dict[tuple[int, int], NDArray[Any]] = {}
        if externals:
            weights = self.tensors(str(PurePosixPath(name).parent / WEIGHTS))
            places = {(e.offset, e.nbytes): weights[e.name] for e in weights.entries.values()}
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
        return Graph(name, data, {t.name: places[t.offset, t.length] for t in externals})

    def release(self) -> None:
        """Give back the memory that reading has filled so far; what is read again comes back.

        For after an engine was made: most have copied or rearranged the weights by then.
        """
        for data in self._data.values():
            if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                data.madvise(mmap.MADV_DONTNEED)

    def _read_manifest(self) -> bytes:
        try:
            with _open_regular(self.path / MANIFEST) as file:
                return file.read(MAX_MANIFEST_BYTES + 1)
        except PermissionError as error:
            raise _unreadable(MANIFEST, error) from None
        except (OSError, ValueError, UnsafeBundle):
            raise BundleNotFound(
                f"no bundle at {str(self.path)!r}",
                limit=f"a bundle is a folder with a {MANIFEST}",
                remedy="make one with `kosine export CHECKPOINT BUNDLE`",
            ) from None

    def _check_names(self) -> None:
        if len(self._files) > MAX_FILES:
            raise _unsafe(f"the manifest lists {len(self._files)} files", f"at most {MAX_FILES}")
        for name in self._files:
            _check_path(name)
        if len({name.casefold() for name in self._files}) != len(self._files):
            raise _unsafe("the manifest lists paths that differ in case only", "distinct paths")

    def _map(self, entry: FileEntry) -> Mapped:
        try:
            with _open_regular(self.path / entry.path) as file:
                size = os.fstat(file.fileno()).st_size
                if size == entry.bytes:
                    return map_file(file.fileno())
        except OSError as error:
            raise _unreadable(entry.path, error) from None
        raise IntegrityError(
            f"{entry.path} is {size} bytes long",
            limit=f"the manifest says {entry.bytes}",
            remedy="copy or export the bundle again",
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

    The files are fsynced before they are put in place, so a reader sees the old bundle, the new
    one, or none. An empty folder at `path` is filled; with `force` an existing *bundle* is
    replaced; anything else at `path` is never removed.
    """
    final = Path(path)
    there = final.is_dir() and not final.is_symlink()
    if not (there and _is_empty(final)) and (final.is_symlink() or final.exists()):
        if not force:
            raise BundleExists(
                f"{str(path)!r} exists", remedy="choose another name, or pass --force to replace it"
            )
        if not there or not (final / MANIFEST).is_file():
            raise BundleExists(
                f"{str(path)!r} exists and is not a bundle",
                limit="--force replaces bundles only",
                remedy="choose another name",
            )
    # A folder that is there stays, and its files change places inside it: it may be a mount, its
    # parent may be read-only, and in a container's image the system renames files but no folders.
    place = final if there else final.parent
    token = f"{_mark(final)}{os.getpid()}-{secrets.token_hex(4)}"
    working, retired = place / f"{token}.new", place / f"{token}.old"
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
        try:
            if there:
                _exchange(working, final, retired)
            else:
                working.rename(final)
                _fsync(final.parent)
        except OSError as error:
            raise BundleError(
                f"cannot write {str(final)!r}: {error.strerror}", remedy="choose another name"
            ) from None
    finally:
        shutil.rmtree(working, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
        with suppress(OSError):  # not empty: the bundle is there, or someone else's files are
            for folder in made:
                folder.rmdir()


def _exchange(working: Path, final: Path, retired: Path) -> None:
    """Move what is in `final` to `retired` and what is in `working` to `final`, or nothing.

    File by file, the old manifest first and the new one last: between them there is no bundle.
    """
    old = [name for name in _walk(final) if not name.startswith(_mark(final))]
    moves = [
        *((final / name, retired / name) for name in sorted(old, key=lambda n: n != MANIFEST)),
        *((working / n, final / n) for n in sorted(_walk(working), key=lambda n: n == MANIFEST)),
    ]
    tried: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            tried.append((source, target))
            _move(source, target)
        for folder in {target.parent for _, target in moves if target.is_relative_to(final)}:
            _fsync(folder)
    except BaseException:
        for source, target in reversed(tried):
            if os.path.lexists(target) and not os.path.lexists(source):
                _move(target, source)
        raise


def _mark(final: Path) -> str:
    """How the names begin of the folders in which bundles for `final` are under way."""
    return f".{final.name}."


def _move(source: Path, target: Path) -> None:
    """Rename a file; the folders that it needs are made, those that it leaves empty removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    with suppress(OSError):  # not empty
        source.parent.rmdir()


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


def _open_regular(path: Path) -> BinaryIO:
    """Open the regular file at the end of any links, for reading.

    Raises:
        UnsafeBundle: Something else is there.
    """
    # Asked before it is opened, for opening a device may do something; and again after, for it
    # may have been replaced. Opening a pipe must not wait.
    _check_regular(path, path.stat())
    descriptor = os.open(path, READ)
    try:
        _check_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise _unsafe(f"{path.name[:80]!r} is a folder, a pipe or a device", "regular files")


def _unreadable(name: str, error: OSError) -> BundleError:
    if isinstance(error, PermissionError):
        return BundleError(
            f"{name[:80]} cannot be read: {error.strerror}",
            remedy="give this user the right to read the bundle",
        )
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return IntegrityError(
        f"{name[:80]} is missing" if missing else f"{name[:80]} cannot be read: {error.strerror}",
        remedy="copy or export the bundle again",
    )


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _walk(folder: Path) -> Iterator[str]:
    """Relative path of everything that is not a plain folder; links are not followed."""
    for current, folders, files in os.walk(folder):
        for name in [*files, *(each for each in folders if Path(current, each).is_symlink())]:
            yield Path(current, name).relative_to(folder).as_posix()


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
