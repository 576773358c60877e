"""The modules around the transformer, in every generation of sentence-transformers' files.

`modules.json` lists them with their class and folder; each folder has a `config.json`. The
order that kosine computes is Transformer, Pooling, any number of Dense, Normalize; Dropout does
nothing outside of training. Whatever else a checkpoint asks for is refused by name. A folder
without `modules.json` is a plain transformers checkpoint.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine.spec import Dense, EncoderSpec
from kosine_export.checkpoint.dense import read_dense, require_sentence_embedding
from kosine_export.checkpoint.pooling import StatedPooling, read_pooling
from kosine_export.files.folder import optional_object, read_json, require_relative

__all__ = ["Modules", "module_list", "read_modules", "require_widths"]

SUPPORTED_MODULES = "Transformer, Pooling, Dense and Normalize are supported, in this order"


@dataclass(frozen=True, slots=True)
class Modules:
    """What follows the transformer, and where the transformer's own files are.

    `dense` pairs each Dense module with the folder that holds its weights.
    `generation` says who wrote the files: "1.x", "2.x-5.3", "5.4+", or None for plain
    transformers.
    """

    transformer: Path
    pooling: StatedPooling
    normalize: bool
    dense: tuple[tuple[Dense, Path], ...]
    generation: str | None


def read_modules(folder: Path) -> Modules:
    """Read `modules.json` and the folders it names.

    Raises:
        UnsupportedCheckpoint: A module, an order or a setting that kosine does not compute.
        CorruptCheckpoint: Damaged files, or paths that leave the checkpoint.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return Modules(folder, StatedPooling(None, None, True), False, (), None)
    entries = without_dropout(module_list(path))
    kinds = [kind for kind, _, _ in entries]
    if "SentenceTransformer" in kinds:
        raise UnsupportedCheckpoint(
            "modules.json lists a SentenceTransformer inside a SentenceTransformer",
            limit=SUPPORTED_MODULES,
            remedy="save it once with the inner one's modules in its place: "
            "SentenceTransformer(modules=[*inner, ...]).save(...)",
        )
    shape = [kind for kind, _ in itertools.groupby(kinds)]
    doubled = kinds.count("Transformer") > 1 or kinds.count("Pooling") > 1
    if doubled or shape not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Dense"],
        ["Transformer", "Pooling", "Normalize"],
        ["Transformer", "Pooling", "Dense", "Normalize"],
    ):
        raise UnsupportedCheckpoint(
            f"modules.json lists {', '.join(kinds) or 'no module'}",
            limit=SUPPORTED_MODULES,
            remedy="use a checkpoint with those modules",
        )
    dense = tuple((read_dense(folder / p), folder / p) for kind, p, _ in entries if kind == "Dense")
    for kind, name, _ in entries:
        if kind == "Normalize":
            require_sentence_embedding(optional_object(folder / name / "config.json"), "Normalize")
    return Modules(
        transformer=folder / entries[0][1],
        pooling=read_pooling(folder / entries[1][1]),
        normalize="Normalize" in kinds,
        dense=dense,
        generation=generation_of(entries),
    )


def without_dropout(entries: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The entries but for Dropout on sentence vectors, which only training applies."""
    kinds = [kind for kind, _, _ in entries]
    first = kinds.index("Pooling") if "Pooling" in kinds else len(kinds)
    return [entry for i, entry in enumerate(entries) if i < first or entry[0] != "Dropout"]


def module_list(path: Path) -> list[tuple[str, str, str]]:
    """(class name, folder, dotted type) of each entry, in order."""
    value = read_json(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CorruptCheckpoint(f"{path.name} does not hold a list of modules")
    entries = []
    for item in value:
        dotted = item.get("type")
        if not isinstance(dotted, str):
            raise CorruptCheckpoint(f"{path.name}: a module has the type {dotted!r}")
        if not dotted.startswith("sentence_transformers."):
            raise UnsupportedCheckpoint(
                f"module {dotted} is Python code outside sentence-transformers",
                limit=SUPPORTED_MODULES,
                remedy="code from checkpoints is never run; use one with those modules",
            )
        entries.append(
            (dotted.rpartition(".")[2], require_relative(item.get("path"), file=path.name), dotted)
        )
    return entries


def generation_of(entries: list[tuple[str, str, str]]) -> str:
    if not entries[0][2].startswith("sentence_transformers.models."):
        return "5.4+"
    return "1.x" if entries[0][1] else "2.x-5.3"


def require_widths(spec: EncoderSpec, modules: Modules) -> None:
    """Each module must take vectors of the width that the one before it gives."""
    width = spec.hidden_size
    if modules.pooling.width not in (None, width):
        raise CorruptCheckpoint(
            f"the pooling config states width {modules.pooling.width}",
            limit=f"the transformer gives {width}",
        )
    width *= len(modules.pooling.modes or ("mean",))
    for dense, folder in modules.dense:
        if dense.in_features != width:
            raise CorruptCheckpoint(
                f"{folder.name} takes {dense.in_features} features",
                limit=f"the module before it gives {width}",
            )
        width = dense.out_features
