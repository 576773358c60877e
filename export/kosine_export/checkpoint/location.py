"""Where a checkpoint is: a local folder, or a hub id whose snapshot the hub's own cache holds.

Of a hub id only what the reader opens is fetched, and only that must be there: a cache that
other tools filled serves without a network, too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kosine.errors import CheckpointNotFound, InputError
from kosine_export.checkpoint.adapter import ADAPTER_CONFIG
from kosine_export.checkpoint.heads import HEAD_FILES
from kosine_export.checkpoint.limits import LIMIT_FILES
from kosine_export.checkpoint.modules import module_list
from kosine_export.files.folder import optional_object
from kosine_export.files.weights import PICKLES, SINGLE_FILES, only_a_pickle

__all__ = ["Located", "locate"]

HUB_NAME = r"[A-Za-z0-9][\w.-]*"
HUB_ID = re.compile(f"{HUB_NAME}/{HUB_NAME}")
# The organisation whose models sentence-transformers finds by their short names.
SHORT_NAMES = "sentence-transformers"
HUB_PATTERNS = (
    "*.json",
    "*.txt",
    "*.safetensors",
    # Not read, but refused by name where there is no other tokenizer.
    "*sentencepiece.bpe.model",
    "*spiece.model",
    "*spm.model",
    "*tokenizer.model",
)
HUB_PICKLE_PATTERNS = ("*pytorch_model*.bin", "*adapter_model.bin", *HEAD_FILES.values())
# Other runtimes' copies of the same weights, which a reader of safetensors never opens.
HUB_IGNORED = ("onnx/*", "openvino/*", "coreml/*", "tf_model*", "flax_model*")
ROOT_FILES = {"modules.json", "config_sentence_transformers.json"}
MODULE_FILES = {"config.json", "tokenizer_config.json", ADAPTER_CONFIG, *LIMIT_FILES}
VOCABULARIES = {"vocab.txt", "vocab.json", "merges.txt"}
ADDED_TOKENS = {"special_tokens_map.json", "added_tokens.json"}


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint on this machine: its folder, the name it goes by, its revision if any."""

    folder: Path
    name: str
    revision: str | None


def locate(path: str | Path, *, revision: str | None = None, allow_pickle: bool = False) -> Located:
    """Find a checkpoint folder, fetching it from the hub where `path` is a hub id.

    Raises:
        CheckpointNotFound: No such folder, or the hub could not serve the id.
        InputError: `revision` was given for a local folder, which has none.
    """
    folder = Path(path)
    if folder.is_dir():
        if revision is not None:
            raise InputError(
                f"revision {revision!r} was given for the local folder {folder}",
                limit="revisions belong to hub ids",
                remedy="drop the revision, or give the hub id",
            )
        return Located(folder, folder.resolve().name, None)
    text = str(path)
    if folder.exists():
        raise CheckpointNotFound(
            f"{text} is a file",
            limit="a checkpoint is a folder or a hub id such as organisation/name",
            remedy="give the folder that holds it",
        )
    if not isinstance(path, str) or HUB_ID.fullmatch(text) is None:
        raise CheckpointNotFound(
            f"no checkpoint folder at {text}",
            limit="a checkpoint is a folder or a hub id such as organisation/name",
            remedy="check the path" + suggestion(path),
        )
    return download(text, revision=revision, allow_pickle=allow_pickle)


def suggestion(path: str | Path) -> str:
    """For a short name: the hub id that sentence-transformers would take it for."""
    if not isinstance(path, str) or re.fullmatch(HUB_NAME, path) is None:
        return ""
    return f", or write {SHORT_NAMES}/{path} for the model of that name on the hub"


def download(hub_id: str, *, revision: str | None, allow_pickle: bool) -> Located:
    """The snapshot in the hub's cache, fetched where the hub can be reached."""
    patterns = [*HUB_PATTERNS, *(HUB_PICKLE_PATTERNS if allow_pickle else ())]
    folder = snapshot(hub_id, revision, patterns)
    listed = listing(hub_id, folder)
    missing = sorted(
        name
        for name in needed_files(hub_id, folder, listed, allow_pickle)
        if not (folder / name).is_file()
    )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointNotFound(
            f"the hub cannot be reached, and the cache holds {hub_id} without {missing[0]}{more}",
            limit="its configs, tokenizer and weights are needed",
            remedy="export it once with a network, or download it elsewhere and give the folder",
        )
    return Located(folder, hub_id, folder.name)


def snapshot(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder in the hub's cache; without a network it may lack files."""
    from huggingface_hub import snapshot_download

    def found(*, offline: bool) -> str:
        return snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=list(HUB_IGNORED),
            local_files_only=offline,
        )

    try:
        try:
            return Path(found(offline=False))
        except Exception as unreached:
            if getattr(unreached, "response", None) is not None:  # the hub has answered
                raise
            # The hub cannot be reached, and a file that matches the patterns is not cached, or a
            # commit is asked for whose files the cache does not list. The second answer tells the
            # folder all the same: whether anyone needs the file is seen by the caller.
            # (IncompleteSnapshotError, since huggingface_hub 1.22.)
            try:
                return Path(found(offline=True))
            except FileNotFoundError as error:
                if not hasattr(error, "snapshot_path"):
                    raise
                return Path(error.snapshot_path)
    except Exception as error:
        wanted = hub_id if revision is None else f"{hub_id} at revision {revision}"
        raise CheckpointNotFound(
            f"no folder {hub_id}, and the hub did not serve {wanted} ({type(error).__name__})",
            limit="a checkpoint is a folder or a hub id that can be reached",
            remedy="check the id and the network, or download it elsewhere and give the folder",
        ) from error


def listing(hub_id: str, folder: Path) -> set[str]:
    """The names of the snapshot's files, and of those that the hub has beside them if known."""
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # Written by huggingface_hub since 1.22. Without it the snapshot is all that is known, as it
    # is to the hub's own package.
    with contextlib.suppress(Exception):
        from huggingface_hub import get_cached_repo_tree

        here |= {file.path for file in get_cached_repo_tree(hub_id, revision=folder.name)}
    return here


def needed_files(hub_id: str, folder: Path, listed: set[str], allow_pickle: bool) -> Iterator[str]:
    """The listed files that the reader opens.

    Raises:
        UnsupportedCheckpoint: Of some weights there is only a pickle, and `allow_pickle` is False.
    """
    yield from ROOT_FILES & listed
    modules = [("Transformer", "", "")]
    if (folder / "modules.json").is_file():
        modules = module_list(folder / "modules.json")
    for kind, path, _ in modules:
        at = f"{path.strip('/')}/" if path.strip("/") else ""
        names = {name.removeprefix(at) for name in listed if name.startswith(at)}
        wanted = MODULE_FILES & names
        wanted |= {"tokenizer.json"} & names or VOCABULARIES & names
        if "added_tokens_decoder" not in optional_object(folder / at / "tokenizer_config.json"):
            wanted |= ADDED_TOKENS & names
        yield from (at + name for name in wanted)
        if kind not in ("Transformer", "Dense"):
            continue
        stem = "adapter_model" if ADAPTER_CONFIG in names else "model"
        files = [SINGLE_FILES[stem], PICKLES[stem]] if allow_pickle else [SINGLE_FILES[stem]]
        weights = [each for name in files for each in (name, f"{name}.index.json") if each in names]
        if not weights and PICKLES[stem] in names:
            raise only_a_pickle(f"{hub_id}/{at}".rstrip("/"), stem)
        # Whichever is there will do; only where none is there is the first one missing.
        if not any((folder / at / name).is_file() for name in weights):
            yield from (at + name for name in weights[:1])
