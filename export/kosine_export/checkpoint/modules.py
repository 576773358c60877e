"""The modules around the transformer, in every generation of sentence-transformers' files.

`modules.json` lists them with their class and folder; each folder has a `config.json`. The
order that kosine computes is Transformer, Pooling, any number of Dense, Normalize; Dropout does
nothing outside of training. Whatever else a checkpoint asks for is refused by name. A folder
without `modules.json` is a plain transformers checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.checkpoint.pooling import StatedPooling, read_pooling
from kosine_export.files.folder import (
    optional_object,
    read_json,
    read_object,
    require_relative,
    without_nulls,
)
from kosine_export.spec import DenseSpec

__all__ = ["LIMIT_FILES", "Limits", "Modules", "module_list", "read_limits", "read_modules"]

SUPPORTED_MODULES = "Transformer, Pooling, Dense and Normalize are supported, in this order"
LIMIT_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
Activation = Literal["identity", "tanh", "relu", "gelu", "sigmoid"]
MODEL_ARGUMENTS = frozenset({"dtype", "torch_dtype", "attn_implementation"})


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
    dense: tuple[tuple[DenseSpec, Path], ...]
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


ACTIVATIONS: Mapping[str, Activation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
}
TORCH_MODULES = ("torch.nn.", "torch.nn.modules.activation.", "torch.nn.modules.linear.")


def read_dense(folder: Path) -> DenseSpec:
    """A Dense module's config; its weights are read elsewhere."""
    path = folder / "config.json"
    config = without_nulls(read_object(path))
    require_sentence_embedding(config, "Dense")
    sizes = {}
    for key in ("in_features", "out_features"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CorruptCheckpoint(f"{folder.name}/config.json: {key} is {value!r}")
        sizes[key] = value
    bias, residual = config.get("bias", True), config.get("use_residual", False)
    if not isinstance(bias, bool) or not isinstance(residual, bool):
        raise CorruptCheckpoint(
            f"{folder.name}/config.json: bias is {bias!r} and use_residual is {residual!r}"
        )
    if residual and sizes["in_features"] != sizes["out_features"]:
        raise UnsupportedCheckpoint(
            f"a Dense from {sizes['in_features']} to {sizes['out_features']} with use_residual",
            limit="a residual is supported where both sizes are equal",
            remedy="use a checkpoint without it",
        )
    dotted = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    prefix, _, name = dotted.rpartition(".")
    if f"{prefix}." not in TORCH_MODULES or name not in ACTIVATIONS:
        raise UnsupportedCheckpoint(
            f"Dense activation {dotted!r}",
            limit=f"torch's {', '.join(ACTIVATIONS)} are supported",
            remedy="use a checkpoint with one of those",
        )
    return DenseSpec(
        in_features=sizes["in_features"],
        out_features=sizes["out_features"],
        bias=bias,
        activation=ACTIVATIONS[name],
        use_residual=residual,
    )


def require_sentence_embedding(config: Mapping[str, Any], module: str) -> None:
    """Refuse a module that works on tokens, or writes its result elsewhere."""
    for key in ("module_input_name", "module_output_name"):
        name = config.get(key)
        if name not in (None, "sentence_embedding"):
            raise UnsupportedCheckpoint(
                f"{module} with {key} {name!r}",
                limit="modules after the pooling work on sentence_embedding",
                remedy="use a checkpoint that does",
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """What the Transformer module's own config says about its input.

    `max_seq_length` is None where only the tokenizer's config states a length.
    """

    max_seq_length: int | None
    do_lower_case: bool


def read_limits(folder: Path) -> Limits | None:
    """Read `sentence_bert_config.json` or one of its older names; None where there is none.

    Raises:
        UnsupportedCheckpoint: It asks for another task, modality, tokenizer or length rule.
    """
    for name in LIMIT_FILES:
        config = without_nulls(optional_object(folder / name))
        if config:
            return limits_of(config, name)
    return None


def limits_of(config: dict[str, Any], file: str) -> Limits:
    refuse_other_tasks(config, file)
    length = config.get("max_seq_length")
    for key in ("processor_kwargs", "tokenizer_args"):
        length = (config.get(key) or {}).get("model_max_length", length)
    if length is not None and (
        isinstance(length, bool) or not isinstance(length, int) or length < 3
    ):
        raise CorruptCheckpoint(
            f"{file}: the maximum length is {length!r}", limit="an integer from 3 is needed"
        )
    lower = config.get("do_lower_case", False)
    if not isinstance(lower, bool):
        raise CorruptCheckpoint(f"{file}: do_lower_case is {lower!r}")
    return Limits(length, lower)


def refuse_other_tasks(config: Mapping[str, Any], file: str) -> None:
    """Each setting that would change what is computed, by name."""
    plain: dict[str, object] = {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "last_hidden_state"}
        },
    }
    known = {"max_seq_length", "do_lower_case", "unpad_inputs", *plain}
    for key, expected in plain.items():
        if config.get(key, expected) != expected:
            raise UnsupportedCheckpoint(
                f"{file}: {key} is {config[key]!r}",
                limit=f"{expected!r} is supported",
                remedy="use a text encoder checkpoint",
            )
    harmless = {
        "model_kwargs": MODEL_ARGUMENTS,
        "model_args": MODEL_ARGUMENTS,
        "config_kwargs": frozenset[str](),
        "config_args": frozenset[str](),
        "processor_kwargs": frozenset({"model_max_length"}),
        "tokenizer_args": frozenset({"model_max_length"}),
    }
    for key, value in config.items():
        if key in known or not value:
            continue
        if key in harmless and isinstance(value, dict):
            surplus = sorted(set(value) - harmless[key] - {"trust_remote_code"})
            if not surplus:
                continue
            key = f"{key}.{surplus[0]}"
        raise UnsupportedCheckpoint(
            f"{file}: {key} is set",
            limit=f"{', '.join(sorted(known))} are read",
            remedy="use a checkpoint without it",
        )
