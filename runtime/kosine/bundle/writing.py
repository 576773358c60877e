"""Writing a bundle: a folder that appears whole, or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kosine.bundle.folder import MANIFEST
from kosine.bundle.manifest import Artifact, FileEntry
from kosine.errors import BundleError, BundleExists

__all__ = ["artifact_of", "sha256_of", "writing_bundle"]


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
