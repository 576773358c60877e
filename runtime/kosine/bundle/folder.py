"""Bundles on disk: judged before anything in them is used. `writing` makes them.

A bundle is a folder `NAME.kosine/` with a `manifest.json` that lists every other file with its
size and sha256. Opening one opens each of those files, once, and maps it into memory: a regular
file of the right size, at the end of any links. Its sha256 is that of the mapping, taken when it
is first read, and the mapping is what every reader gets, in forked children too. So a bundle
that is replaced meanwhile changes nothing for those who have the old one open. (Writing into the
files of an open bundle does: replace them instead.) Files that are not listed are never opened.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from numpy.typing import NDArray

from kosine.bundle.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest
from kosine.bundle.tensorfile import Mapped, TensorFile, map_file
from kosine.errors import (
    BundleError,
    BundleNotFound,
    InputError,
    IntegrityError,
    ManifestError,
    UnsafeBundle,
)

__all__ = ["MANIFEST", "Bundle", "Graph"]

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
        InputError: `path` is no path.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self.path = Path(path)
        except TypeError:
            raise InputError(
                f"the bundle is given as a {type(path).__name__}",
                limit="a str or a path",
                remedy="name the bundle's folder",
            ) from None
        raw = self._read_manifest()
        self.manifest = Manifest.from_json(raw)
        self.sha256 = _sha256(raw)
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
            digest = _sha256(data)
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
        from kosine.bundle.graphscan import MAX_GRAPH_BYTES, scan_graph  # ONNX Runtime's alone

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


def _unsafe(problem: str, limit: str) -> UnsafeBundle:
    return UnsafeBundle(problem, limit=limit, remedy="use a bundle written by `kosine export`")


def _sha256(data: bytes | mmap.mmap) -> str:
    from hashlib import sha256  # with OpenSSL; `import kosine` does without

    return sha256(data).hexdigest()
