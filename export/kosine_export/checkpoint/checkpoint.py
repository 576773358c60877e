"""Reads a trained checkpoint: spec, canonical tensors, tokenizer, prompts, limits.

No PyTorch and no transformers are needed for safetensors weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.errors import CorruptCheckpoint, InputError, UnsupportedCheckpoint
from kosine_export.checkpoint.adapter import ADAPTER_CONFIG, Adapter, read_adapter
from kosine_export.checkpoint.location import Located, locate
from kosine_export.checkpoint.modules import Limits, Modules, read_limits, read_modules
from kosine_export.checkpoint.pooling import refuse_guessing, require_known, resolve_pooling
from kosine_export.families.config import Architecture, read_architecture
from kosine_export.families.tensors import canonical_tensors, encoder_prefix, layers_held
from kosine_export.files.folder import optional_object, read_object, without_nulls
from kosine_export.files.weights import Float32, Weights, open_weights
from kosine_export.spec import DenseSpec, EncoderSpec
from kosine_export.tokenizer.reader import TokenizerFiles, has_tokenizer, read_tokenizer

__all__ = ["Checkpoint", "read_checkpoint"]

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
MIN_TOKENS = 3
ROOT_CONFIG = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read, ready to become a bundle.

    Attributes:
        spec: Shape and semantics.
        tensors: float32, C-contiguous, by the names and layouts of `spec.py`.
        tokenizer_json: A tokenizers JSON without truncation or padding, whose post-processor
            adds CLS and SEP.
        special_ids: cls, sep and pad, and unk and mask where they exist.
        prompts: Text by name.
        default_prompt_name: The prompt for calls that name none, or None.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        do_lower_case: Whether texts are lower-cased before anything else, as the Transformer
            module's setting of that name asks; `tokenizer_json` does it.
        source: name, revision, format, versions, and sha256 by weight file; the same under
            "base" for an adapter; and `TokenizerFiles.source` under "tokenizer".
        pooling_stated: Whether the checkpoint states its pooling itself.
        config: The transformers config.json of the model that was read.
        notes: What a user should know about how the files were understood.
    """

    spec: EncoderSpec
    tensors: dict[str, NDArray[np.float32]]
    tokenizer_json: str
    special_ids: dict[str, int]
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: str
    do_lower_case: bool
    source: dict[str, Any]
    pooling_stated: bool
    config: dict[str, Any]
    notes: tuple[str, ...]


