"""Checkpoints to measure with: the trained sample, and seeded random weights in real sizes.

Speed does not depend on what the weights are, so the base and large sizes are made here,
with NumPy alone. All are written in the sentence-transformers layout that every reader since
2.x understands, float32, with a BERT WordPiece tokenizer, as KLUE's RoBERTa models are. Trained
ones of one's own are read by `own_model`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine_bench import paths
from kosine_bench.measuring import modernbert

__all__ = ["SIZES", "ModelSize", "build", "flops_per_text", "weight_bytes", "write_modules"]

SEED = 20_240_117


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Shape of an encoder. `position_rows` counts RoBERTa's two unused ones.

    `family` is a `model_type` of transformers. Of a checkpoint of one's own, `folder` is where
    contestants read it, and `limit` the most tokens that it takes.
    """

    name: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    position_rows: int
    family: str = "roberta"
    folder: Path | None = None
    limit: int | None = None

    @property
    def trained(self) -> bool:
        """Whether the weights are trained and not random."""
        return self.name == "sample" or self.folder is not None

    @property
    def max_tokens(self) -> int:
        if self.limit is not None:
            return self.limit
        return self.position_rows - (2 if self.family == "roberta" else 0)

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers, which one forward pass reads whatever the text."""
        forward = 3 if self.family == "modernbert" else 2  # gated
        return self.layers * (4 * self.hidden**2 + forward * self.hidden * self.intermediate)

    def describe(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "family": self.family,
            "layers": self.layers,
            "hidden": self.hidden,
            "heads": self.heads,
            "intermediate": self.intermediate,
            "vocabulary": self.vocab_size,
            "weights": "trained" if self.trained else "random",
        }


SIZES = {
    size.name: size
    for size in (
        ModelSize("sample", 12_000, 256, 4, 4, 1024, 130),
        ModelSize("base", 32_000, 768, 12, 12, 3072, 514),
        ModelSize("large", 32_000, 1024, 24, 16, 4096, 514),
        ModelSize("base8k", 32_000, 768, 12, 12, 3072, 8_194),
        ModelSize("large8k", 32_000, 1024, 24, 16, 4096, 8_194),
        ModelSize("modernbert-base", 50_368, 768, 22, 12, 1152, 8192, "modernbert"),
    )
}


def flops_per_text(size: ModelSize, num_tokens: int) -> float:
    """Floating-point operations of one text alone, with no padding: linear layers, attention."""
    linear = 2.0 * size.linear_weights * num_tokens
    seen = [
        num_tokens
        if size.family != "modernbert" or modernbert.sees_all(layer)
        else min(num_tokens, modernbert.WINDOW + 1)
        for layer in range(size.layers)
    ]
    attention = 4.0 * size.hidden * float(num_tokens) * sum(seen)
    return linear + attention


def weight_bytes(size: ModelSize, precision: str) -> int:
    """Bytes of linear-layer weights that a forward pass streams at `precision`."""
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "w8a16": 1, "int8": 1}
    return size.linear_weights * sizes[precision]


def build(size: ModelSize, cache: Path | None = None) -> Path:
    """The checkpoint folder of `size`, made on first use and kept in `cache`; or one's own.

    Raises:
        FileNotFoundError: The sample checkpoint is needed and the package has no checkout.
    """
    if size.folder is not None:
        return size.folder
    cache = cache or paths.cache_dir()
    tokenizer = _tokenizer(size)
    folder = cache / "checkpoints" / f"{size.name}-{tokenizer.parent.name}"
    if (folder / "modules.json").is_file():
        return folder
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    from safetensors.numpy import save_file

    tensors = _sample_weights() if size.name == "sample" else dict(_random_weights(size))
    save_file(tensors, building / "model.safetensors", metadata={"format": "pt"})
    _write_config(size, building)
    write_modules(building, size.hidden, size.max_tokens)
    _write_tokenizer(size, tokenizer, building)
    building.rename(folder)
    return folder


def _sample_dir() -> Path:
    root = paths.checkout()
    if root is None:
        raise FileNotFoundError("the sample checkpoint is in a source checkout only")
    return root / "export" / "sample"


def _tokenizer(size: ModelSize) -> Path:
    """KLUE's tokenizer where it is present, else the sample's (12 000 of the 32 000 rows)."""
    shared = paths.shared_dir()
    klue = shared / "tokenizers" / "klue" / "tokenizer.json" if shared else None
    if size.name != "sample" and klue and klue.is_file():
        return klue
    return _sample_dir() / "tokenizer.json"


def _sample_weights() -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    tensors = load_file(_sample_dir() / "model.safetensors")
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _random_weights(size: ModelSize) -> Iterator[tuple[str, NDArray[np.float32]]]:
    rng = np.random.default_rng([SEED, size.hidden, size.layers])

    def normal(*shape: int, std: float = 0.02) -> NDArray[np.float32]:
        tensor = rng.standard_normal(shape, dtype=np.float32)
        tensor *= std
        return tensor

    def norm(prefix: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
        yield f"{prefix}.weight", 1 + normal(size.hidden)
        yield f"{prefix}.bias", normal(size.hidden)

    def linear(prefix: str, inner: int, outer: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        # Unit-variance rows keep unit variance through the layer, so that attention scores and
        # activations have the spread of a trained encoder's and rounding has something to spoil.
        yield f"{prefix}.weight", normal(outer, inner, std=inner**-0.5)
        yield f"{prefix}.bias", normal(outer)

    if size.family == "modernbert":
        yield from modernbert.random_weights(size, normal)
        return
    h, f = size.hidden, size.intermediate
    yield "embeddings.word_embeddings.weight", normal(size.vocab_size, h)
    yield "embeddings.position_embeddings.weight", normal(size.position_rows, h)
    yield "embeddings.token_type_embeddings.weight", normal(1, h)
    yield from norm("embeddings.LayerNorm")
    for i in range(size.layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            yield from linear(f"{layer}.attention.self.{part}", h, h)
        yield from linear(f"{layer}.attention.output.dense", h, h)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from linear(f"{layer}.intermediate.dense", h, f)
        yield from linear(f"{layer}.output.dense", f, h)
        yield from norm(f"{layer}.output.LayerNorm")
    yield from linear("pooler.dense", h, h)


def _write_config(size: ModelSize, folder: Path) -> None:
    config = {
        "architectures": ["RobertaModel"],
        "model_type": "roberta",
        "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "vocab_size": size.vocab_size,
        "max_position_embeddings": size.position_rows,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "position_embedding_type": "absolute",
        "tokenizer_class": "BertTokenizer",
        "torch_dtype": "float32",
    }
    if size.family == "modernbert":
        config = modernbert.config(size)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_modules(
    folder: Path,
    hidden: int,
    max_tokens: int,
    *,
    pooling: str = "mean",
    do_lower_case: bool = False,
) -> None:
    """sentence-transformers' own files: a transformer in `folder` itself, pooling, no prompts.

    Args:
        pooling: "mean" or "cls".
        do_lower_case: Whether texts are lower-cased first.
    """

    def write(name: str, content: Any) -> None:
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    (folder / "1_Pooling").mkdir()
    write(
        "modules.json",
        [
            {
                "idx": 0,
                "name": "0",
                "path": "",
                "type": "sentence_transformers.models.Transformer",
            },
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": "sentence_transformers.models.Pooling",
            },
        ],
    )
    write(
        "1_Pooling/config.json",
        {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": True,
        },
    )
    write(
        "sentence_bert_config.json",
        {"max_seq_length": max_tokens, "do_lower_case": do_lower_case},
    )
    write(
        "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _write_tokenizer(size: ModelSize, source: Path, folder: Path) -> None:
    tokenizer = json.loads(source.read_text(encoding="utf-8"))
    tokenizer["truncation"] = None
    tokenizer["padding"] = None
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8"
    )
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: int(item[1]))
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t, _ in vocab), encoding="utf-8")
    special = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    config = {
        **special,
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": False,
        "do_basic_tokenize": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": size.max_tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", "utf-8")
