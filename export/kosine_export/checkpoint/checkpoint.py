"""Reads a trained checkpoint: spec, canonical tensors, tokenizer, prompts, limits.

No PyTorch and no transformers are needed for safetensors weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.bundle.manifest import Similarity
from kosine.errors import CorruptCheckpoint, InputError
from kosine.spec import EncoderSpec, Pooling
from kosine_export.checkpoint.adapter import ADAPTER_CONFIG, Adapter, read_adapter
from kosine_export.checkpoint.dense import dense_tensors
from kosine_export.checkpoint.heads import ReadHeads, read_heads
from kosine_export.checkpoint.limits import Limits, read_limits, resolve_max_tokens
from kosine_export.checkpoint.location import Located, locate
from kosine_export.checkpoint.modules import Modules, read_modules, require_widths
from kosine_export.checkpoint.pooling import refuse_guessing, require_known, resolve_pooling
from kosine_export.checkpoint.settings import (
    read_prompts,
    read_root,
    read_similarity,
    require_sentence_transformer,
)
from kosine_export.families.config import read_config
from kosine_export.families.tensors import canonical_tensors, encoder_prefix, layers_held
from kosine_export.files.folder import read_object
from kosine_export.files.weights import Weights, open_weights
from kosine_export.tokenizer.reader import TokenizerFiles, has_tokenizer, read_tokenizer

__all__ = ["Checkpoint", "read_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read, ready to become a bundle.

    Attributes:
        spec: Shape and semantics.
        max_tokens: Most tokens of a text, special tokens included.
        tensors: float32, C-contiguous, by the names and layouts of `kosine.spec`.
        tokenizer_json: A tokenizers JSON without truncation or padding, whose post-processor
            adds CLS and SEP.
        special_ids: sep and pad, and cls, unk and mask where they exist.
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
    max_tokens: int
    tensors: dict[str, NDArray[np.float32]]
    tokenizer_json: str
    special_ids: dict[str, int]
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: Similarity
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
        pooling: One of `kosine.spec.PoolingMode`, for a checkpoint that states none.
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
    encoder = read_config(config)
    if modules.generation is None and pooling is None:
        for layer in layers:
            refuse_guessing(layer.transformer, config)
    modes, pooling_notes = resolve_pooling(
        modules.pooling.modes, pooling, has_modules=modules.generation is not None
    )
    weights = open_weights(transformer, allow_pickle=allow_pickle)
    shapes = weights.shapes()
    if adapter is not None:
        prefix = encoder_prefix(shapes, encoder.family)
        adapter.require_base(shapes, prefix, len(encoder.layers))
    tensors = canonical_tensors(encoder, weights, patch=None if adapter is None else adapter.merge)
    opened = {"": weights}
    for index, (dense, folder) in enumerate(modules.dense):
        opened[f"{folder.name}/"] = dense_weights = open_weights(folder, allow_pickle=allow_pickle)
        tensors.update(dense_tensors(index, dense, dense_weights, folder.name))
    heads = ReadHeads()
    if adapter is None:  # made for the states of the model that they lie beside
        heads = read_heads(transformer, encoder.hidden_size, allow_pickle=allow_pickle)
    tensors.update(heads.tensors)
    require_widths(encoder, modules)
    limits, stated = Limits(None, False), dict[str, Any]()
    if modules.generation is not None:  # sentence-transformers reads them with modules.json alone
        limits = next(filter(None, map(read_limits, folders)), limits)
        stated = next(filter(None, map(read_root, roots)), stated)
    tokenizer = read_tokenizer(
        next(filter(has_tokenizer, folders), own.transformer),
        family=encoder.family,
        config=config,
        lower_text=limits.do_lower_case,
    )
    rows = encoder.embeddings.vocab_size
    unused = beyond_vocabulary(rows, tokenizer)
    special_ids = {name: i for name, i in tokenizer.special_ids.items() if i < rows}
    positions = encoder.embeddings.positions
    if positions.rule == "roberta" or "pad" not in special_ids:
        special_ids["pad"] = positions.pad_id  # RoBERTa counts positions from the model's own
    length, notes = resolve_max_tokens(positions, limits, tokenizer, max_tokens)
    named, default = read_prompts(stated, prompts)
    if adapter is not None:
        opened["adapter"] = adapter.weights
    pickled = bool(heads.files) or any(one.pickled for one in opened.values())
    return Checkpoint(
        spec=replace(
            encoder,
            pooling=Pooling(modes, modules.pooling.include_prompt),
            dense=tuple(dense for dense, _ in modules.dense),
            normalize=modules.normalize,
            heads=heads.heads,
        ),
        max_tokens=length,
        tensors=tensors,
        tokenizer_json=tokenizer.json,
        special_ids=special_ids,
        prompts=named,
        default_prompt_name=default,
        similarity=read_similarity(stated),
        do_lower_case=tokenizer.lowers,
        source={
            **source_of(located, own, opened, base, stated, heads.files),
            "tokenizer": tokenizer.source,
        },
        pooling_stated=modules.pooling.modes is not None,
        config=config,
        notes=(
            *pooling_notes,
            *depth_notes(len(encoder.layers), layers_held(shapes, encoder.family)),
            *tokenizer.notes,
            *unused,
            *notes,
            *heads.notes,
            *(("weights came from a pickle, read with weights_only=True",) if pickled else ()),
        ),
    )


def depth_notes(asked: int, held: int) -> tuple[str, ...]:
    if held <= asked:
        return ()
    return (f"the weights hold {held} layers: the first {asked} are taken, as config.json states",)


def beyond_vocabulary(rows: int, tokenizer: TokenizerFiles) -> tuple[str, ...]:
    """A note where the tokenizer has ids that the model has no embedding for.

    Such ids are often left over and never used; a text that has one is refused at run time.
    """
    frame = {name: i for name, i in tokenizer.special_ids.items() if name in ("cls", "sep")}
    if max(frame.values()) >= rows:
        raise CorruptCheckpoint(
            f"{' and '.join(frame)} have ids {' and '.join(map(str, frame.values()))}",
            limit=f"there are {rows} word embeddings",
            remedy="check that the tokenizer and the weights belong together",
        )
    if tokenizer.size <= rows:
        return ()
    return (
        f"the tokenizer has ids up to {tokenizer.size - 1} and the model {rows} word embeddings: "
        "a text that needs one of the others is refused when it is encoded",
    )


def source_of(
    located: Located,
    own: Modules,
    opened: Mapping[str, Weights],
    base: Located | None,
    stated: Mapping[str, Any],
    beside: Mapping[str, str],
) -> dict[str, Any]:
    """Where it all came from. `opened`: weights by the folder they were in, and "adapter";
    `beside`: sha256 of files beside the weights.
    """
    form = "transformers" if own.generation is None else f"sentence-transformers {own.generation}"
    versions = stated.get("__version__")
    model = {
        f"{folder}{file}": digest
        for folder, weights in opened.items()
        if folder != "adapter"
        for file, digest in weights.files.items()
    } | dict(beside)
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