def read_checkpoint(
    path: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    prompts: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
    pooling: str | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Read a sentence-transformers, transformers or LoRA adapter checkpoint.

    Args:
        path: A folder, or a hub id such as organisation/name.
        base: An adapter's base model, a folder or a hub id.
        revision: Of the hub id.
        prompts: Added to the checkpoint's own, replacing those of the same name.
        max_tokens: Overrides the checkpoint's maximum length; special tokens count.
        pooling: "mean", "cls" or "max", for a checkpoint that states none.
        allow_pickle: Read `pytorch_model.bin`, with `torch.load(weights_only=True)`.

    Raises:
        CheckpointNotFound: No such folder or hub id.
        CorruptCheckpoint: Damaged or contradictory files.
        UnsupportedCheckpoint: Something that kosine does not compute, by name.
        InputError: `base`, `revision`, `prompts`, `max_tokens` or `pooling` cannot be used.
        MissingExtra: A pickle is to be read and PyTorch is not installed.
    """
    require_known(pooling)
    located = locate(path, revision=revision, allow_pickle=allow_pickle)
    require_sentence_transformer(located.folder)
    own = read_modules(located.folder)
    adapter, base_located = None, None
    if (own.transformer / ADAPTER_CONFIG).is_file():
        adapter = read_adapter(own.transformer, allow_pickle=allow_pickle)
        base_located = locate_base(adapter, base, allow_pickle)
    elif base is not None:
        raise InputError(
            f"a base was given, and {located.name} is no adapter",
            limit=f"adapters hold {ADAPTER_CONFIG}",
            remedy="drop the base",
        )
    return assemble(located, own, adapter, base_located, prompts, max_tokens, pooling, allow_pickle)


def locate_base(adapter: Adapter, base: str | Path | None, allow_pickle: bool) -> Located:
    if base is None:
        raise InputError(
            f"an adapter without its base, {adapter.base}",
            limit="an adapter holds changes to a base model, not the model",
            remedy="pass --base DIR with the folder (or hub id) of the base",
        )
    # The adapter's config pins the hub revision of the base that it names, and of no other.
    pinned = adapter.config.get("revision") if base == adapter.base else None
    revision = pinned if isinstance(pinned, str) and not Path(base).is_dir() else None
    return locate(base, revision=revision, allow_pickle=allow_pickle)


def assemble(
    located: Located,
    own: Modules,
    adapter: Adapter | None,
    base: Located | None,
    prompts: Mapping[str, str] | None,
    max_tokens: int | None,
    pooling: str | None,
    allow_pickle: bool,
) -> Checkpoint:
    # An adapter's own files win; what it leaves out is the base's.
    roots = [located] if base is None else [located, base]
    layers = [own] if base is None else [own, read_modules(base.folder)]
    modules = next((layer for layer in layers if layer.generation is not None), own)
    folders = [layer.transformer for layer in layers]
    transformer = folders[-1]
    config = (
        read_object(transformer / "config.json")
        if (transformer / "config.json").is_file()
        else None
    )
    if config is None:
        raise CorruptCheckpoint(
            f"no config.json in {transformer.name or transformer}",
            limit="a transformers config is needed",
            remedy="check that the path is a checkpoint and its download is complete",
        )
    architecture = read_architecture(config)
    if modules.generation is None and pooling is None:
        for layer in layers:
            refuse_guessing(layer.transformer, config)
    mode, pooling_notes = resolve_pooling(
        modules.pooling.mode, pooling, has_modules=modules.generation is not None
    )
    weights = open_weights(transformer, allow_pickle=allow_pickle)
    shapes = weights.shapes()
    if adapter is not None:
        prefix = encoder_prefix(shapes, architecture.family)
        adapter.require_base(shapes, prefix, architecture.num_layers)
    tensors = canonical_tensors(
        architecture, weights, patch=None if adapter is None else adapter.merge
    )
    opened = {"": weights}
    for index, (dense, folder) in enumerate(modules.dense):
        opened[f"{folder.name}/"] = dense_weights = open_weights(folder, allow_pickle=allow_pickle)
        tensors.update(dense_tensors(index, dense, dense_weights, folder.name))
    require_widths(architecture, modules)
    limits, stated = Limits(None, False), dict[str, Any]()
    if modules.generation is not None:  # sentence-transformers reads them with modules.json alone
        limits = next(filter(None, map(read_limits, folders)), limits)
        stated = next(filter(None, map(read_root, roots)), stated)
    tokenizer = read_tokenizer(
        next(filter(has_tokenizer, folders), own.transformer),
        family=architecture.family,
        config=config,
        lower_text=limits.do_lower_case,
    )
    unused = beyond_vocabulary(architecture, tokenizer)
    rows = architecture.vocab_size
    special_ids = {name: i for name, i in tokenizer.special_ids.items() if i < rows}
    if architecture.position_rule == "roberta" or "pad" not in special_ids:
        special_ids["pad"] = architecture.pad_id  # RoBERTa counts positions from the model's own
    length, notes = resolve_max_tokens(architecture, limits, tokenizer, max_tokens)
    named, default = read_prompts(stated, prompts)
    if adapter is not None:
        opened["adapter"] = adapter.weights
    pickled = any(one.pickled for one in opened.values())
    return Checkpoint(
        spec=EncoderSpec(
            family=architecture.family,
            vocab_size=architecture.vocab_size,
            hidden_size=architecture.hidden_size,
            embedding_size=architecture.embedding_size,
            num_layers=architecture.num_layers,
            num_heads=architecture.num_heads,
            intermediate_size=architecture.intermediate_size,
            max_position_embeddings=architecture.max_position_embeddings,
            type_vocab_size=architecture.type_vocab_size,
            layer_norm_eps=architecture.layer_norm_eps,
            position_rule=architecture.position_rule,
            pad_id=architecture.pad_id,
            max_tokens=length,
            pooling=mode,
            include_prompt=modules.pooling.include_prompt,
            normalize=modules.normalize,
            dense=tuple(dense for dense, _ in modules.dense),
        ),
        tensors=tensors,
        tokenizer_json=tokenizer.json,
        special_ids=special_ids,
        prompts=named,
        default_prompt_name=default,
        similarity=read_similarity(stated),
        do_lower_case=tokenizer.lowers,
        source={
            **source_of(located, own, opened, base, stated),
            "tokenizer": tokenizer.source,
        },
        pooling_stated=modules.pooling.mode is not None,
        config=config,
        notes=(
            *pooling_notes,
            *depth_notes(architecture, layers_held(shapes, architecture.family)),
            *tokenizer.notes,
            *unused,
            *notes,
            *(("weights came from a pickle, read with weights_only=True",) if pickled else ()),
        ),
    )


def depth_notes(architecture: Architecture, held: int) -> tuple[str, ...]:
    if held <= architecture.num_layers:
        return ()
    return (
        f"the weights hold {held} layers: the first {architecture.num_layers} are taken, as "
        "config.json states",
    )


def dense_tensors(index: int, dense: DenseSpec, weights: Weights, name: str) -> dict[str, Float32]:
    """A Dense module's weights, (in, out) and (out,)."""
    expected: dict[str, tuple[int, ...]] = {
        "linear.weight": (dense.out_features, dense.in_features)
    }
    if dense.bias:
        expected["linear.bias"] = (dense.out_features,)
    if weights.shapes() != expected:
        raise CorruptCheckpoint(
            f"{name} holds {dict(weights.shapes())}",
            limit=f"its config asks for {expected}",
            remedy="check that the Dense module's config and weights belong together",
        )
    tensors = {f"dense.{index}.weight": np.ascontiguousarray(weights.read("linear.weight").T)}
    if dense.bias:
        tensors[f"dense.{index}.bias"] = weights.read("linear.bias")
    return tensors


def require_widths(architecture: Architecture, modules: Modules) -> None:
    """Each module must take vectors of the width that the one before it gives."""
    width = architecture.hidden_size
    if modules.pooling.width not in (None, width):
        raise CorruptCheckpoint(
            f"the pooling config states width {modules.pooling.width}",
            limit=f"the transformer gives {width}",
        )
    for dense, folder in modules.dense:
        if dense.in_features != width:
            raise CorruptCheckpoint(
                f"{folder.name} takes {dense.in_features} features",
                limit=f"the module before it gives {width}",
            )
        width = dense.out_features


def read_root(root: Located) -> dict[str, Any]:
    """The file that holds versions, prompts and similarity; empty where there is none."""
    return without_nulls(optional_object(root.folder / ROOT_CONFIG))


def beyond_vocabulary(architecture: Architecture, tokenizer: TokenizerFiles) -> tuple[str, ...]:
    """A note where the tokenizer has ids that the model has no embedding for.

    Such ids are often left over and never used; a text that has one is refused at run time.
    """
    rows = architecture.vocab_size
    if max(tokenizer.special_ids["cls"], tokenizer.special_ids["sep"]) >= rows:
        raise CorruptCheckpoint(
            f"cls and sep have ids {tokenizer.special_ids['cls']} and "
            f"{tokenizer.special_ids['sep']}",
            limit=f"there are {rows} word embeddings",
            remedy="check that the tokenizer and the weights belong together",
        )
    if tokenizer.size <= rows:
        return ()
    return (
        f"the tokenizer has ids up to {tokenizer.size - 1} and the model {rows} word embeddings: "
        "a text that needs one of the others is refused when it is encoded",
    )


def resolve_max_tokens(
    architecture: Architecture, limits: Limits, tokenizer: TokenizerFiles, override: int | None
) -> tuple[int, tuple[str, ...]]:
    """The maximum length as sentence-transformers finds it, kept inside the position rows."""
    usable = architecture.usable_positions
    if override is not None:
        if isinstance(override, bool) or not MIN_TOKENS <= override <= usable:
            raise InputError(
                f"max_tokens {override!r}",
                limit=f"from {MIN_TOKENS} to {usable}, the usable position rows",
                remedy="choose one in between",
            )
        return override, (f"max_tokens {override} was asked for",)
    stated = limits.max_seq_length
    if stated is None:
        stated = tokenizer.model_max_length or architecture.max_position_embeddings
    if stated < MIN_TOKENS:
        raise CorruptCheckpoint(
            f"the maximum length is {stated}", limit=f"at least {MIN_TOKENS} is needed"
        )
    if stated <= usable:
        return stated, ()
    return usable, (f"position rows limit max_tokens to {usable}, {stated} was stated",)


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
                f"prompt {name!r} is a {type(text).__name__}", limit="prompts are texts by name"
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


def require_sentence_transformer(folder: Path) -> None:
    """Refuse what sentence-transformers saved as another kind of model, by its name."""
    kind = without_nulls(optional_object(folder / ROOT_CONFIG)).get("model_type")
    if kind not in (None, "SentenceTransformer") and (folder / "modules.json").is_file():
        raise UnsupportedCheckpoint(
            f"{ROOT_CONFIG}: model_type is {kind!r}",
            limit="SentenceTransformer models are supported",
            remedy="use a SentenceTransformer checkpoint",
        )


def read_similarity(stated: Mapping[str, Any]) -> str:
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
    return str(similarity)


def source_of(
    located: Located,
    own: Modules,
    opened: Mapping[str, Weights],
    base: Located | None,
    stated: Mapping[str, Any],
) -> dict[str, Any]:
    """Where it all came from. `opened`: weights by the folder they were in, and "adapter"."""
    form = "transformers" if own.generation is None else f"sentence-transformers {own.generation}"
    versions = stated.get("__version__")
    model = {
        f"{folder}{file}": digest
        for folder, weights in opened.items()
        if folder != "adapter"
        for file, digest in weights.files.items()
    }
    source: dict[str, Any] = {
        "name": located.name,
        "revision": located.revision,
        "format": form if base is None else f"{form} with a LoRA adapter",
        "versions": dict(versions) if isinstance(versions, dict) else {},
        "sha256": model if base is None else dict(opened["adapter"].files),
    }
    if base is not None:
        source["base"] = {"name": base.name, "revision": base.revision, "sha256": model}
    return source
