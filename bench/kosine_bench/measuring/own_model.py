"""A trained checkpoint of one's own beside the known sizes, as every contestant can read it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from kosine.errors import InputError, UnsupportedCheckpoint
from kosine_bench import paths
from kosine_bench.measuring.models import SIZES, ModelSize, write_modules

__all__ = ["FAMILIES", "POOLING", "read"]

# What all contestants read and pool.
FAMILIES = ("bert", "roberta", "xlm-roberta")
POOLING = ("mean", "cls")


def read(folder: Path, cache: Path | None = None) -> ModelSize:
    """The checkpoint in `folder`, named after it, its shape and limit by its own files.

    Contestants read a folder in `cache` that links to its weights: rivals know neither older
    layouts nor prompts nor lower-casing, so there it has one layout, a tokenizer.json that does all
    that is done to a text, and no prompts. A digest of what vectors depend on is in that folder's
    name, and so in that of its conversions. Nothing is written into `folder`.

    Raises:
        InputError: It has the name of a known size.
        CheckpointError: It cannot be read, or some contestant would compute something else.
    """
    from kosine_export.checkpoint.checkpoint import read_checkpoint
    from kosine_export.checkpoint.modules import read_modules
    from kosine_export.families.config import model_type_of
    from kosine_export.files.folder import optional_object

    folder = folder.absolute()  # A link is called by its own name.
    if folder.name in SIZES:
        raise InputError(
            f"the folder is called {folder.name!r}",
            limit=f"a result knows models by name, and {', '.join(SIZES)} are taken",
            remedy="link or copy it under another name",
        )
    transformer = read_modules(folder).transformer
    config = optional_object(transformer / "config.json")
    family = model_type_of(config) if config else ""
    if config and family not in FAMILIES:
        raise UnsupportedCheckpoint(
            f"{folder.name}: model_type {family!r}",
            limit=f"the benchmark's contestants read {', '.join(FAMILIES)}",
            remedy="measure one of those",
        )
    checkpoint = read_checkpoint(folder)
    spec = checkpoint.spec
    (pooling, *others) = spec.pooling.modes
    if others or pooling not in POOLING or spec.dense:
        after = " and Dense" if spec.dense else ""
        raise UnsupportedCheckpoint(
            f"{folder.name}: pooling {'+'.join(spec.pooling.modes)}{after}",
            limit=f"the benchmark's contestants pool by {' or '.join(POOLING)}, and nothing more",
            remedy="measure one of those",
        )
    config |= {
        "model_type": family,
        "pad_token_id": checkpoint.special_ids["pad"],
        "torch_dtype": "float32",
    }
    config.pop("dtype", None)
    stated = {
        "config.json": json.dumps(config),
        "tokenizer.json": checkpoint.tokenizer_json,
        # Here one rival looks for the most tokens of a text; it takes the lower of the two.
        "tokenizer_config.json": json.dumps(
            optional_object(transformer / "tokenizer_config.json")
            | dict.fromkeys(("model_max_length", "max_length"), checkpoint.max_tokens)
        ),
    }
    digest = hashlib.sha256(
        json.dumps([checkpoint.source["sha256"], stated, pooling]).encode()
    ).hexdigest()
    made = (cache or paths.cache_dir()) / "checkpoints" / f"{folder.name}-own-{digest[:12]}"
    # Anew each time: it is small, and `folder` may have moved.
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name, text in stated.items():
        (made / name).write_text(text, "utf-8")
    write_modules(
        *(made, spec.hidden_size, checkpoint.max_tokens),
        pooling=pooling,
        do_lower_case=checkpoint.do_lower_case,
    )
    for path in transformer.iterdir():
        if path.is_file() and not (made / path.name).exists():
            (made / path.name).symlink_to(path)
    block = spec.layers[0]
    return ModelSize(
        folder.name,
        spec.embeddings.vocab_size,
        spec.hidden_size,
        len(spec.layers),
        block.attention.num_heads,
        block.feed_forward.intermediate_size,
        spec.embeddings.positions.rows,
        family,
        made,
        checkpoint.max_tokens,
    )
