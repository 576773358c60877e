"""`config_sentence_transformers.json`: the kind of model, its prompts and its similarity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from kosine.bundle.manifest import Similarity
from kosine.errors import CorruptCheckpoint, InputError, UnsupportedCheckpoint
from kosine_export.checkpoint.location import Located
from kosine_export.files.folder import optional_object, without_nulls

__all__ = ["read_prompts", "read_root", "read_similarity", "require_sentence_transformer"]

SIMILARITIES = get_args(Similarity)
ROOT_CONFIG = "config_sentence_transformers.json"


def require_sentence_transformer(folder: Path) -> None:
    """Refuse what sentence-transformers saved as another kind of model, by its name."""
    kind = without_nulls(optional_object(folder / ROOT_CONFIG)).get("model_type")
    if kind not in (None, "SentenceTransformer") and (folder / "modules.json").is_file():
        raise UnsupportedCheckpoint(
            f"{ROOT_CONFIG}: model_type is {kind!r}",
            limit="SentenceTransformer models are supported",
            remedy="use a SentenceTransformer checkpoint",
        )


def read_root(root: Located) -> dict[str, Any]:
    """The file that holds versions, prompts and similarity; empty where there is none."""
    return without_nulls(optional_object(root.folder / ROOT_CONFIG))


def read_prompts(
    stated: Mapping[str, Any], added: Mapping[str, str] | None
) -> tuple[dict[str, str], str | None]:
    own = stated.get("prompts", {})
    if not isinstance(own, dict) or not all(
        text is None or isinstance(text, str) for text in own.values()
    ):
        raise CorruptCheckpoint(f"{ROOT_CONFIG}: prompts are not texts by name")
    named = {name: text or "" for name, text in own.items()}
    for name, text in (added or {}).items():
        if not name or not isinstance(text, str):
            raise InputError(
                f"prompt {name!r} is a {type(text).__name__}",
                limit="prompts are texts by name",
                remedy="pass {name: text}",
            )
        named[name] = text
    default = stated.get("default_prompt_name")
    if default is not None and default not in named:
        # sentence-transformers always has these two, empty unless stated.
        if default not in ("query", "document"):
            raise CorruptCheckpoint(
                f"{ROOT_CONFIG}: default_prompt_name {default!r} is not among the prompts",
                limit=f"the prompts are {', '.join(sorted(named)) or 'none'}",
            )
        named[default] = ""
    return named, default


def read_similarity(stated: Mapping[str, Any]) -> Similarity:
    if "truncate_dim" in stated:
        raise UnsupportedCheckpoint(
            f"{ROOT_CONFIG}: truncate_dim is {stated['truncate_dim']!r}",
            limit="SentenceTransformer models of their full width are supported",
            remedy="remove the entry, and truncate when encoding",
        )
    similarity = stated.get("similarity_fn_name", "cosine")
    if similarity not in SIMILARITIES:
        raise UnsupportedCheckpoint(
            f"{ROOT_CONFIG}: similarity_fn_name {similarity!r}",
            limit=f"{', '.join(SIMILARITIES)} are supported",
            remedy="state one of those",
        )
    return cast(Similarity, similarity)
