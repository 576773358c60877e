"""The small files that other tools expect beside `model.onnx`.

sentence-transformers, fastembed and text-embeddings-inference look for transformers' and
sentence-transformers' config files; with these a bundle is a checkpoint folder to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kosine.spec import EncoderSpec
from kosine_export.checkpoint.checkpoint import Checkpoint
from kosine_export.families.registry import FAMILIES

__all__ = ["write_ecosystem"]

# In the order in which several of them are put end to end.
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# Only ONNX Runtime's users read it, so the classes of the 2.x format serve every version.
MODULES = "sentence_transformers.models"


def write_ecosystem(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Write the files into `folder` and return their relative paths."""
    written = []
    for name, value in _files(checkpoint):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        written.append(name)
    return written


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    spec = checkpoint.spec
    dropped = ("_name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version")
    family = FAMILIES[spec.family]
    own = (
        checkpoint.config
        if family.as_transformers is None
        else family.as_transformers(checkpoint.config)
    )
    config = {key: value for key, value in own.items() if key not in dropped}
    config["architectures"] = [family.model_class]
    # transformers picks a byte-level tokenizer for a RoBERTa that does not name its class.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    yield "config.json", config
    yield "tokenizer_config.json", _tokenizer_config(checkpoint)
    yield "special_tokens_map.json", _special_tokens(checkpoint)
    yield (
        "sentence_bert_config.json",
        {
            "max_seq_length": checkpoint.max_tokens,
            "do_lower_case": False,
        },  # in tokenizer.json already
    )
    yield (
        "config_sentence_transformers.json",
        {
            "prompts": checkpoint.prompts,
            "default_prompt_name": checkpoint.default_prompt_name,
            "similarity_fn_name": checkpoint.similarity,
        },
    )
    ordered = tuple(mode for mode in POOLING_FLAGS if mode in spec.pooling.modes)
    if spec.dense or ordered != spec.pooling.modes:
        # Dense lives inside the graphs, and flags cannot tell poolings in another order. Tools
        # that pool by themselves get no modules.json to misread and take `sentence_embedding`.
        return
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if spec.normalize:
        modules.append(("2_Normalize", "Normalize"))
    yield (
        "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"{MODULES}.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    yield "1_Pooling/config.json", _pooling(spec)


def _pooling(spec: EncoderSpec) -> dict[str, Any]:
    flags = {flag: mode in spec.pooling.modes for mode, flag in POOLING_FLAGS.items()}
    return {
        "word_embedding_dimension": spec.hidden_size,
        **flags,
        "include_prompt": spec.pooling.include_prompt,
    }


def _special_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    tokens = {
        entry["id"]: entry["content"]
        for entry in json.loads(checkpoint.tokenizer_json).get("added_tokens", [])
    }
    vocabulary = json.loads(checkpoint.tokenizer_json)["model"].get("vocab", {})
    if isinstance(vocabulary, dict):
        tokens.update({number: token for token, number in vocabulary.items()})
    return {
        f"{name}_token": tokens[number]
        for name, number in checkpoint.special_ids.items()
        if number in tokens
    }


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    names = ["input_ids", "attention_mask"]
    if checkpoint.spec.embeddings.token_types > 1:
        names.insert(1, "token_type_ids")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.max_tokens,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": names,
        **_special_tokens(checkpoint),
    }
